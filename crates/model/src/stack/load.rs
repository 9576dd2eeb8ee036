//! From a checkpoint's tensors to blocks on a device.

use std::sync::Arc;

use petals_protocol::Span;

use super::block::{Block, BlockNetwork as Network, Experts, HeadNorms, Mlp, Shared};
use super::blocks::Blocks;
use super::{BlockStack, Division, Part as StackPart, Place};
use crate::checkpoint::blocks::{Bits, WeightColumns};
use crate::checkpoint::{Checkpoint, CheckpointError, Matrix};
use crate::config::{AttentionDesign, ExpertsDesign, HeadNorms as HeadNormsDesign, MlpDesign, ModelConfig, Part};
use crate::device::{Device, DeviceError, Dtype, Kind, KvDtype};
#[cfg(feature = "cuda")]
use crate::engine::Cuda;
#[cfg(feature = "vulkan")]
use crate::engine::Vulkan;
#[cfg(feature = "burn")]
use crate::engine::burn::Burn;
use crate::engine::host::Host;
use crate::engine::{Engine, Listed, OnEngine};
use columns::{Columns, Sources, Tensors};

mod columns;

impl Checkpoint {
    /// Bytes that the weights of `span` take on a device, in `dtype` ([`Dtype::Auto`] counts as f32; see [`Dtype::on`]).
    pub fn span_bytes(&self, span: Span, dtype: Dtype) -> u64 {
        self.config().span_weights(span, self.experts_stay_in_files()).bytes(dtype)
    }

    /// What [`Dtype::Auto`] stands for with this checkpoint on `device`; the others stand for themselves. A quantised checkpoint is not widened:
    /// what lies in blocks of four bits stays as it is, everything else becomes eight bits. The first block whose files are there speaks for all; if
    /// there is none, a quantised checkpoint counts as one of eight bits.
    ///
    /// # Errors
    /// If a matrix of that block is missing or misshapen.
    pub fn dtype_on(&self, dtype: Dtype, device: &Device) -> Result<Dtype, CheckpointError> {
        if dtype != Dtype::Auto {
            return Ok(dtype.on(device));
        }
        let block = |number| self.config().quantisable_parts(number).iter().map(|part| self.matrix_of(part)).collect();
        let here =
            |found: &Result<Vec<Matrix>, CheckpointError>| !matches!(found, Err(CheckpointError::MissingShard { .. }));
        let Some(matrices) = self.blocks().blocks().map(block).find(here).transpose()? else {
            return Ok(if self.config().quantisation.is_some() { Dtype::Int8 } else { dtype.on(device) });
        };
        if matrices.iter().all(Matrix::is_float) {
            return Ok(dtype.on(device));
        }
        let four = matrices.iter().all(|matrix| matches!(matrix.bits(), Some(Bits::Four(_) | Bits::Offset)));
        Ok(if four { Dtype::Int4 } else { Dtype::Int8 })
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
        for number in span.blocks() {
            for (name, width) in self.config().vectors_of(number) {
                unless_elsewhere(self.locate(&name, &[width]).map(drop))?;
            }
            for (part, bias) in self.config().tensors_of(number) {
                unless_elsewhere(self.matrix_of(&part).map(drop))?;
                if bias {
                    let (name, shape) = part.bias();
                    unless_elsewhere(self.locate_bias(&name, &shape).map(drop))?;
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
        let place = Place { device: device.clone(), dtype, kv_dtype: KvDtype::F32 };
        self.load_division(&Division::whole(span, place), None)
    }

    /// Loads the blocks of `span` to where `loaded` has its own, in the same dtypes (see [`Division::moved`]). Those that both have are
    /// shared, not loaded again. `loaded` must come from this checkpoint.
    ///
    /// # Errors
    /// As [`Self::load_span`].
    pub fn load_span_beside(&self, span: Span, loaded: &BlockStack) -> Result<BlockStack, CheckpointError> {
        self.load_division(&loaded.division().moved(span), Some(loaded))
    }

    /// Loads blocks onto the devices that a division names. What `loaded` has on the same device in the same dtype is shared, not loaded
    /// again; it must come from this checkpoint.
    ///
    /// # Errors
    /// As [`Self::load_span`].
    pub fn load_division(
        &self,
        division: &Division,
        loaded: Option<&BlockStack>,
    ) -> Result<BlockStack, CheckpointError> {
        let (span, count) = (division.span(), self.config().num_hidden_layers);
        if span.end() as usize > count {
            return Err(CheckpointError::Span { span, blocks: count });
        }
        self.supply(span)?;
        let parts = division.parts().iter().map(|(span, place)| self.load_part(*span, place, loaded));
        let (parts, experts_in_files) = (parts.collect::<Result<_, _>>()?, self.experts_stay_in_files());
        Ok(BlockStack { config: self.config().clone(), span, experts_in_files, parts })
    }

    fn load_part(&self, span: Span, place: &Place, loaded: Option<&BlockStack>) -> Result<StackPart, CheckpointError> {
        let device = &place.device;
        let dtype = self.dtype_on(place.dtype, device)?;
        let kv_dtype = place.kv_dtype.on(device, dtype)?;
        self.check_device(device, dtype)?;
        let place = Place { device: device.clone(), dtype, kv_dtype };
        let blocks = match device.kind() {
            Kind::Host => OnEngine::Host(self.load_blocks(Host, span, &place, loaded)?),
            #[cfg(feature = "burn")]
            Kind::Reference => OnEngine::Burn(self.load_blocks(Burn::new(), span, &place, loaded)?),
            #[cfg(feature = "cuda")]
            Kind::Cuda(index) => {
                let engine = Cuda::new(&cubecl::cuda::CudaDevice::new(*index));
                let engine = engine.with_large(|client, device, halves| {
                    let petals_kernels::Halves { x, weight, out, shape, back } = halves;
                    petals_products::on_cuda(client, device, petals_products::Product { x, weight, out, shape, back })
                });
                OnEngine::Cuda(self.load_blocks(engine, span, &place, loaded)?)
            }
            #[cfg(feature = "vulkan")]
            Kind::Vulkan(adapter) => {
                OnEngine::Vulkan(self.load_blocks(Vulkan::new(&adapter.raw()), span, &place, loaded)?)
            }
        };
        Ok(StackPart { span, place, blocks })
    }

    /// Refuses what the device would fail at later, without saying why.
    fn check_device(&self, device: &Device, dtype: Dtype) -> Result<(), DeviceError> {
        let bytes = dtype.bytes(self.config().largest_weight());
        match device.largest_buffer().filter(|&limit| bytes > limit) {
            Some(limit) => Err(DeviceError::Buffer { device: device.to_string(), bytes, limit }),
            None => Ok(()),
        }
    }

    fn load_blocks<E: Listed>(
        &self,
        engine: E,
        span: Span,
        place: &Place,
        loaded: Option<&BlockStack>,
    ) -> Result<Blocks<E>, CheckpointError> {
        let loader = Loader { checkpoint: self, config: self.config(), engine: &engine, dtype: place.dtype };
        let here = |part: &&StackPart| (&part.place.device, part.place.dtype) == (&place.device, place.dtype);
        let loaded: Vec<&StackPart> = loaded.iter().flat_map(|loaded| loaded.parts.iter().filter(here)).collect();
        let loaded: Vec<&Blocks<E>> = loaded.into_iter().filter_map(|part| E::borrow(&part.blocks)).collect();
        let block = |number| match loaded.iter().find_map(|loaded| loaded.block(number)) {
            Some(block) => Ok(Arc::clone(block)),
            None => {
                // First, so that whatever it reads from the disk is in the system's cache when the block is made of it.
                self.weights_of_block(number)?;
                loader.block(number).map(Arc::new)
            }
        };
        let blocks = span.blocks().map(block).collect::<Result<_, _>>()?;
        Ok(Blocks::new(engine, self.config().clone(), span, blocks))
    }
}

/// Passes over files that are not there.
fn unless_elsewhere(found: Result<(), CheckpointError>) -> Result<(), CheckpointError> {
    match found {
        Err(CheckpointError::MissingShard { .. }) => Ok(()),
        found => found,
    }
}

/// Loads weights of one checkpoint to one engine.
struct Loader<'a, E> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    engine: &'a E,
    dtype: Dtype,
}

impl<E: Engine> Loader<'_, E> {
    /// The weights of block `number`.
    fn block(&self, number: u32) -> Result<Block<E>, CheckpointError> {
        let (c, d) = (self.config, self.config.hidden_size);
        let (design, layer) = (c.block, c.layers[number as usize]);
        let AttentionDesign { qkv_bias, output_bias, head_norms, .. } = design.attention;
        let names = c.norms_of(number);
        let norm = |name: &Option<String>| name.as_ref().map(|name| self.norm(name, d)).transpose();
        let [queries, keys, values] = c.qkv_of(number);
        let heads = names.heads.as_ref().map(|[queries, keys]| -> Result<_, CheckpointError> {
            let (queries, keys) = (self.head_norm(queries)?, self.head_norm(keys)?);
            Ok(HeadNorms { queries, keys, whole: head_norms == HeadNormsDesign::Whole })
        });
        let sinks = c.sinks_of(number).map(|name| -> Result<_, CheckpointError> {
            Ok(self.engine.upload(self.vector(&name, c.num_attention_heads)?, c.num_attention_heads))
        });
        let (queries, keys_values) = (self.linear(&[queries], qkv_bias)?, self.linear(&[keys, values], qkv_bias)?);
        let (queries, keys_values) = self.engine.load_beside(queries, keys_values);
        Ok(Block {
            design,
            layer,
            attention_norm: norm(&names.attention)?,
            queries,
            keys_values,
            head_norms: heads.transpose()?,
            sinks: sinks.transpose()?,
            output: self.linear(&[c.output_of(number)], output_bias)?,
            attention_out_norm: norm(&names.attention_out)?,
            mlp_norm: norm(&names.mlp)?,
            network: match c.experts_of(layer) {
                None => Network::Dense(self.mlp(c.mlp_of(number), design.mlp)?),
                Some(experts) => Network::Experts(Box::new(self.experts(number, experts)?)),
            },
            mlp_out_norm: norm(&names.mlp_out)?,
        })
    }

    fn mlp(&self, (inside, down): (Vec<Part>, Part), design: MlpDesign) -> Result<Mlp<E>, CheckpointError> {
        Ok(Mlp { design, inside: self.linear(&inside, design.bias)?, down: self.linear(&[down], design.bias)? })
    }

    /// An expert whose weights stay in their files.
    fn expert_in_files(&self, (inside, down): (Vec<Part>, Part), design: MlpDesign) -> Result<Mlp<E>, CheckpointError> {
        let linear = |parts: &[Part]| -> Result<_, CheckpointError> {
            let Sources { tensors, shape, bias } = self.sources(parts, design.bias)?;
            Ok(self.engine.load_linear_in_place(shape, bias, self.dtype, move |n, values| tensors.column(n, values)))
        };
        Ok(Mlp { design, inside: linear(&inside)?, down: linear(&[down])? })
    }

    fn experts(&self, block: u32, design: ExpertsDesign) -> Result<Experts<E>, CheckpointError> {
        let (c, routers) = (self.config, self.dtype.of_routers());
        let mlp = MlpDesign { bias: design.bias, ..c.block.mlp };
        let parts = (0..design.count).map(|number| c.expert_of(block, number, design.width));
        let shared = design.shared.map(|shared| -> Result<_, CheckpointError> {
            let gate = shared.gated.then(|| self.linear_in(routers, &[c.shared_gate_of(block)], false)).transpose()?;
            Ok(Shared { mlp: self.mlp(c.shared_expert_of(block, shared.width), mlp)?, gate })
        });
        let experts = if self.checkpoint.experts_stay_in_files() {
            parts.map(|parts| self.expert_in_files(parts, mlp)).collect::<Result<_, _>>()?
        } else {
            let (insides, downs): (Vec<_>, Vec<_>) = parts.map(|(inside, down)| (inside, vec![down])).unzip();
            let both = self.linears(&insides, mlp.bias)?.into_iter().zip(self.linears(&downs, mlp.bias)?);
            both.map(|(inside, down)| Mlp { design: mlp, inside, down }).collect()
        };
        Ok(Experts {
            design,
            router: self.linear_in(routers, &[c.router_of(block, design.count)], design.bias)?,
            experts,
            shared: shared.transpose()?,
        })
    }

    fn norm(&self, name: &str, width: usize) -> Result<E::Norm, CheckpointError> {
        Ok(self.engine.load_norm(self.checkpoint.norm(name, width, self.config.block.norm)?))
    }

    /// A norm of queries or keys, which has no mean and no bias in any family.
    fn head_norm(&self, (name, width): &(String, usize)) -> Result<E::Norm, CheckpointError> {
        self.norm(name, *width)
    }

    fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.checkpoint.locate(name, &[width])?.values())
    }

    fn linear(&self, parts: &[Part], bias: bool) -> Result<E::Linear, CheckpointError> {
        self.linear_in(self.dtype, parts, bias)
    }

    fn linear_in(&self, dtype: Dtype, parts: &[Part], bias: bool) -> Result<E::Linear, CheckpointError> {
        let Sources { tensors, shape, bias } = self.sources(parts, bias)?;
        Ok(self.engine.load_linear(shape, bias, dtype, self.columns(dtype, parts, (&tensors, shape))))
    }

    /// Projections of one shape.
    fn linears(&self, all: &[Vec<Part>], bias: bool) -> Result<Vec<E::Linear>, CheckpointError> {
        let sources = all.iter().map(|parts| self.sources(parts, bias)).collect::<Result<Vec<_>, _>>()?;
        let Some(Sources { shape, tensors: first, .. }) = sources.first() else { return Ok(Vec::new()) };
        let alike = sources.iter().all(|other| other.shape == *shape && other.tensors.bits() == first.bits());
        let given = sources.iter().zip(all);
        let given = given.map(|(sources, parts)| {
            (sources.bias.clone(), self.columns(self.dtype, parts, (&sources.tensors, *shape)))
        });
        Ok(self.engine.load_linears(*shape, self.dtype, (all.len(), alike), given))
    }

    /// The columns of a projection in its files, or rounded on disk.
    fn columns<'a>(&self, dtype: Dtype, parts: &[Part], (tensors, shape): (&'a Tensors, [usize; 2])) -> Columns<'a> {
        Columns::wanted(tensors, |bits| self.checkpoint.rounded(&format!("{parts:?}"), shape, bits, tensors), dtype)
    }

    /// Where a projection is read from.
    fn sources(&self, parts: &[Part], bias: bool) -> Result<Sources, CheckpointError> {
        let mut tensors = Vec::with_capacity(parts.len());
        let mut biases = Vec::new();
        for part in parts {
            tensors.push((self.checkpoint.matrix_of(part)?, part.clone()));
            if bias {
                let (name, shape) = part.bias();
                let values = self.checkpoint.locate_bias(&name, &shape)?.values();
                biases.extend((0..part.output).map(|number| values[part.bias_of(number)]));
            }
        }
        let input = parts.first().map_or(0, |part| part.shape[1]);
        let output = parts.iter().map(|part| part.output).sum();
        Ok(Sources { tensors: Tensors(tensors), shape: [input, output], bias: bias.then_some(biases) })
    }
}
