//! The architecture of a model, read from Hugging Face's `config.json`.

use std::fmt::Write;

use serde_json::Value;

mod error;
mod family;
mod fields;
mod foreign;
mod json;
mod rope;
mod window;

pub use error::ConfigError;
use family::Family;
use fields::Fields;
pub use json::parse_json;
pub use rope::RopeScaling;

/// What the blocks, embeddings and head of a model look like.
///
/// The families differ in data only: which projections have biases, whether queries and keys are normed, how rotary
/// frequencies are scaled. Every number has been checked against a bound, so that products of two extents fit into
/// 64 bits and no file can ask for an absurd allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of the file: `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width `d` of the hidden states.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides [`Self::num_attention_heads`].
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Longest sequence, prompts included.
    pub max_position_embeddings: usize,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are changed for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normed per head before they are rotated (Qwen3).
    pub qk_norm: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f32,
    /// First token of a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads the text of a `config.json` as transformers does: keys that are missing have the value that the family's class
    /// gives them (only sizes must be there), and `null` counts as missing where transformers takes it so.
    ///
    /// Where transformers 4.57 and 5 read different things, the goldens of `tests/goldens/configs` say which is followed.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key at fault.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let parsed = parse_json(text).map_err(|error| ConfigError::Json(Some(error)))?;
        let Value::Object(map) = parsed else { return Err(ConfigError::Json(None)) };
        let fields = Fields::new(&map);
        let model_type = fields.text("model_type")?.ok_or_else(|| ConfigError::Missing("model_type".to_owned()))?;
        foreign::no_wrapper(&fields, model_type)?;
        let family = Family::of(model_type)?;
        foreign::not_quantised(&fields)?;
        fields.only_silu()?;
        let hidden_size = fields.size("hidden_size", 1 << 16)?;
        let num_attention_heads = fields.size("num_attention_heads", 1 << 10)?;
        let num_hidden_layers = fields.size("num_hidden_layers", 1 << 10)?;
        let max_position_embeddings = fields.positions("max_position_embeddings", family.max_positions)?;
        window::full_attention(&fields, family, num_hidden_layers, max_position_embeddings)?;
        let (rope_theta, rope_scaling) = rope::base_and_scaling(&fields, max_position_embeddings)?;
        Ok(Self {
            model_type: family.model_type.to_owned(),
            vocab_size: fields.size("vocab_size", 1 << 22)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", 1 << 20)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: fields.key_value_heads(family, num_attention_heads)?,
            head_dim: fields.head_dim(family, hidden_size, num_attention_heads)?,
            max_position_embeddings,
            rms_norm_eps: fields.number_or("rms_norm_eps", 1e-6, 1e-12, 0.1)? as f32,
            rope_theta,
            rope_scaling,
            qkv_bias: family.qkv_bias.resolve(fields.flag("attention_bias")?),
            output_bias: family.output_bias.resolve(fields.flag("attention_bias")?),
            mlp_bias: family.mlp_bias.resolve(fields.flag("mlp_bias")?),
            qk_norm: family.qk_norm,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            initializer_range: fields.number("initializer_range", 0.0, 1e3)?.unwrap_or(0.02) as f32,
            bos_token_id: fields.token_ids("bos_token_id", family.bos_token_id)?.first().copied(),
            eos_token_ids: fields.token_ids("eos_token_id", family.eos_token_id)?,
        })
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads, which is also that of all value heads.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The fields that decide what the model computes, one `key=value` line each, for the model's fingerprint.
    pub(crate) fn canonical(&self) -> String {
        let Self { model_type, vocab_size, hidden_size, intermediate_size, num_hidden_layers, .. } = self;
        let Self { num_attention_heads, num_key_value_heads, head_dim, rms_norm_eps, rope_theta, .. } = self;
        let Self { rope_scaling, qkv_bias, output_bias, mlp_bias, qk_norm, tie_word_embeddings, .. } = self;
        let mut text = format!("model_type={model_type}\nvocab_size={vocab_size}\nhidden_size={hidden_size}\n");
        let _ = writeln!(text, "intermediate_size={intermediate_size}\nnum_hidden_layers={num_hidden_layers}");
        let _ = writeln!(text, "heads={num_attention_heads}/{num_key_value_heads}x{head_dim}");
        let _ = writeln!(text, "rms_norm_eps={:08x}\nrope_theta={:016x}", rms_norm_eps.to_bits(), rope_theta.to_bits());
        let _ = writeln!(text, "rope_scaling={}", rope_scaling.canonical());
        let _ =
            writeln!(text, "bias={qkv_bias},{output_bias},{mlp_bias}\nqk_norm={qk_norm}\ntied={tie_word_embeddings}");
        text
    }
}

#[cfg(test)]
mod tests;
