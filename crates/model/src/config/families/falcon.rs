//! Falcon (`modeling_falcon.py`), which is three families by one name: the block of 7B, attention and MLP side by side behind one norm, with
//! one key head; that of 40B, with key heads for groups and two norms, or one; and that of RW, one behind the other with ALiBi.

use super::{Family, plain_block};
use crate::config::names::{Names, Qkv};
use crate::config::{
    Activation, Alibi, ConfigError, EmbeddingDesign, Fields, HeadDesign, LayerDesign, MlpDesign, MlpReads, ModelConfig,
    NormKind, RotaryDesign, rope,
};

pub(super) const FAMILIES: &[Family] = &[Family { model_type: "falcon", read }];

const NAMES: Names = Names { embedding_norm: "", caches_repeated_keys: true, ..super::bloom::NAMES };
const ONE_KEY_HEAD: Names =
    Names { qkv: Qkv::Stacked("self_attention.query_key_value"), caches_repeated_keys: false, ..NAMES };
const TWO_NORMS: Names = Names { attention_norm: "ln_attn", mlp_norm: "ln_mlp", ..NAMES };

fn read(fields: &Fields<'_>, model_type: &'static str) -> Result<ModelConfig, ConfigError> {
    const NORMS: &str = "num_ln_in_parallel_attn";
    let hidden_size = fields.size("hidden_size", 1 << 16)?;
    let heads = fields.size(fields.either(&["num_attention_heads", "n_head"]), 1 << 10)?;
    let layers = fields.size(fields.either(&["num_hidden_layers", "n_layer"]), 1 << 10)?;
    let head_dim = fields.head_width(hidden_size, heads)?;
    let grouped = fields.flag("new_decoder_architecture")?;
    let parallel = fields.flag_unless_missing("parallel_attn", true)?;
    let one_key_head = !grouped && fields.flag_unless_missing("multi_query", true)?;
    if grouped && !parallel {
        let expected = "true, as `new_decoder_architecture` is";
        return Err(fields.invalid("parallel_attn", "false", expected));
    }
    let norms = fields.size_or(NORMS, if grouped { 2 } else { 1 }, 2)?;
    let (names, key_heads) = match (grouped, one_key_head) {
        (true, _) => {
            let key_heads = fields.size_or("num_kv_heads", heads, heads)?;
            (if norms == 2 { &TWO_NORMS } else { &NAMES }, key_heads)
        }
        (false, true) => (&ONE_KEY_HEAD, 1),
        (false, false) => (&NAMES, heads),
    };
    if !heads.is_multiple_of(key_heads) {
        let expected = format!("a divisor of num_attention_heads = {heads}");
        return Err(fields.invalid("num_kv_heads", key_heads.to_string(), expected));
    }
    let mut block = plain_block(head_dim, fields.number_or("layer_norm_epsilon", 1e-5, 1e-12, 0.1)? as f32);
    block.norm = NormKind::Layer;
    block.mlp_reads = match (parallel, norms) {
        (false, _) => MlpReads::Residual,
        (true, 2) if grouped => MlpReads::Input,
        (true, _) => MlpReads::AttentionInput,
    };
    let bias = fields.flag("bias")?;
    block.attention.qkv_bias = bias;
    block.attention.output_bias = bias;
    block.mlp = MlpDesign { activation: fields.activation("activation", Activation::Gelu)?, gated: false, bias };
    let alibi = fields.flag("alibi")?;
    block.attention.alibi = alibi.then_some(Alibi { factor: block.attention.scale, rounded: true });
    let positions = fields.positions("max_position_embeddings", 2048)?;
    let scaled = rope::base_and_scaling(fields, positions, 10_000.0)?;
    let rotary = RotaryDesign::new(fields, scaled, fields.even("num_attention_heads", head_dim)?)?;
    let layer = LayerDesign { window: None, rotary: (!alibi).then_some(0), experts: false };
    Ok(ModelConfig {
        model_type: model_type.to_owned(),
        vocab_size: fields.size("vocab_size", 1 << 22)?,
        hidden_size,
        intermediate_size: fields.size_or("ffn_hidden_size", 4 * hidden_size, 1 << 20)?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim,
        max_position_embeddings: positions,
        block,
        layers: vec![layer; layers],
        rotaries: if alibi { Vec::new() } else { vec![rotary] },
        embedding: EmbeddingDesign::default(),
        head: HeadDesign { tied: fields.flag_unless_missing("tie_word_embeddings", true)?, ..HeadDesign::default() },
        initializer_range: fields.number("initializer_range", 0.0, 1e3)?.unwrap_or(0.02) as f32,
        bos_token_id: fields.token_ids("bos_token_id", Some(11))?.first().copied(),
        eos_token_ids: fields.token_ids("eos_token_id", Some(11))?,
        quantisation: None,
        names,
    })
}
