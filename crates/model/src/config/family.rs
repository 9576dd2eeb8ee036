//! What the families of Llama-like models do differently, as data.

use super::ConfigError;

/// Where a projection's bias comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bias {
    Always,
    Never,
    /// As the configuration's flag says.
    Flag,
}

impl Bias {
    pub(super) fn resolve(self, flag: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Flag => flag,
        }
    }
}

/// One row per `model_type`, after `modeling_*.py` and `configuration_*.py` of transformers.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    pub(super) qkv_bias: Bias,
    pub(super) output_bias: Bias,
    pub(super) mlp_bias: Bias,
    pub(super) qk_norm: bool,
    /// Whether a missing `num_key_value_heads` means as many as query heads.
    pub(super) key_value_heads_optional: bool,
    /// Whether a missing `head_dim` means `hidden_size / num_attention_heads`.
    pub(super) head_dim_optional: bool,
    /// Whether `sliding_window` counts only together with `use_sliding_window`.
    pub(super) window_needs_flag: bool,
}

const LLAMA: Family = Family {
    model_type: "llama",
    qkv_bias: Bias::Flag,
    output_bias: Bias::Flag,
    mlp_bias: Bias::Flag,
    qk_norm: false,
    key_value_heads_optional: true,
    head_dim_optional: true,
    window_needs_flag: true,
};

const FAMILIES: [Family; 4] = [
    LLAMA,
    Family {
        model_type: "mistral",
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        mlp_bias: Bias::Never,
        key_value_heads_optional: false,
        window_needs_flag: false,
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        qkv_bias: Bias::Always,
        output_bias: Bias::Never,
        mlp_bias: Bias::Never,
        key_value_heads_optional: false,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        mlp_bias: Bias::Never,
        qk_norm: true,
        key_value_heads_optional: false,
        head_dim_optional: false,
        ..LLAMA
    },
];

impl Family {
    /// The family of a `model_type`.
    pub(super) fn of(model_type: &str) -> Result<&'static Self, ConfigError> {
        FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| ConfigError::Unsupported {
            key: "model_type",
            got: format!("`{}`", model_type.escape_default()),
            supported: "supported are llama, mistral, qwen2 and qwen3",
        })
    }
}
