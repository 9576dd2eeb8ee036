//! Llama and what has its configuration's keys, after `modeling_*.py` and `configuration_*.py` of transformers.

use super::{Family, plain_block};
use crate::config::names::{GateUp, Names, Qkv};
use crate::config::window::Windows;
use crate::config::{
    Activation, ConfigError, EmbeddingDesign, Fields, HeadDesign, HeadNorms, LayerDesign, ModelConfig, RotaryDesign,
    rope,
};

pub(super) const FAMILIES: &[Family] = &[
    Family { model_type: "llama", read: |fields, name| read(fields, name, &LLAMA) },
    Family { model_type: "mistral", read: |fields, name| read(fields, name, &MISTRAL) },
    Family { model_type: "qwen2", read: |fields, name| read(fields, name, &QWEN2) },
    Family { model_type: "qwen3", read: |fields, name| read(fields, name, &QWEN3) },
    Family { model_type: "smollm3", read: smollm3 },
];

/// Where a projection's bias comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bias {
    Always,
    Never,
    /// As the configuration's flag says.
    Flag,
}

impl Bias {
    fn resolve(self, flag: bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Flag => flag,
        }
    }
}

/// What a family does with keys of Llama's configuration, and what missing ones mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct Llama {
    pub(super) qkv_bias: Bias,
    pub(super) output_bias: Bias,
    pub(super) mlp_bias: Bias,
    pub(super) head_norms: HeadNorms,
    /// What a missing `num_key_value_heads` means; nothing: as many as query heads.
    pub(super) key_value_heads: Option<usize>,
    /// What missing `num_attention_heads` and `vocab_size` mean; nothing: they must be there.
    pub(super) sizes: Option<[usize; 2]>,
    /// What a missing `head_dim` means; nothing: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    /// What a missing `max_position_embeddings` means.
    pub(super) max_positions: usize,
    pub(super) windows: Windows,
    pub(super) eps: f64,
    pub(super) rope_theta: f64,
    /// How much of a head is rotated without `partial_rotary_factor`; nothing: the key is refused.
    pub(super) rotated: Option<f64>,
    /// The activation's key, and what a missing one means.
    pub(super) activation: (&'static str, Activation),
    /// What a missing `tie_word_embeddings` means.
    pub(super) tied: bool,
    /// What a missing `bos_token_id` and `eos_token_id` mean.
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
    pub(super) names: &'static Names,
}

pub(super) const NAMES: Names = Names {
    base: "model.",
    embeddings: "embed_tokens",
    embedding_norm: "",
    final_norm: "norm",
    head: "lm_head",
    layers: "layers",
    attention_norm: "input_layernorm",
    attention_out_norm: "",
    mlp_norm: "post_attention_layernorm",
    mlp_out_norm: "",
    qkv: Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    sinks: "self_attn.sinks",
    output: "self_attn.o_proj",
    mlp: "mlp.",
    gate_up: GateUp::Separate(["gate_proj", "up_proj"]),
    down: "down_proj",
    router: "mlp.gate",
    experts: "mlp.experts",
    shared_expert: "mlp.shared_expert.",
    shared_gate: "mlp.shared_expert_gate",
    caches_repeated_keys: false,
};

pub(super) const LLAMA: Llama = Llama {
    qkv_bias: Bias::Flag,
    output_bias: Bias::Flag,
    mlp_bias: Bias::Flag,
    head_norms: HeadNorms::None,
    key_value_heads: None,
    sizes: None,
    head_dim: None,
    max_positions: 2048,
    windows: Windows::Never,
    eps: 1e-6,
    rope_theta: 10_000.0,
    rotated: None,
    activation: ("hidden_act", Activation::Silu),
    tied: false,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    names: &NAMES,
};

/// A family without biases, whatever the configuration says.
pub(super) const WITHOUT_BIASES: Llama =
    Llama { qkv_bias: Bias::Never, output_bias: Bias::Never, mlp_bias: Bias::Never, ..LLAMA };

const MISTRAL: Llama = Llama {
    key_value_heads: Some(8),
    max_positions: 131_072,
    windows: Windows::All(Some(crate::config::window::WINDOW)),
    ..WITHOUT_BIASES
};

pub(super) const QWEN2: Llama = Llama {
    qkv_bias: Bias::Always,
    key_value_heads: Some(32),
    max_positions: 32_768,
    windows: Windows::IfUsed,
    bos_token_id: None,
    eos_token_id: None,
    ..WITHOUT_BIASES
};

pub(super) const QWEN3: Llama = Llama {
    qkv_bias: Bias::Flag,
    output_bias: Bias::Flag,
    head_norms: HeadNorms::PerHead,
    head_dim: Some(128),
    ..QWEN2
};

/// A model with Llama's blocks, as far as `family` goes.
pub(super) fn read(fields: &Fields<'_>, model_type: &str, family: &Llama) -> Result<ModelConfig, ConfigError> {
    let hidden_size = fields.size("hidden_size", 1 << 16)?;
    let required = |key: &str, number: usize, max: usize| match family.sizes {
        Some(defaults) => fields.size_or(key, defaults[number], max),
        None => fields.size(key, max),
    };
    let num_attention_heads = required("num_attention_heads", 0, 1 << 10)?;
    let num_hidden_layers = fields.size("num_hidden_layers", 1 << 10)?;
    let (activation, default) = family.activation;
    let activation = fields.activation(activation, default)?;
    let max_position_embeddings = fields.positions("max_position_embeddings", family.max_positions)?;
    let windows = family.windows.read(fields, num_hidden_layers, max_position_embeddings)?;
    let head_dim = fields.head_dim(family.head_dim, hidden_size, num_attention_heads)?;
    let rotated = match family.rotated {
        None => {
            rope::whole_heads(fields)?;
            1.0
        }
        Some(default) => rope::rotated_part(fields, default)?,
    };
    let scaled = rope::base_and_scaling(fields, max_position_embeddings, family.rope_theta)?;
    let dim = fields.even("head_dim", (head_dim as f64 * rotated) as usize)?;
    let mut block = plain_block(head_dim, fields.number_or("rms_norm_eps", family.eps, 1e-12, 0.1)? as f32);
    let attention_bias = fields.flag("attention_bias")?;
    block.attention.qkv_bias = family.qkv_bias.resolve(attention_bias);
    block.attention.output_bias = family.output_bias.resolve(attention_bias);
    block.attention.head_norms = family.head_norms;
    block.mlp.bias = family.mlp_bias.resolve(fields.flag("mlp_bias")?);
    block.mlp.activation = activation;
    let layer = |window| LayerDesign { window, rotary: Some(0), experts: false };
    Ok(ModelConfig {
        model_type: model_type.to_owned(),
        vocab_size: required("vocab_size", 1, 1 << 22)?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", 1 << 20)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.key_value_heads(family.key_value_heads, num_attention_heads)?,
        head_dim,
        max_position_embeddings,
        block,
        layers: windows.into_iter().map(layer).collect(),
        rotaries: vec![RotaryDesign::new(fields, scaled, dim)?],
        embedding: EmbeddingDesign::default(),
        head: HeadDesign {
            tied: fields.flag_unless_missing("tie_word_embeddings", family.tied)?,
            ..HeadDesign::default()
        },
        initializer_range: fields.number("initializer_range", 0.0, 1e3)?.unwrap_or(0.02) as f32,
        bos_token_id: fields.token_ids("bos_token_id", family.bos_token_id)?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id", family.eos_token_id)?,
        quantisation: None,
        names: family.names,
    })
}

/// SmolLM 3: some layers have no positions.
fn smollm3(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const KEY: &str = "no_rope_layers";
    const SMOLLM3: Llama = Llama {
        key_value_heads: Some(4),
        max_positions: 32_768,
        windows: Windows::IfUsed,
        rope_theta: 2e6,
        tied: true,
        bos_token_id: Some(128_000),
        eos_token_id: Some(128_001),
        ..LLAMA
    };
    let mut model = read(fields, model_type, &SMOLLM3)?;
    let layers = model.num_hidden_layers;
    // The list has 1 for layers that do rotate, whatever its name says.
    let rotates: Vec<bool> = match fields.list(KEY)? {
        Some(list) if list.len() == layers => list.iter().map(|rotates| rotates.as_u64() != Some(0)).collect(),
        Some(list) => {
            let expected = format!("one for each of num_hidden_layers = {layers}");
            return Err(fields.invalid(KEY, format!("a list of {}", list.len()), expected));
        }
        None => {
            let every = fields.size_or("no_rope_layer_interval", 4, usize::MAX)?;
            (1..=layers).map(|layer| !layer.is_multiple_of(every)).collect()
        }
    };
    for (layer, rotates) in model.layers.iter_mut().zip(rotates) {
        layer.rotary = layer.rotary.filter(|_| rotates);
    }
    Ok(model)
}
