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

/// Which layers of a family have a sliding window.
#[derive(Debug, Clone, Copy)]
pub(super) enum Windows {
    /// None, whatever the configuration says.
    Never,
    /// All, if there is a window.
    All,
    /// Those that `layer_types` names, or those from `max_window_layers` on, if `use_sliding_window` is true.
    ByLayer,
}

/// One row per `model_type`, after `modeling_*.py` and `configuration_*.py` of transformers.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    pub(super) qkv_bias: Bias,
    pub(super) output_bias: Bias,
    pub(super) mlp_bias: Bias,
    pub(super) qk_norm: bool,
    /// What a missing `num_key_value_heads` means; nothing: as many as query heads.
    pub(super) key_value_heads: Option<usize>,
    /// What a missing `head_dim` means; nothing: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// What a missing `max_position_embeddings` means.
    pub(super) max_positions: usize,
    pub(super) windows: Windows,
    /// What a missing `bos_token_id` and `eos_token_id` mean.
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
}

/// What a missing `sliding_window` means to families that have one.
pub(super) const WINDOW: usize = 4096;
/// What a missing `max_window_layers` means: that many layers from the first on have no window.
pub(super) const LAYERS_WITHOUT_WINDOW: usize = 28;

const LLAMA: Family = Family {
    model_type: "llama",
    qkv_bias: Bias::Flag,
    output_bias: Bias::Flag,
    mlp_bias: Bias::Flag,
    qk_norm: false,
    key_value_heads: None,
    head_dim: None,
    max_positions: 2048,
    windows: Windows::Never,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    qkv_bias: Bias::Always,
    output_bias: Bias::Never,
    mlp_bias: Bias::Never,
    key_value_heads: Some(32),
    max_positions: 32_768,
    windows: Windows::ByLayer,
    bos_token_id: None,
    eos_token_id: None,
    ..LLAMA
};

const FAMILIES: [Family; 4] = [
    LLAMA,
    Family {
        model_type: "mistral",
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        mlp_bias: Bias::Never,
        key_value_heads: Some(8),
        max_positions: 131_072,
        windows: Windows::All,
        ..LLAMA
    },
    QWEN2,
    Family {
        model_type: "qwen3",
        qkv_bias: Bias::Flag,
        output_bias: Bias::Flag,
        qk_norm: true,
        head_dim: Some(128),
        ..QWEN2
    },
];

/// The families by name, for whoever asked for another one.
pub(super) const SUPPORTED: &str = "supported are llama, mistral, qwen2 and qwen3";

impl Family {
    /// The family of a `model_type`.
    pub(super) fn of(model_type: &str) -> Result<&'static Self, ConfigError> {
        FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| ConfigError::Unsupported {
            key: "model_type".to_owned(),
            got: format!("`{}`", model_type.escape_default()),
            supported: SUPPORTED.to_owned(),
            remedy: "use a model of one of these families".to_owned(),
        })
    }
}
