//! Gemma, Gemma 2 and the text part of Gemma 3 (`modeling_gemma*.py`).

use super::Family;
use super::llama::{Bias, LLAMA, Llama, NAMES, read};
use crate::config::names::Names;
use crate::config::window::{Windows, layer_types};
use crate::config::{
    Activation, ConfigError, Fields, HeadNorms, ModelConfig, NormKind, NormPlaces, RopeScaling, RotaryDesign,
};

pub(super) const FAMILIES: &[Family] = &[
    Family { model_type: "gemma", read: gemma },
    Family { model_type: "gemma2", read: gemma2 },
    Family { model_type: "gemma3_text", read: gemma3 },
];

const GEMMA: Llama = Llama {
    mlp_bias: Bias::Never,
    head_dim: Some(256),
    max_positions: 8192,
    activation: ("hidden_activation", Activation::GeluTanh),
    tied: true,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
    ..LLAMA
};

const FOUR_NORMS: Names = Names {
    attention_out_norm: "post_attention_layernorm",
    mlp_norm: "pre_feedforward_layernorm",
    mlp_out_norm: "post_feedforward_layernorm",
    ..NAMES
};

/// What all of them do: `1 + w` in norms, and embeddings as long as the hidden states are wide.
fn with_gemmas_norms(mut model: ModelConfig) -> ModelConfig {
    model.block.norm = NormKind::RootMeanSquarePlusOne;
    model.embedding.scale = (model.hidden_size as f32).sqrt();
    model
}

fn gemma(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const FIRST: Llama = Llama { key_value_heads: Some(16), activation: ("hidden_act", Activation::GeluTanh), ..GEMMA };
    Ok(with_gemmas_norms(read(fields, model_type, &FIRST)?))
}

/// What Gemma 2 and 3 have in common.
fn with_four_norms(fields: &Fields<'_>, model_type: &str, family: &Llama) -> Result<ModelConfig, ConfigError> {
    let mut model = with_gemmas_norms(read(fields, model_type, family)?);
    model.block.norms = NormPlaces::Around;
    let scalar = fields.number_or("query_pre_attn_scalar", 256.0, 1e-3, 1e9)?;
    model.block.attention.scale = scalar.sqrt().recip() as f32;
    Ok(model)
}

/// A soft cap under `key`: null is none; `default` is what a missing key means.
fn soft_cap(fields: &Fields<'_>, key: &str, default: Option<f32>) -> Result<Option<f32>, ConfigError> {
    if !fields.has(key) {
        return Ok(default);
    }
    Ok(fields.number(key, 1e-3, 1e9)?.map(|cap| cap as f32))
}

fn gemma2(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const GEMMA2: Llama =
        Llama { key_value_heads: Some(4), windows: Windows::AllButEvery(2, 4096), names: &FOUR_NORMS, ..GEMMA };
    let mut model = with_four_norms(fields, model_type, &GEMMA2)?;
    model.block.attention.soft_cap = soft_cap(fields, "attn_logit_softcapping", Some(50.0))?;
    model.head.soft_cap = soft_cap(fields, "final_logit_softcapping", Some(30.0))?;
    Ok(model)
}

fn gemma3(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    if fields.flag(BIDIRECTIONAL)? {
        return Err(ConfigError::Unsupported {
            key: BIDIRECTIONAL.to_owned(),
            got: "true".to_owned(),
            supported: "attention to what came before is".to_owned(),
            remedy: "use another model".to_owned(),
        });
    }
    let every = fields.size_or("sliding_window_pattern", 6, usize::MAX)?;
    let family = Llama {
        key_value_heads: Some(4),
        // Configurations that are nested in one of text and images leave out what is usual.
        sizes: Some([8, 262_208]),
        max_positions: 131_072,
        head_norms: HeadNorms::PerHead,
        windows: Windows::AllButEvery(every, 4096),
        rope_theta: 1e6,
        names: &FOUR_NORMS,
        ..GEMMA
    };
    let mut model = with_four_norms(fields, model_type, &family)?;
    // The class takes `attn_logit_softcapping` and does nothing with it.
    model.head.soft_cap = soft_cap(fields, "final_logit_softcapping", None)?;
    model.embedding.scales_table_only = true;
    // Layers with a window have a rotary embedding of their own, which nothing stretches.
    let theta = fields.number_or("rope_local_base_freq", 10_000.0, 1.0, 1e15)?;
    let local = RotaryDesign { theta, dim: model.head_dim, scaling: RopeScaling::Default, interleaved: false };
    model.rotaries.push(local);
    let slides = match layer_types(fields, model.num_hidden_layers)? {
        Some(slides) => slides,
        None => (1..=model.num_hidden_layers).map(|layer| !layer.is_multiple_of(every)).collect(),
    };
    for (layer, slides) in model.layers.iter_mut().zip(slides) {
        layer.rotary = Some(usize::from(slides));
    }
    Ok(model)
}
