//! GPT-NeoX, and Pythia with it (`modeling_gpt_neox.py`): attention and MLP side by side, a quarter of each head rotated.

use super::{Family, plain_block};
use crate::config::names::{Names, Qkv};
use crate::config::{
    Activation, ConfigError, EmbeddingDesign, Fields, HeadDesign, LayerDesign, MlpDesign, MlpReads, ModelConfig,
    NormKind, RotaryDesign, rope,
};

pub(super) const FAMILIES: &[Family] = &[Family { model_type: "gpt_neox", read }];

const NAMES: Names = Names {
    base: "gpt_neox.",
    embeddings: "embed_in",
    embedding_norm: "",
    final_norm: "final_layer_norm",
    head: "embed_out",
    layers: "layers",
    qkv: Qkv::ByKeyHead("attention.query_key_value"),
    output: "attention.dense",
    ..super::bloom::NAMES
};

fn read(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    let hidden_size = fields.size("hidden_size", 1 << 16)?;
    let heads = fields.size("num_attention_heads", 1 << 10)?;
    let layers = fields.size("num_hidden_layers", 1 << 10)?;
    let head_dim = fields.head_width(hidden_size, heads)?;
    let positions = fields.positions("max_position_embeddings", 2048)?;
    let mut block = plain_block(head_dim, fields.number_or("layer_norm_eps", 1e-5, 1e-12, 0.1)? as f32);
    block.norm = NormKind::Layer;
    if fields.flag_unless_missing("use_parallel_residual", true)? {
        block.mlp_reads = MlpReads::Input;
    }
    let bias = fields.flag_unless_missing("attention_bias", true)?;
    block.attention.qkv_bias = bias;
    block.attention.output_bias = bias;
    block.mlp = MlpDesign { activation: fields.activation("hidden_act", Activation::Gelu)?, gated: false, bias: true };
    let default = fields.number("rotary_pct", 0.0, 1.0)?.unwrap_or(0.25);
    let dim = fields.even("rotary_pct", (head_dim as f64 * rope::rotated_part(fields, default)?) as usize)?;
    let base = fields.number_or("rotary_emb_base", 10_000.0, 1.0, 1e15)?;
    let scaled = rope::base_and_scaling(fields, positions, base)?;
    Ok(ModelConfig {
        model_type: model_type.to_owned(),
        vocab_size: fields.size("vocab_size", 1 << 22)?,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", 1 << 20)?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: positions,
        block,
        layers: vec![LayerDesign { window: None, rotary: Some(0), experts: false }; layers],
        rotaries: vec![RotaryDesign::new(fields, scaled, dim)?],
        embedding: EmbeddingDesign::default(),
        head: HeadDesign { tied: fields.flag("tie_word_embeddings")?, ..HeadDesign::default() },
        initializer_range: fields.number("initializer_range", 0.0, 1e3)?.unwrap_or(0.02) as f32,
        bos_token_id: fields.token_ids("bos_token_id", Some(0))?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id", Some(2))?,
        quantisation: None,
        names: &NAMES,
    })
}
