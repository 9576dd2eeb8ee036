//! Rotary frequencies, and how they are stretched for contexts longer than those of pre-training.

use std::f64::consts::TAU;

use super::{ConfigError, Fields};

/// Context length of pre-training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// A rotary embedding (Su et al. 2021).
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryDesign {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many of a head's first values are rotated; even.
    pub dim: usize,
    /// How frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
    /// Whether neighbours are rotated (GPT-J, GLM), and not the halves of what is rotated.
    pub interleaved: bool,
}

/// Scaling of the rotary frequencies, after `modeling_rope_utils.py` of transformers.
#[derive(Debug, Clone, PartialEq)]
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
    /// YaRN (Peng et al. 2023): as Llama 3.1's with other bounds, and longer queries and keys.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Context length of pre-training.
        original: usize,
        /// Pairs that turn more often than this over the original length are kept.
        beta_fast: f64,
        /// Pairs that turn less often are divided.
        beta_slow: f64,
        /// Whether the bounds between those are rounded to whole pairs.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al. 2024; `Phi3`): each pair has its own divisor, one for texts up to the original length and one for longer ones.
    LongRope {
        /// For texts up to `original`.
        short: Vec<f64>,
        /// For longer texts.
        long: Vec<f64>,
        /// Context length of pre-training.
        original: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// Base and scaling of the rotary frequencies, from `rope_scaling`, `rope_parameters` (which transformers 5 writes, with the base in it)
/// and `rope_theta`; `positions` is `max_position_embeddings`, `default_base` what a missing base means.
pub(super) fn base_and_scaling(
    fields: &Fields<'_>,
    positions: usize,
    default_base: f64,
) -> Result<(f64, RopeScaling), ConfigError> {
    let Some(scaling) = scaling(fields)? else { return Ok((base(fields, default_base)?, RopeScaling::Default)) };
    // What is inside goes before what is outside, which is not even looked at.
    let outside = if scaling.has(BASE) { default_base } else { base(fields, default_base)? };
    let theta = base(&scaling, outside)?;
    Ok((theta, RopeScaling::read(fields, &scaling, positions)?))
}

/// The object that describes the scaling. transformers 5 prefers the old key where both are given, and takes an empty object for none.
pub(super) fn scaling<'a>(fields: &Fields<'a>) -> Result<Option<Fields<'a>>, ConfigError> {
    let scaling = fields.object("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    Ok(scaling.or(fields.object("rope_parameters")?))
}

const BASE: &str = "rope_theta";

fn base(fields: &Fields<'_>, default: f64) -> Result<f64, ConfigError> {
    fields.number_or(BASE, default, 1.0, 1e15)
}

/// How much of a head is rotated: `partial_rotary_factor`, which transformers 5 writes beside the base, or `default`.
pub(super) fn rotated_part(fields: &Fields<'_>, default: f64) -> Result<f64, ConfigError> {
    const KEY: &str = "partial_rotary_factor";
    let inside = match scaling(fields)? {
        Some(scaling) => scaling.number(KEY, 0.0, 1.0)?,
        None => None,
    };
    Ok(match inside {
        Some(part) => part,
        None => fields.number(KEY, 0.0, 1.0)?.unwrap_or(default),
    })
}

/// Refuses what versions of transformers differ in: these families rotate whole heads.
pub(super) fn whole_heads(fields: &Fields<'_>) -> Result<(), ConfigError> {
    const KEY: &str = "partial_rotary_factor";
    for place in [Some(*fields), scaling(fields)?].into_iter().flatten() {
        match place.number(KEY, f64::MIN, f64::MAX)? {
            None | Some(1.0) => {}
            Some(part) => {
                return Err(ConfigError::Unsupported {
                    key: place.name(KEY),
                    got: part.to_string(),
                    supported: "models of this family rotate whole heads".to_owned(),
                    remedy: "use another model".to_owned(),
                });
            }
        }
    }
    Ok(())
}

impl RopeScaling {
    fn read(all: &Fields<'_>, fields: &Fields<'_>, positions: usize) -> Result<Self, ConfigError> {
        for key in ["full_attention", "sliding_attention"] {
            if fields.has(key) {
                return Err(ConfigError::Unsupported {
                    key: fields.name(key),
                    got: "a kind of layers with frequencies of its own".to_owned(),
                    supported: "in this family the same frequencies in all layers are".to_owned(),
                    remedy: "use another model".to_owned(),
                });
            }
        }
        let number = |key| fields.number(key, 1e-3, 1e6)?.ok_or_else(|| fields.missing(key));
        let (key, kind) = match (fields.text("rope_type")?, fields.text("type")?) {
            (Some(kind), _) => ("rope_type", kind),
            (None, Some(kind)) => ("type", kind),
            (None, None) => return Ok(Self::Default),
        };
        match kind {
            // Of text alone all positions that `mrope` knows are equal.
            "default" | "mrope" => Ok(Self::Default),
            "linear" => Ok(Self::Linear { factor: number("factor")? }),
            // It changes nothing up to `max_position_embeddings`, beyond which no text goes here.
            "dynamic" => number("factor").map(|_| Self::Default),
            "llama3" => {
                let original = Self::original(all, fields, positions)?;
                let (low_freq_factor, high_freq_factor) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if low_freq_factor >= high_freq_factor {
                    let expected = format!("more than low_freq_factor = {low_freq_factor}");
                    return Err(fields.invalid("high_freq_factor", high_freq_factor.to_string(), expected));
                }
                Ok(Self::Llama3 { factor: number("factor")?, low_freq_factor, high_freq_factor, original })
            }
            "yarn" => Self::yarn(fields, positions),
            "longrope" | "su" => Self::longrope(all, fields, positions),
            other => Err(ConfigError::Unsupported {
                key: fields.name(key),
                got: format!("`{}`", other.escape_default()),
                supported: "supported are default, linear, dynamic, yarn, longrope and llama3".to_owned(),
                remedy: "use another model".to_owned(),
            }),
        }
    }

    /// The context length of pre-training. Some models have it beside the scaling, where it goes before the one inside.
    fn original(all: &Fields<'_>, fields: &Fields<'_>, positions: usize) -> Result<usize, ConfigError> {
        let outside = all.has(ORIGINAL) && !all.is_null(ORIGINAL);
        if outside { all } else { fields }.positions(ORIGINAL, positions)
    }

    fn yarn(fields: &Fields<'_>, positions: usize) -> Result<Self, ConfigError> {
        let given = |key: &str, default: f64| Ok(fields.number(key, 0.0, 1e6)?.filter(|n| *n > 0.0).unwrap_or(default));
        let original = if fields.is_null(ORIGINAL) { positions } else { fields.positions(ORIGINAL, positions)? };
        let stretched = positions as f64 / original as f64;
        let factor = fields.number("factor", 1e-3, 1e6)?.unwrap_or(stretched);
        let grown = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let (mscale, all_dim) = (fields.number("mscale", 0.0, 1e6)?, fields.number("mscale_all_dim", 0.0, 1e6)?);
        let usual = match (mscale.filter(|m| *m > 0.0), all_dim.filter(|m| *m > 0.0)) {
            (Some(mscale), Some(all_dim)) => grown(mscale) / grown(all_dim),
            _ => grown(1.0),
        };
        let attention_factor = fields.number("attention_factor", 0.0, 1e6)?.unwrap_or(usual);
        let (beta_fast, beta_slow) = (given("beta_fast", 32.0)?, given("beta_slow", 1.0)?);
        let truncate = !fields.has("truncate") || fields.flag("truncate")?;
        Ok(Self::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor })
    }

    fn longrope(all: &Fields<'_>, fields: &Fields<'_>, positions: usize) -> Result<Self, ConfigError> {
        let outside = all.has(ORIGINAL) && !all.is_null(ORIGINAL);
        let original = Self::original(all, fields, positions)?;
        let factor = match fields.number("factor", 1e-3, 1e6)? {
            Some(factor) if !outside => factor,
            _ => positions as f64 / original as f64,
        };
        let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let attention_factor = fields.number("attention_factor", 0.0, 1e6)?.unwrap_or(usual);
        let (short, long) = (fields.numbers("short_factor")?, fields.numbers("long_factor")?);
        Ok(Self::LongRope { short, long, original, attention_factor })
    }

    /// What cosines and sines are multiplied by.
    pub(crate) fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    pub(super) fn canonical(&self) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::Linear { factor } => format!("linear,{factor}"),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                format!("llama3,{factor},{low_freq_factor},{high_freq_factor},{original}")
            }
            other => format!("{other:?}"),
        }
    }
}

impl RotaryDesign {
    /// One that rotates the halves of a head's first `dim` values.
    ///
    /// # Errors
    /// If LongRoPE has not a divisor for each pair.
    pub(super) fn new(
        fields: &Fields<'_>,
        (theta, scaling): (f64, RopeScaling),
        dim: usize,
    ) -> Result<Self, ConfigError> {
        if let RopeScaling::LongRope { short, long, .. } = &scaling {
            for (key, divisors) in [("short_factor", short), ("long_factor", long)] {
                if divisors.len() != dim / 2 {
                    let expected = format!("one number for each of {} pairs that are rotated", dim / 2);
                    return Err(fields.invalid(key, format!("a list of {}", divisors.len()), expected));
                }
            }
        }
        Ok(Self { theta, dim, scaling, interleaved: false })
    }

    /// Radians per position of each pair, for texts longer than that of pre-training if `long`.
    pub(crate) fn frequencies(&self, long: bool) -> Vec<f64> {
        let pairs = self.dim / 2;
        let plain = |i: usize| self.theta.powf(-(i as f64) / pairs as f64);
        (0..pairs).map(|i| self.scaled(i, plain(i), long)).collect()
    }

    /// The length beyond which other frequencies hold.
    pub(crate) fn long_from(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }

    /// The frequency that replaces `frequency` of pair `i`.
    fn scaled(&self, i: usize, frequency: f64, is_long: bool) -> f64 {
        match &self.scaling {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
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
            &RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                let dim = self.dim as f64;
                let bound = |turns: f64| dim * (original as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (bound(beta_fast), bound(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * divided + frequency * (1.0 - divided)
            }
            RopeScaling::LongRope { short, long, .. } => {
                let divisors = if is_long { long } else { short };
                frequency / divisors.get(i).copied().unwrap_or(1.0)
            }
        }
    }
}
