//! The architecture of a model, read from Hugging Face's `config.json`.
//!
//! A model is sizes and a design ([`BlockDesign`]); what families do differently is data there. A family is a file in `families/`: from
//! the keys of its configuration to a [`ModelConfig`], and the names of its tensors.

use std::fmt::Write;

use serde_json::Value;

mod design;
mod error;
mod families;
mod fields;
mod foreign;
mod json;
mod names;
mod projections;
mod quantisation;
mod rope;
mod window;

pub use design::{
    Activation, Alibi, AttentionDesign, BlockDesign, EmbeddingDesign, ExpertWeights, ExpertsDesign, HeadDesign,
    HeadNorms, LayerDesign, MlpDesign, MlpReads, NormKind, NormPlaces, SharedExpert,
};
pub use error::ConfigError;
use fields::Fields;
pub use json::parse_json;
pub(crate) use names::{GateUp, Names, Part, Qkv};
pub use projections::{Projection, Projections};
pub use quantisation::Quantisation;
pub use rope::{RopeScaling, RotaryDesign};

/// What the blocks, embeddings and head of a model look like.
///
/// Every number has been checked against a bound, so that products of two extents fit into
/// 64 bits and no file can ask for an absurd allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of the file, one of [`Self::families`].
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
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence, prompts included.
    pub max_position_embeddings: usize,
    /// What every block computes.
    pub block: BlockDesign,
    /// What each block does in its own way.
    pub layers: Vec<LayerDesign>,
    /// The rotary embeddings that layers name; may be empty.
    pub rotaries: Vec<RotaryDesign>,
    /// What happens to embeddings.
    pub embedding: EmbeddingDesign,
    /// What is behind the last block.
    pub head: HeadDesign,
    /// Standard deviation of freshly made weights.
    pub initializer_range: f32,
    /// First token of a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// How the weights are quantised, if they are.
    pub quantisation: Option<Quantisation>,
    pub(crate) names: &'static Names,
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
        let text = foreign::text_part(&map)?;
        let fields = Fields::new(&text);
        let model_type = fields.text("model_type")?.ok_or_else(|| ConfigError::Missing("model_type".to_owned()))?;
        let family = families::of(model_type)?;
        let of_wrapper = Quantisation::read(&Fields::new(&map))?;
        let quantisation = Quantisation::read(&fields)?.or(of_wrapper);
        Ok(Self { quantisation, ..(family.read)(&fields, family.model_type)? })
    }

    /// The `model_type`s that are read.
    pub fn families() -> impl Iterator<Item = &'static str> {
        families::all().map(|family| family.model_type)
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads, which is also that of all value heads.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Whether other rotary frequencies hold for texts of up to `positions` positions than for short ones.
    pub fn is_long(&self, positions: usize) -> bool {
        self.rotaries.iter().filter_map(RotaryDesign::long_from).any(|from| positions > from)
    }

    /// The fields that decide what the model computes, one `key=value` line each, for the model's fingerprint.
    pub(crate) fn canonical(&self) -> String {
        let Self { model_type, vocab_size, hidden_size, intermediate_size, num_hidden_layers, .. } = self;
        let Self { num_attention_heads, num_key_value_heads, head_dim, block, head, .. } = self;
        let AttentionDesign { qkv_bias, output_bias, .. } = block.attention;
        let (mlp_bias, tied) = (block.mlp.bias, head.tied);
        let mut text = format!("model_type={model_type}\nvocab_size={vocab_size}\nhidden_size={hidden_size}\n");
        let _ = writeln!(text, "intermediate_size={intermediate_size}\nnum_hidden_layers={num_hidden_layers}");
        let _ = writeln!(text, "heads={num_attention_heads}/{num_key_value_heads}x{head_dim}");
        let _ = writeln!(text, "rms_norm_eps={:08x}", block.norm_eps.to_bits());
        match self.rotaries.first() {
            Some(rotary) => {
                let _ = writeln!(text, "rope_theta={:016x}", rotary.theta.to_bits());
                let _ = writeln!(text, "rope_scaling={}", rotary.scaling.canonical());
            }
            None => text.push_str("rope_theta=none\n"),
        }
        let qk_norm = block.attention.head_norms == HeadNorms::PerHead;
        let _ = writeln!(text, "bias={qkv_bias},{output_bias},{mlp_bias}\nqk_norm={qk_norm}\ntied={tied}");
        if !self.is_plain() {
            // Whatever is not a plain Llama: the derived form, in which the names of fields and variants are part of the fingerprint.
            let Self { layers, rotaries, embedding, .. } = self;
            let _ = writeln!(text, "block={block:?}\nlayers={layers:?}\nrotaries={rotaries:?}");
            let _ = writeln!(text, "embedding={embedding:?}\nhead={head:?}");
        }
        text
    }

    /// Whether there is nothing in the design that the first lines of [`Self::canonical`] do not say.
    fn is_plain(&self) -> bool {
        let attention = self.block.attention;
        let plain = families::plain_block(self.head_dim, self.block.norm_eps);
        let layer = LayerDesign { window: None, rotary: Some(0), experts: false };
        let same = BlockDesign {
            attention: AttentionDesign {
                qkv_bias: attention.qkv_bias,
                output_bias: attention.output_bias,
                head_norms: match attention.head_norms {
                    HeadNorms::PerHead => HeadNorms::PerHead,
                    _ => HeadNorms::None,
                },
                ..plain.attention
            },
            mlp: MlpDesign { bias: self.block.mlp.bias, ..plain.mlp },
            ..plain
        };
        let whole = |rotary: &RotaryDesign| rotary.dim == self.head_dim && !rotary.interleaved;
        self.block == same
            && self.layers.iter().all(|own| *own == layer)
            && self.rotaries.len() == 1
            && self.rotaries.iter().all(whole)
            && self.embedding == EmbeddingDesign::default()
            && self.head == HeadDesign { tied: self.head.tied, ..HeadDesign::default() }
    }
}

#[cfg(test)]
mod tests;
