//! How rotary frequencies are stretched for contexts longer than those of pre-training.

use std::f64::consts::TAU;

use super::{ConfigError, Fields};

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

/// Base and scaling of the rotary frequencies: `rope_theta` and `rope_scaling`, or both in `rope_parameters`.
pub(super) fn base_and_scaling(fields: &Fields<'_>) -> Result<(f64, RopeScaling), ConfigError> {
    const THETA: &str = "rope_theta";
    let parameters = fields.object("rope_parameters")?;
    let nested = parameters.as_ref().map(|p| p.number(THETA, 1.0, 1e15)).transpose()?.flatten();
    let theta = nested.or(fields.number(THETA, 1.0, 1e15)?).unwrap_or(10_000.0);
    let scaling = match parameters.or(fields.object("rope_scaling")?) {
        Some(fields) => RopeScaling::from_fields(&fields)?,
        None => RopeScaling::Default,
    };
    Ok((theta, scaling))
}

impl RopeScaling {
    fn from_fields(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let factor = |key| fields.number(key, 1e-3, 1e6)?.ok_or(ConfigError::Missing(key));
        let kind = fields.text("rope_type")?.or(fields.text("type")?).unwrap_or("default");
        match kind {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear { factor: factor("factor")? }),
            "llama3" => {
                let original = fields.size("original_max_position_embeddings", 1 << 24)?;
                let (low_freq_factor, high_freq_factor) = (factor("low_freq_factor")?, factor("high_freq_factor")?);
                if low_freq_factor >= high_freq_factor {
                    return Err(ConfigError::Invalid {
                        key: "high_freq_factor",
                        got: high_freq_factor.to_string(),
                        expected: format!("more than low_freq_factor = {low_freq_factor}"),
                    });
                }
                Ok(Self::Llama3 { factor: factor("factor")?, low_freq_factor, high_freq_factor, original })
            }
            other => Err(ConfigError::Unsupported {
                key: "rope_type",
                got: format!("`{}`", other.escape_default()),
                supported: "supported are default, linear and llama3",
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
