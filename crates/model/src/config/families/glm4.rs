//! GLM-4 (`modeling_glm.py` and `modeling_glm4.py`): half of each head rotated, neighbour by neighbour; GLM-4-0414 norms what comes out as well.

use super::Family;
use super::llama::{Bias, Llama, NAMES, WITHOUT_BIASES, read};
use crate::config::names::{GateUp, Names};
use crate::config::{ConfigError, Fields, ModelConfig, NormPlaces};

pub(super) const FAMILIES: &[Family] =
    &[Family { model_type: "glm", read: glm }, Family { model_type: "glm4", read: glm4 }];

const GLM_NAMES: Names = Names { gate_up: GateUp::Stacked("gate_up_proj"), ..NAMES };
const GLM4_NAMES: Names =
    Names { attention_out_norm: "post_self_attn_layernorm", mlp_out_norm: "post_mlp_layernorm", ..GLM_NAMES };

const GLM: Llama = Llama {
    key_value_heads: Some(2),
    head_dim: Some(128),
    max_positions: 131_072,
    eps: 1.5625e-7,
    rotated: Some(0.5),
    bos_token_id: None,
    eos_token_id: None,
    names: &GLM_NAMES,
    ..WITHOUT_BIASES
};

/// What missing `eos_token_id`s mean.
const ENDS: [u32; 3] = [151_329, 151_336, 151_338];

fn glm(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    with_neighbours(fields, model_type, &GLM)
}

fn glm4(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    let mut model = with_neighbours(fields, model_type, &Llama { names: &GLM4_NAMES, ..GLM })?;
    model.block.norms = NormPlaces::Around;
    Ok(model)
}

fn with_neighbours(fields: &Fields<'_>, model_type: &str, family: &Llama) -> Result<ModelConfig, ConfigError> {
    let qkv_bias = if fields.flag_unless_missing("attention_bias", true)? { Bias::Always } else { Bias::Never };
    let mut model = read(fields, model_type, &Llama { qkv_bias, ..*family })?;
    model.rotaries.iter_mut().for_each(|rotary| rotary.interleaved = true);
    if !fields.has("eos_token_id") {
        model.eos_token_ids = ENDS.to_vec();
    }
    Ok(model)
}
