//! OLMo 2 (`modeling_olmo2.py`): what comes out of attention and MLP is normed, not what goes in, and queries and keys over all heads together.

use super::Family;
use super::llama::{Bias, LLAMA, Llama, NAMES, read};
use crate::config::names::Names;
use crate::config::{ConfigError, Fields, HeadNorms, ModelConfig, NormPlaces};

pub(super) const FAMILIES: &[Family] = &[Family { model_type: "olmo2", read: olmo2 }];

const OLMO2_NAMES: Names = Names {
    attention_norm: "",
    attention_out_norm: "post_attention_layernorm",
    mlp_norm: "",
    mlp_out_norm: "post_feedforward_layernorm",
    ..NAMES
};

const OLMO2: Llama = Llama {
    mlp_bias: Bias::Never,
    head_norms: HeadNorms::Whole,
    eps: 1e-5,
    bos_token_id: None,
    eos_token_id: Some(50_279),
    names: &OLMO2_NAMES,
    ..LLAMA
};

fn olmo2(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    let mut model = read(fields, model_type, &OLMO2)?;
    model.block.norms = NormPlaces::After;
    Ok(model)
}
