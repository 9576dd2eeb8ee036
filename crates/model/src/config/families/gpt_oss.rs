//! gpt-oss (`modeling_gpt_oss.py`): experts with biases in every layer, a window in every second one, and sinks.

use super::Family;
use super::llama::{Bias, LLAMA, Llama, NAMES, read};
use crate::config::names::{GateUp, Names};
use crate::config::window::Windows;
use crate::config::{Activation, ConfigError, ExpertWeights, ExpertsDesign, Fields, ModelConfig};

pub(super) const FAMILIES: &[Family] = &[Family { model_type: "gpt_oss", read: gpt_oss }];

const GPT_OSS_NAMES: Names =
    Names { router: "mlp.router", gate_up: GateUp::AllExperts("gate_up_proj"), down: "down_proj", ..NAMES };

const GPT_OSS: Llama = Llama {
    qkv_bias: Bias::Always,
    output_bias: Bias::Always,
    mlp_bias: Bias::Never,
    key_value_heads: Some(8),
    head_dim: Some(64),
    max_positions: 131_072,
    windows: Windows::AllButEvery(2, 128),
    eps: 1e-5,
    rope_theta: 150_000.0,
    bos_token_id: None,
    eos_token_id: None,
    names: &GPT_OSS_NAMES,
    ..LLAMA
};

fn gpt_oss(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    let mut model = read(fields, model_type, &GPT_OSS)?;
    let count = fields.size_or("num_local_experts", 128, 1 << 12)?;
    // The configuration says SiLU, which the class does not look at.
    model.block.mlp.activation = Activation::ClampedSwish;
    model.block.attention.sinks = true;
    model.block.experts = Some(ExpertsDesign {
        count,
        used: fields.size_or("num_experts_per_tok", 4, count)?,
        width: model.intermediate_size,
        weights: ExpertWeights::OfChosen,
        bias: true,
        shared: None,
    });
    model.layers.iter_mut().for_each(|layer| layer.experts = true);
    Ok(model)
}
