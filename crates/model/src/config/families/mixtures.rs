//! Mixtures of experts in Llama's block: Mixtral, Qwen2-MoE and Qwen3-MoE (`modeling_*.py` of these).

use super::Family;
use super::llama::{Bias, Llama, NAMES, QWEN2, QWEN3, WITHOUT_BIASES, read};
use crate::config::names::{GateUp, Names};
use crate::config::window::Windows;
use crate::config::{ConfigError, ExpertWeights, ExpertsDesign, Fields, ModelConfig, SharedExpert};

pub(super) const FAMILIES: &[Family] = &[
    Family { model_type: "mixtral", read: mixtral },
    Family { model_type: "qwen2_moe", read: qwen2_moe },
    Family { model_type: "qwen3_moe", read: qwen3_moe },
];

/// Most experts of a block.
const MAX_EXPERTS: usize = 1 << 12;

fn mixtral(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const MIXTRAL_NAMES: Names = Names {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        gate_up: GateUp::Separate(["w1", "w3"]),
        down: "w2",
        ..NAMES
    };
    const MIXTRAL: Llama = Llama {
        key_value_heads: Some(8),
        max_positions: 131_072,
        windows: Windows::All(None),
        eps: 1e-5,
        rope_theta: 1e6,
        names: &MIXTRAL_NAMES,
        ..WITHOUT_BIASES
    };
    let mut model = read(fields, model_type, &MIXTRAL)?;
    let count = fields.size_or("num_local_experts", 8, MAX_EXPERTS)?;
    model.block.experts = Some(ExpertsDesign {
        count,
        used: fields.size_or("num_experts_per_tok", 2, count)?,
        width: model.intermediate_size,
        weights: ExpertWeights::OfChosen,
        bias: false,
        shared: None,
    });
    model.layers.iter_mut().for_each(|layer| layer.experts = true);
    Ok(model)
}

fn qwen2_moe(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    let bias = if fields.flag_unless_missing("qkv_bias", true)? { Bias::Always } else { Bias::Never };
    let family = Llama { qkv_bias: bias, key_value_heads: Some(16), windows: Windows::AllIfUsed, ..QWEN2 };
    let mut model = read(fields, model_type, &family)?;
    let width = fields.size_or("shared_expert_intermediate_size", 5632, 1 << 20)?;
    let shared = Some(SharedExpert { width, gated: true });
    model.block.experts = Some(ExpertsDesign { shared, ..qwen_experts(fields, [60, 4, 1408])? });
    sparse_layers(fields, &mut model)?;
    Ok(model)
}

fn qwen3_moe(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const QWEN3_MOE: Llama = Llama { key_value_heads: Some(4), head_dim: None, windows: Windows::AllIfUsed, ..QWEN3 };
    let mut model = read(fields, model_type, &QWEN3_MOE)?;
    model.block.experts = Some(qwen_experts(fields, [128, 8, 768])?);
    sparse_layers(fields, &mut model)?;
    Ok(model)
}

/// The experts of Qwen's mixtures, given what missing keys mean.
fn qwen_experts(fields: &Fields<'_>, [count, used, width]: [usize; 3]) -> Result<ExpertsDesign, ConfigError> {
    let count = fields.size_or("num_experts", count, MAX_EXPERTS)?;
    let normed = fields.flag("norm_topk_prob")?;
    Ok(ExpertsDesign {
        count,
        used: fields.size_or("num_experts_per_tok", used, count)?,
        width: fields.size_or("moe_intermediate_size", width, 1 << 20)?,
        weights: if normed { ExpertWeights::OfChosen } else { ExpertWeights::OfAll },
        bias: false,
        shared: None,
    })
}

/// Marks the layers that have experts: every `decoder_sparse_step`th one but those of `mlp_only_layers`.
fn sparse_layers(fields: &Fields<'_>, model: &mut ModelConfig) -> Result<(), ConfigError> {
    const DENSE: &str = "mlp_only_layers";
    let step = fields.size_or("decoder_sparse_step", 1, usize::MAX)?;
    let dense = fields.list(DENSE)?.unwrap_or_default();
    let dense: Option<Vec<u64>> = dense.iter().map(serde_json::Value::as_u64).collect();
    let dense = dense.ok_or_else(|| fields.invalid(DENSE, "a list with something else", "a list of layers"))?;
    for (number, layer) in model.layers.iter_mut().enumerate() {
        layer.experts = (number + 1).is_multiple_of(step) && !dense.contains(&(number as u64));
    }
    Ok(())
}
