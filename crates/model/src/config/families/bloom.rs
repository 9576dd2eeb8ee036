//! BLOOM (`modeling_bloom.py`): no rotary embedding, but scores that fall with the distance, and a norm of the embeddings.

use super::{Family, plain_block};
use crate::config::names::{GateUp, Names, Qkv};
use crate::config::{
    Activation, Alibi, ConfigError, EmbeddingDesign, Fields, HeadDesign, LayerDesign, MlpDesign, ModelConfig, NormKind,
};

pub(super) const FAMILIES: &[Family] = &[Family { model_type: "bloom", read }];

/// The names that BLOOM, GPT-NeoX and Falcon have in common.
pub(super) const NAMES: Names = Names {
    base: "transformer.",
    embeddings: "word_embeddings",
    embedding_norm: "word_embeddings_layernorm",
    final_norm: "ln_f",
    layers: "h",
    qkv: Qkv::ByKeyHead("self_attention.query_key_value"),
    output: "self_attention.dense",
    gate_up: GateUp::Separate(["", "dense_h_to_4h"]),
    down: "dense_4h_to_h",
    ..super::llama::NAMES
};

/// What a missing length means: that of pre-training, beyond which BLOOM goes on as well as its biases do.
const POSITIONS: usize = 2048;

fn read(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    let hidden_size = fields.size(fields.either(&["n_embed", "hidden_size"]), 1 << 16)?;
    let heads = fields.size(fields.either(&["n_head", "num_attention_heads"]), 1 << 10)?;
    let layers = fields.size(fields.either(&["n_layer", "num_hidden_layers"]), 1 << 10)?;
    let head_dim = fields.head_width(hidden_size, heads)?;
    let mut block = plain_block(head_dim, fields.number_or("layer_norm_epsilon", 1e-5, 1e-12, 0.1)? as f32);
    block.norm = NormKind::Layer;
    block.normed_residuals = fields.flag("apply_residual_connection_post_layernorm")?;
    block.attention.qkv_bias = true;
    block.attention.output_bias = true;
    block.attention.alibi = Some(Alibi { factor: 1.0, rounded: false });
    block.mlp = MlpDesign { activation: Activation::GeluTanh, gated: false, bias: true };
    Ok(ModelConfig {
        model_type: model_type.to_owned(),
        vocab_size: fields.size("vocab_size", 1 << 22)?,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: fields
            .positions(fields.either(&["max_position_embeddings", "seq_length"]), POSITIONS)?,
        block,
        layers: vec![LayerDesign { window: None, rotary: None, experts: false }; layers],
        rotaries: Vec::new(),
        embedding: EmbeddingDesign { norm: true, ..EmbeddingDesign::default() },
        head: HeadDesign { tied: fields.flag_unless_missing("tie_word_embeddings", true)?, ..HeadDesign::default() },
        initializer_range: fields.number("initializer_range", 0.0, 1e3)?.unwrap_or(0.02) as f32,
        bos_token_id: fields.token_ids("bos_token_id", Some(1))?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id", Some(2))?,
        quantisation: None,
        names: &NAMES,
    })
}
