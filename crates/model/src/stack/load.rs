//! From a checkpoint's tensors to blocks on a device.

use std::sync::Arc;

use petals_protocol::Span;

use super::BlockStack;
use super::block::{Block, HeadNorms};
use super::blocks::Blocks;
use crate::checkpoint::{Checkpoint, CheckpointError, decode, decode_row};
use crate::config::ModelConfig;
use crate::device::{Device, DeviceError, Dtype, Kind};
#[cfg(feature = "burn")]
use crate::engine::burn::Burn;
use crate::engine::host::Host;
use crate::engine::{Engine, Listed, OnEngine};

impl Checkpoint {
    /// Bytes that the weights of `span` take on a device, in `dtype` ([`Dtype::Auto`] counts as f32; see [`Dtype::on`]).
    pub fn span_bytes(&self, span: Span, dtype: Dtype) -> u64 {
        span.len() as u64 * self.config().block_weights().bytes(dtype)
    }

    /// Looks for every tensor of `span` and checks its shape and dtype, without reading it. Files that are not there are passed over: a
    /// machine needs those of its own blocks alone.
    ///
    /// # Errors
    /// The first one that [`Self::load_span`] would have.
    pub fn check_span(&self, span: Span) -> Result<(), CheckpointError> {
        let count = self.config().num_hidden_layers;
        if span.end() as usize > count {
            return Err(CheckpointError::Span { span, blocks: count });
        }
        let tensors = block_tensors(self.config());
        for number in span.blocks() {
            for (name, shape) in &tensors {
                match self.locate(&format!("model.layers.{number}.{name}"), shape) {
                    Err(CheckpointError::MissingShard { .. }) => {}
                    found => drop(found?),
                }
            }
        }
        Ok(())
    }

    /// Loads blocks onto a device.
    ///
    /// # Errors
    /// If the model has no such blocks, or a tensor is missing, misshapen or of a dtype that is not read.
    pub fn load_span(&self, span: Span, device: &Device, dtype: Dtype) -> Result<BlockStack, CheckpointError> {
        self.load(span, device, dtype, None)
    }

    /// Loads the blocks of `span` to where `loaded` has its own, in the same dtype. Those that both have are shared, not
    /// loaded again. `loaded` must come from this checkpoint.
    ///
    /// # Errors
    /// As [`Self::load_span`].
    pub fn load_span_beside(&self, span: Span, loaded: &BlockStack) -> Result<BlockStack, CheckpointError> {
        self.load(span, loaded.device(), loaded.dtype(), Some(loaded))
    }

    fn load(
        &self,
        span: Span,
        device: &Device,
        dtype: Dtype,
        loaded: Option<&BlockStack>,
    ) -> Result<BlockStack, CheckpointError> {
        let count = self.config().num_hidden_layers;
        if span.end() as usize > count {
            return Err(CheckpointError::Span { span, blocks: count });
        }
        let dtype = dtype.on(device);
        self.check_device(device, dtype)?;
        let blocks = match device.kind() {
            Kind::Host => OnEngine::Host(self.load_blocks(Host, span, dtype, loaded)?),
            #[cfg(feature = "burn")]
            _ => OnEngine::Burn(self.load_blocks(Burn::new(device), span, dtype, loaded)?),
        };
        Ok(BlockStack { config: self.config().clone(), span, device: device.clone(), dtype, blocks })
    }

    /// Refuses what the device would fail at later, without saying why.
    fn check_device(&self, device: &Device, dtype: Dtype) -> Result<(), DeviceError> {
        let named = device.to_string();
        #[cfg(feature = "burn")]
        if !matches!(device.kind(), Kind::Host) && !Burn::new(device).supports(dtype) {
            return Err(DeviceError::Dtype { device: named, dtype });
        }
        let bytes = self.config().largest_weight() * dtype.size();
        match device.largest_buffer().filter(|&limit| bytes > limit) {
            Some(limit) => Err(DeviceError::Buffer { device: named, bytes, limit }),
            None => Ok(()),
        }
    }

    fn load_blocks<E: Listed>(
        &self,
        engine: E,
        span: Span,
        dtype: Dtype,
        loaded: Option<&BlockStack>,
    ) -> Result<Blocks<E>, CheckpointError> {
        let loader = Loader { checkpoint: self, config: self.config(), engine: &engine, dtype };
        let loaded = loaded.and_then(|loaded| E::borrow(&loaded.blocks));
        let block = |number| match loaded.and_then(|loaded: &Blocks<E>| loaded.block(number)) {
            Some(block) => Ok(Arc::clone(block)),
            None => loader.block(number).map(Arc::new),
        };
        let blocks = span.blocks().map(block).collect::<Result<_, _>>()?;
        Ok(Blocks::new(engine, self.config().clone(), span, blocks))
    }
}

/// Names and shapes of the tensors of a block.
fn block_tensors(c: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, queries, keys, mlp) = (c.hidden_size, c.query_width(), c.key_width(), c.intermediate_size);
    let norms = [("input_layernorm", d, true), ("post_attention_layernorm", d, true)];
    let heads = [("self_attn.q_norm", c.head_dim, c.qk_norm), ("self_attn.k_norm", c.head_dim, c.qk_norm)];
    let linears = [
        ("self_attn.q_proj", [queries, d], c.qkv_bias),
        ("self_attn.k_proj", [keys, d], c.qkv_bias),
        ("self_attn.v_proj", [keys, d], c.qkv_bias),
        ("self_attn.o_proj", [d, queries], c.output_bias),
        ("mlp.gate_proj", [mlp, d], c.mlp_bias),
        ("mlp.up_proj", [mlp, d], c.mlp_bias),
        ("mlp.down_proj", [d, mlp], c.mlp_bias),
    ];
    let norm = |(name, width, there): (&str, usize, bool)| there.then(|| (format!("{name}.weight"), vec![width]));
    let weights = linears.iter().map(|(name, shape, _)| (format!("{name}.weight"), shape.to_vec()));
    let biases = linears.iter().filter(|(_, _, bias)| *bias);
    let biases = biases.map(|(name, shape, _)| (format!("{name}.bias"), vec![shape[0]]));
    norms.into_iter().chain(heads).filter_map(norm).chain(weights).chain(biases).collect()
}

/// Loads weights of one checkpoint to one engine.
struct Loader<'a, E> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    engine: &'a E,
    dtype: Dtype,
}

/// One projection of a fused weight: its name below the block, and its output width.
type Part<'p> = (&'p str, usize);

impl<E: Engine> Loader<'_, E> {
    /// The weights of block `number`.
    fn block(&self, number: u32) -> Result<Block<E>, CheckpointError> {
        let c = self.config;
        let (d, queries, keys, mlp) = (c.hidden_size, c.query_width(), c.key_width(), c.intermediate_size);
        let at = |name: &str| format!("model.layers.{number}.{name}");
        let head_norms = || -> Result<_, CheckpointError> {
            let queries = self.norm(&at("self_attn.q_norm.weight"), c.head_dim)?;
            Ok(HeadNorms { queries, keys: self.norm(&at("self_attn.k_norm.weight"), c.head_dim)? })
        };
        let kv = [("self_attn.k_proj", keys), ("self_attn.v_proj", keys)];
        Ok(Block {
            input_norm: self.norm(&at("input_layernorm.weight"), d)?,
            queries: self.linear(number, d, &[("self_attn.q_proj", queries)], c.qkv_bias)?,
            keys_values: self.linear(number, d, &kv, c.qkv_bias)?,
            head_norms: c.qk_norm.then(head_norms).transpose()?,
            output: self.linear(number, queries, &[("self_attn.o_proj", d)], c.output_bias)?,
            mlp_norm: self.norm(&at("post_attention_layernorm.weight"), d)?,
            gate_up: self.linear(number, d, &[("mlp.gate_proj", mlp), ("mlp.up_proj", mlp)], c.mlp_bias)?,
            down: self.linear(number, mlp, &[("mlp.down_proj", d)], c.mlp_bias)?,
        })
    }

    fn norm(&self, name: &str, width: usize) -> Result<E::Norm, CheckpointError> {
        Ok(self.engine.load_norm(self.vector(name, width)?, self.config.rms_norm_eps))
    }

    fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>, CheckpointError> {
        let (file, located) = self.checkpoint.locate(name, &[width])?;
        Ok(decode(&file, &located))
    }

    fn linear(&self, block: u32, input: usize, parts: &[Part<'_>], bias: bool) -> Result<E::Linear, CheckpointError> {
        let at = |part: &str, what: &str| format!("model.layers.{block}.{part}.{what}");
        let mut sources = Vec::with_capacity(parts.len());
        let mut biases = Vec::new();
        for &(part, output) in parts {
            let (file, located) = self.checkpoint.locate(&at(part, "weight"), &[output, input])?;
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
        sources.iter().for_each(|(file, located, _)| file.want(located));
        let linear = self.engine.load_linear([input, output], bias.then_some(biases), self.dtype, column);
        sources.iter().for_each(|(file, located, _)| file.release(located));
        Ok(linear)
    }
}
