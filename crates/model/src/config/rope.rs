//! How rotary frequencies are stretched for contexts longer than those of pre-training.

use std::f64::consts::TAU;

use super::{ConfigError, Fields};

/// Context length of pre-training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Scaling of the rotary frequencies, after `modeling_rope_utils.py` of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency is divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original: usize,
    },
}

/// Base and scaling of the rotary frequencies, from `rope_scaling`, `rope_parameters` (which transformers 5 writes, with the base in it)
/// and `rope_theta`; `positions` is `max_position_embeddings`.
pub(super) fn base_and_scaling(fields: &Fields<'_>, positions: usize) -> Result<(f64, RopeScaling), ConfigError> {
    whole_heads(fields)?;
    // transformers 5 prefers the old key where both are given, and takes an empty object for none.
    let scaling = fields.object("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    let scaling = scaling.or(fields.object("rope_parameters")?);
    let Some(scaling) = scaling else { return Ok((base(fields, DEFAULT_BASE)?, RopeScaling::Default)) };
    whole_heads(&scaling)?;
    // What is inside goes before what is outside, which is not even looked at.
    let outside = if scaling.has(BASE) { DEFAULT_BASE } else { base(fields, DEFAULT_BASE)? };
    let theta = base(&scaling, outside)?;
    Ok((theta, RopeScaling::read(fields, &scaling, theta, positions)?))
}

const BASE: &str = "rope_theta";
const DEFAULT_BASE: f64 = 10_000.0;

fn base(fields: &Fields<'_>, default: f64) -> Result<f64, ConfigError> {
    fields.number_or(BASE, default, 1.0, 1e15)
}

/// Refuses what versions of transformers differ in: these families rotate whole heads.
fn whole_heads(fields: &Fields<'_>) -> Result<(), ConfigError> {
    const KEY: &str = "partial_rotary_factor";
    match fields.number(KEY, f64::MIN, f64::MAX)? {
        None | Some(1.0) => Ok(()),
        Some(part) => Err(ConfigError::Unsupported {
            key: fields.name(KEY),
            got: part.to_string(),
            supported: "whole heads are rotated".to_owned(),
            remedy: "use another model".to_owned(),
        }),
    }
}

impl RopeScaling {
    fn read(all: &Fields<'_>, fields: &Fields<'_>, theta: f64, positions: usize) -> Result<Self, ConfigError> {
        for key in ["full_attention", "sliding_attention"] {
            if fields.has(key) {
                return Err(ConfigError::Unsupported {
                    key: fields.name(key),
                    got: "a kind of layers with frequencies of its own".to_owned(),
                    supported: "the same frequencies in all layers are".to_owned(),
                    remedy: "use another model".to_owned(),
                });
            }
        }
        let factor = |key| fields.number(key, 1e-3, 1e6)?.ok_or_else(|| fields.missing(key));
        let (key, kind) = match (fields.text("rope_type")?, fields.text("type")?) {
            (Some(kind), _) => ("rope_type", kind),
            (None, Some(kind)) => ("type", kind),
            (None, None) => return Ok(Self::Default),
        };
        match kind {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear { factor: factor("factor")? }),
            "llama3" => {
                // Some models have it beside the scaling, where it goes before the one inside.
                let outside = all.has(ORIGINAL) && !all.is_null(ORIGINAL);
                let original = if outside { all } else { fields }.positions(ORIGINAL, positions)?;
                let (low_freq_factor, high_freq_factor) = (factor("low_freq_factor")?, factor("high_freq_factor")?);
                if low_freq_factor >= high_freq_factor {
                    let expected = format!("more than low_freq_factor = {low_freq_factor}");
                    return Err(fields.invalid("high_freq_factor", high_freq_factor.to_string(), expected));
                }
                Ok(Self::Llama3 { factor: factor("factor")?, low_freq_factor, high_freq_factor, original })
            }
            other => Err(ConfigError::Unsupported {
                key: fields.name(key),
                got: format!("`{}`", other.escape_default()),
                supported: "supported are default, linear and llama3".to_owned(),
                remedy: way_out(fields, other, theta, positions),
            }),
        }
    }

    /// The frequency that replaces `frequency`, both in radians per position.
    pub(crate) fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let turns = original as f64 * frequency / TAU;
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    pub(super) fn canonical(&self) -> String {
        match *self {
            Self::Default => "default".to_owned(),
            Self::Linear { factor } => format!("linear,{factor}"),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                format!("llama3,{factor},{low_freq_factor},{high_freq_factor},{original}")
            }
        }
    }
}

/// How far a model with a scaling that is not computed here can be used without it: what extends the context of a model that was trained
/// without can be left out, and the model is what it was before.
fn way_out(fields: &Fields<'_>, kind: &str, theta: f64, positions: usize) -> String {
    let original = match kind {
        "yarn" => fields.positions(ORIGINAL, positions).unwrap_or(positions).min(positions),
        // Nothing is scaled up to `max_position_embeddings`.
        "dynamic" => positions,
        // longrope and its kin scale short texts too.
        _ => return "use another model".to_owned(),
    };
    let place = fields.place().unwrap_or("rope_scaling");
    let mut way = match fields.has(BASE) {
        true => format!("set `{place}` to {{\"rope_type\": \"default\", \"{BASE}\": {theta:?}}}"),
        false => format!("remove `{place}`"),
    };
    if original < positions {
        way.push_str(&format!(" and set `max_position_embeddings` to {original}"));
    }
    format!("{way}, on all servers and clients alike, to use the model up to {original} positions")
}
