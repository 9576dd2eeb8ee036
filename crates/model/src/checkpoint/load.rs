//! From a file's tensors to weights as the blocks use them.

use super::CheckpointError;
use super::file::{Located, TensorFile};
use super::index::TensorIndex;
use crate::config::ModelConfig;
use crate::device::{Device, Dtype};
use crate::ops::linear::Linear;
use crate::ops::rms_norm::RmsNorm;
use crate::stack::block::Block;

/// Loads weights of one checkpoint to one device.
pub(super) struct Loader<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) index: &'a TensorIndex,
    pub(super) device: &'a Device,
    pub(super) dtype: Dtype,
}

/// One projection of a fused weight: its name below the block, and its output width.
type Part<'p> = (&'p str, usize);

impl Loader<'_> {
    /// The weights of block `number`.
    pub(super) fn block(&self, number: u32) -> Result<Block, CheckpointError> {
        let c = self.config;
        let (d, queries, keys, mlp) = (c.hidden_size, c.query_width(), c.key_width(), c.intermediate_size);
        let at = |name: &str| format!("model.layers.{number}.{name}");
        let head_norm = |name: &str| c.qk_norm.then(|| self.norm(&at(name), c.head_dim)).transpose();
        let kv = [("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        Ok(Block {
            input_norm: self.norm(&at("input_layernorm.weight"), d)?,
            queries: self.linear(number, d, &[("self_attn.q_proj", queries)], c.qkv_bias)?,
            keys_values: self.linear(number, d, &kv, c.qkv_bias)?,
            query_norm: head_norm("self_attn.q_norm.weight")?,
            key_norm: head_norm("self_attn.k_norm.weight")?,
            output: self.linear(number, queries, &[("self_attn.o_proj", d)], c.output_bias)?,
            mlp_norm: self.norm(&at("post_attention_layernorm.weight"), d)?,
            gate_up: self.linear(number, d, &[("mlp.gate_proj", mlp), ("mlp.up_proj", mlp)], c.mlp_bias)?,
            down: self.linear(number, mlp, &[("mlp.down_proj", d)], c.mlp_bias)?,
        })
    }

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm, CheckpointError> {
        Ok(RmsNorm::new(self.vector(name, width)?, self.config.rms_norm_eps, self.device))
    }

    fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>, CheckpointError> {
        let (file, located) = self.index.locate(name, &[width])?;
        Ok(decode(&file, &located))
    }

    fn linear(&self, block: u32, input: usize, parts: &[Part<'_>], bias: bool) -> Result<Linear, CheckpointError> {
        let at = |part: &str, what: &str| format!("model.layers.{block}.{part}.{what}");
        let mut sources = Vec::with_capacity(parts.len());
        let mut biases = Vec::new();
        for &(part, output) in parts {
            let (file, located) = self.index.locate(&at(part, "weight"), &[output, input])?;
            sources.push((file, located, output));
            if bias {
                biases.extend(self.vector(&at(part, "bias"), output)?);
            }
        }
        let output = parts.iter().map(|(_, output)| output).sum();
        // Files hold `[output, input]`: the weight's columns are their rows.
        let column = |mut n: usize, values: &mut [f32]| {
            for (file, located, output) in &sources {
                if n < *output {
                    return decode_row(file, located, n, values);
                }
                n -= output;
            }
        };
        Ok(Linear::new([input, output], bias.then_some(biases), self.dtype, self.device, column))
    }
}

/// Row `row` of a matrix whose rows are as long as `values`, in f32.
pub(super) fn decode_row(file: &TensorFile, located: &Located, row: usize, values: &mut [f32]) {
    let length = values.len() * located.dtype.size();
    located.dtype.decode(&file.bytes(located)[row * length..(row + 1) * length], values);
}

/// The values of a tensor in f32.
pub(super) fn decode(file: &TensorFile, located: &Located) -> Vec<f32> {
    let bytes = file.bytes(located);
    let mut values = vec![0.0; bytes.len() / located.dtype.size()];
    located.dtype.decode(bytes, &mut values);
    values
}
