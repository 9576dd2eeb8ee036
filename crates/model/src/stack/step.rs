//! Steps of sequences that grow: inference with a cache of keys and values.

use petals_protocol::{Injection, Span};

use super::pass::{PassError, finite};
use super::plan::{ActiveRows, StepPlan};
use super::{BlockStack, from_rows};
use crate::kernels::cached_attention::{self, Grown};
use crate::kv::{KvCache, KvMeter};
use crate::ops::attention::{Attention, Geometry, Segment};
use crate::tensor::{DeviceFailure, Tensor, from_vec, indices, into_vec, read};

/// A sequence and how many rows a step adds to it.
#[derive(Debug)]
pub struct CachedRows<'a> {
    /// What the rows attend to besides themselves, and where their keys and values go.
    pub cache: &'a mut KvCache,
    /// New rows; may be 0.
    pub rows: usize,
}

/// What a sequence begins with. `m` rows, `n` blocks of the cache's span, `d` hidden size; all row-major.
#[derive(Debug)]
pub struct CachedPrefix {
    /// Number of rows `m`, at least 1.
    pub rows: usize,
    /// What prompts do.
    pub injection: Injection,
    /// Hidden states `[m, d]`, exactly if the injection is not [`Injection::Replace`].
    pub hidden: Option<Vec<f32>>,
    /// Prompts of each block `[n, m, d]`, exactly if the injection is not [`Injection::None`].
    pub prompts: Option<Vec<f32>>,
}

impl BlockStack {
    /// An empty cache for `span`, any part of this stack's.
    ///
    /// # Errors
    /// [`PassError::Span`] if the span is not here.
    pub fn cache(&self, span: Span, meter: &KvMeter) -> Result<KvCache, PassError> {
        if !self.span.covers(span) {
            return Err(PassError::Span { asked: span, held: self.span });
        }
        Ok(KvCache::new(span, self.config.heads(), &self.device, meter))
    }

    /// Runs the new rows of several sequences, which may be of different sessions, through the span of their caches as one
    /// batch. `text` has the rows of all sequences back to back, `[T, d]`; the answer the rows named by `read_rows`
    /// (ascending), or all.
    ///
    /// If this fails, no sequence has changed.
    ///
    /// # Errors
    /// [`PassError`] if the caches are of different spans, a sequence would become too long, a size is wrong, the device fails, or
    /// an output is not finite.
    pub fn step(
        &self,
        text: Vec<f32>,
        sequences: &mut [CachedRows<'_>],
        read_rows: Option<&[u32]>,
    ) -> Result<Vec<f32>, PassError> {
        let total: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let d = self.config.hidden_size;
        if text.len() != total * d {
            return Err(PassError::Size { what: "the text", got: text.len(), expected: total * d });
        }
        if read_rows.is_some_and(|read| {
            !read.is_sorted_by(|a, b| a < b) || read.last().is_some_and(|&row| row as usize >= total)
        }) {
            return Err(PassError::Rows);
        }
        let Some(span) = sequences.first().map(|sequence| sequence.cache.span()) else { return Ok(Vec::new()) };
        for sequence in sequences.iter() {
            self.check_cache(sequence.cache, span, sequence.rows)?;
        }
        if total == 0 {
            return Ok(Vec::new());
        }
        let output = self.device.install(|| {
            let x = from_rows(text, d, &self.device);
            into_vec(self.run_step(x, sequences, read_rows, None)?)
        })?;
        finite("the span's text output", &output)?;
        for CachedRows { cache, rows } in sequences {
            cache.commit(*rows);
        }
        Ok(output)
    }

    /// Computes the prefix of a sequence into its empty cache. Returns the prefix's hidden states behind the span, `[m, d]`, unless
    /// it is replaced in every block.
    ///
    /// # Errors
    /// [`PassError`] if the cache is not empty or of blocks that are not here, an input is missing, superfluous or of the wrong size, the
    /// device fails, or an output is not finite. The cache then stays empty.
    pub fn begin(&self, prefix: CachedPrefix, cache: &mut KvCache) -> Result<Option<Vec<f32>>, PassError> {
        let CachedPrefix { rows, injection, hidden, prompts } = prefix;
        let (d, blocks) = (self.config.hidden_size, cache.span().len());
        self.check_cache(cache, cache.span(), rows)?;
        if !cache.is_empty() || rows == 0 {
            return Err(PassError::Rows);
        }
        super::pass::optional("the prefix", hidden.as_deref(), injection != Injection::Replace, rows * d)?;
        super::pass::optional("the prompts", prompts.as_deref(), injection != Injection::None, blocks * rows * d)?;
        let prompts: Option<Vec<Tensor<2>>> = prompts.map(|values| {
            values.chunks_exact(rows * d).map(|table| from_rows(table.to_vec(), d, &self.device)).collect()
        });
        let replaced = injection == Injection::Replace;
        let output = self.device.install(|| {
            let x = match hidden {
                Some(hidden) => from_rows(hidden, d, &self.device),
                None => from_rows(vec![0.0; rows * d], d, &self.device),
            };
            let mut sequences = [CachedRows { cache: &mut *cache, rows }];
            let prefix = Prefix { prompts: prompts.as_deref().unwrap_or_default(), replaced };
            into_vec(self.run_step(x, &mut sequences, None, Some(prefix))?)
        })?;
        finite("the span's prefix output", &output)?;
        cache.commit(rows);
        Ok((!replaced).then_some(output))
    }

    fn check_cache(&self, cache: &KvCache, span: Span, rows: usize) -> Result<(), PassError> {
        if cache.span() != span || !self.span.covers(span) {
            return Err(PassError::Span { asked: cache.span(), held: self.span });
        }
        let (length, max) = (cache.len() + rows, self.config.max_position_embeddings);
        if length > max { Err(PassError::TooLong { length, max }) } else { Ok(()) }
    }

    fn run_step(
        &self,
        mut x: Tensor<2>,
        sequences: &mut [CachedRows<'_>],
        read_rows: Option<&[u32]>,
        prefix: Option<Prefix<'_>>,
    ) -> Result<Tensor<2>, DeviceFailure> {
        let Some(span) = sequences.first().map(|sequence| sequence.cache.span()) else { return Ok(x) };
        let positions: Vec<u32> = sequences
            .iter()
            .flat_map(|sequence| (0..sequence.rows).map(|row| (sequence.cache.len() + row) as u32))
            .collect();
        for CachedRows { cache, rows } in sequences.iter_mut() {
            cache.grow(*rows);
        }
        let key_angles = self.rotary.angles(&positions, &self.device);
        let read_positions: Option<Vec<u32>> =
            read_rows.map(|read| read.iter().map(|&row| positions[row as usize]).collect());
        let query_angles = read_positions.as_ref().map(|read| self.rotary.angles(read, &self.device));
        let picked = read_rows.map(|read| ActiveRows::Picked(indices(read, self.device.raw())));
        let last = span.len() - 1;
        for (number, block) in self.blocks_of(span).iter().enumerate() {
            let reading = read_rows.filter(|_| number == last);
            let plan = StepPlan {
                rows: picked.as_ref().filter(|_| reading.is_some()).unwrap_or(&ActiveRows::All),
                key_angles: &key_angles,
                query_angles: query_angles.as_ref().filter(|_| reading.is_some()).unwrap_or(&key_angles),
                heads: self.config.heads(),
                kernels: self.device.has_kernels(),
            };
            let attend = |q: &mut Tensor<2>, kv: &mut Tensor<2>| self.attend(number, q, kv, sequences, reading);
            x = match &prefix {
                None => block.step(x, plan, attend)?,
                Some(Prefix { prompts, replaced: false }) => {
                    let injected = prompts.get(number).map_or(x.clone(), |prompts| x + prompts.clone());
                    block.step(injected, plan, attend)?
                }
                Some(Prefix { prompts, replaced: true }) => {
                    let mut kv = block.keys_and_values(prompts[number].clone(), plan)?;
                    write(number, &mut kv, sequences, &self.device)?;
                    x
                }
            };
        }
        Ok(x)
    }

    /// Keeps the new keys and values, and lets the queries attend.
    fn attend(
        &self,
        block: usize,
        q: &mut Tensor<2>,
        kv: &mut Tensor<2>,
        sequences: &mut [CachedRows<'_>],
        read_rows: Option<&[u32]>,
    ) -> Result<Tensor<2>, DeviceFailure> {
        write(block, kv, sequences, &self.device)?;
        let (heads, shape, device) = (self.config.heads(), q.dims(), q.device());
        if !self.device.has_kernels() {
            let keys: Vec<Tensor<2>> = sequences.iter().filter_map(|s| s.cache.on_device(block)).collect();
            let attention = Attention::new(heads, geometry(sequences, read_rows), &self.device);
            return attention.forward(q, &mut Tensor::cat(keys, 0));
        }
        let mut grown = Vec::with_capacity(sequences.len());
        for (queries, visible, sequence) in queries(sequences, read_rows) {
            grown.push(Grown { pages: sequence.cache.pages(block), queries, visible });
        }
        let output = read(q, |q| cached_attention::forward(heads, &grown, q))?;
        Ok(from_vec(output, shape, &device))
    }
}

/// Prompts of a sequence's first rows.
struct Prefix<'a> {
    /// One per block, or none.
    prompts: &'a [Tensor<2>],
    replaced: bool,
}

fn write(
    block: usize,
    kv: &mut Tensor<2>,
    sequences: &mut [CachedRows<'_>],
    device: &crate::device::Device,
) -> Result<(), DeviceFailure> {
    let [_, width] = kv.dims();
    read(kv, |kv| {
        let mut first = 0;
        for CachedRows { cache, rows } in sequences {
            cache.write(block, &kv[first * width..(first + *rows) * width], device);
            first += *rows;
        }
    })
}

/// For each sequence: its rows among the queries, how many positions each of them sees, and itself.
fn queries<'a, 's>(
    sequences: &'a [CachedRows<'s>],
    read_rows: Option<&'a [u32]>,
) -> impl Iterator<Item = (std::ops::Range<usize>, Vec<usize>, &'a CachedRows<'s>)> {
    let (mut first, mut taken) = (0, 0);
    sequences.iter().map(move |sequence| {
        let own = first..first + sequence.rows;
        let seen = |row: usize| sequence.cache.len() + row - own.start + 1;
        let visible: Vec<usize> = match read_rows {
            None => own.clone().map(seen).collect(),
            Some(read) => {
                read[taken..].iter().map(|&row| row as usize).take_while(|row| *row < own.end).map(seen).collect()
            }
        };
        let queries = taken..taken + visible.len();
        (first, taken) = (own.end, queries.end);
        (queries, visible, sequence)
    })
}

/// The same as segments over the concatenated caches.
fn geometry(sequences: &[CachedRows<'_>], read_rows: Option<&[u32]>) -> Geometry {
    let (mut segments, mut all_visible, mut start) = (Vec::new(), Vec::new(), 0);
    for (queries, visible, sequence) in queries(sequences, read_rows) {
        let keys = start..start + sequence.cache.len() + sequence.rows;
        start = keys.end;
        all_visible.extend(visible.into_iter().map(|seen| seen as u32));
        segments.push(Segment { queries, keys, prefix: 0 });
    }
    Geometry { segments, visible: all_visible }
}

#[cfg(test)]
mod tests;
