//! Steps of sequences that grow: inference with a cache of keys and values.

use std::ops::Range;

use petals_protocol::{Injection, Span};

use super::BlockStack;
use super::blocks::Blocks;
use super::pass::{PassError, finite};
use super::plan::StepPlan;
use super::rows::ActiveRows;
use crate::engine::shapes::Grown;
use crate::engine::{Cache, Engine, KvMeter, Listed, map_engine, on_engine};
use crate::kv::KvCache;

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
        let (count, heads) = (span.len(), self.config.heads());
        let storage = map_engine!(&self.blocks, blocks => blocks.engine.cache(count, heads, meter));
        Ok(KvCache::new(span, storage))
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
        let work = Work { span, text, read_rows, prefix: None };
        let output = on_engine!(&self.blocks, blocks => blocks.step(sequences, work, "the span's text output"))?;
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
        let replaced = injection == Injection::Replace;
        // A replaced prefix has no hidden states.
        let text = hidden.unwrap_or_else(|| vec![0.0; rows * d]);
        let (span, prefix) = (cache.span(), Some(Prefix { rows, prompts, replaced }));
        let work = Work { span, text, read_rows: None, prefix };
        let sequences = &mut [CachedRows { cache: &mut *cache, rows }];
        let output = on_engine!(&self.blocks, blocks => blocks.step(sequences, work, "the span's prefix output"))?;
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
}

/// What a step computes.
struct Work<'a> {
    span: Span,
    /// Rows of all sequences back to back.
    text: Vec<f32>,
    /// Rows that are read of the last block, ascending, or all.
    read_rows: Option<&'a [u32]>,
    prefix: Option<Prefix>,
}

/// The prompts of a prefix that a sequence begins with.
struct Prefix {
    rows: usize,
    prompts: Option<Vec<f32>>,
    replaced: bool,
}

/// How a sequence grows: `rows` behind `len`.
#[derive(Debug, Clone, Copy)]
struct Growth {
    len: usize,
    rows: usize,
}

impl<E: Listed> Blocks<E> {
    fn step(
        &self,
        sequences: &mut [CachedRows<'_>],
        work: Work<'_>,
        what: &'static str,
    ) -> Result<Vec<f32>, PassError> {
        let grown: Vec<Growth> = sequences.iter().map(|s| Growth { len: s.cache.len(), rows: s.rows }).collect();
        let caches = sequences.iter_mut().map(|sequence| E::borrow_mut(sequence.cache.storage()));
        let mut caches = caches.collect::<Option<Vec<_>>>().ok_or(PassError::ForeignCache)?;
        for (cache, growth) in caches.iter_mut().zip(&grown) {
            cache.grow(growth.len, growth.rows);
        }
        let output = self.engine.install(|| self.engine.download(self.run_step(&grown, &mut caches, work)));
        let output = output.map_err(PassError::from).and_then(|output| finite(what, &output).map(|()| output));
        if output.is_err() {
            caches.iter_mut().zip(&grown).for_each(|(cache, growth)| cache.abandon(growth.len));
        }
        output
    }
}

impl<E: Engine> Blocks<E> {
    fn run_step(&self, sequences: &[Growth], caches: &mut [&mut E::Cache], work: Work<'_>) -> E::Rows {
        let Work { span, text, read_rows, prefix } = work;
        let (engine, heads) = (&self.engine, self.config.heads());
        let mut x = engine.upload(text, self.config.hidden_size);
        let position = |growth: &Growth| (growth.len..growth.len + growth.rows).map(|position| position as u32);
        let positions: Vec<u32> = sequences.iter().flat_map(position).collect();
        let key_angles = engine.angles(&self.rotary, &positions);
        let all = Reading::<E> {
            rows: ActiveRows::All,
            angles: None,
            attention: engine.cached_attention(heads, grown(sequences, None)),
        };
        let last = read_rows.map(|read| {
            let positions: Vec<u32> = read.iter().map(|&row| positions[row as usize]).collect();
            Reading::<E> {
                rows: ActiveRows::Picked(engine.pick(read)),
                angles: Some(engine.angles(&self.rotary, &positions)),
                attention: engine.cached_attention(heads, grown(sequences, Some(read))),
            }
        });
        let replaced = prefix.as_ref().is_some_and(|prefix| prefix.replaced);
        let prompts = prefix.and_then(|prefix| Some(self.upload_tables(prefix.prompts?, prefix.rows)));
        for (number, block) in self.of(span).iter().enumerate() {
            let Reading { rows, angles, attention } =
                last.as_ref().filter(|_| number + 1 == span.len()).unwrap_or(&all);
            let query_angles = angles.as_ref().unwrap_or(&key_angles);
            let plan = StepPlan { rows, key_angles: &key_angles, query_angles, heads };
            let prompts = prompts.as_ref().map(|prompts| &prompts[number]);
            if let (Some(prompts), true) = (prompts, replaced) {
                write(number, &block.keys_and_values(engine, prompts, plan), sequences, caches);
                continue;
            }
            if let Some(prompts) = prompts {
                x = engine.add(x, prompts, 0);
            }
            x = block.step(engine, x, plan, |q, kv| {
                write(number, kv, sequences, caches);
                engine.attend_cached(attention, number, q, caches)
            });
        }
        x
    }
}

/// What is computed behind keys and values.
struct Reading<E: Engine> {
    rows: ActiveRows<E>,
    /// Of the queries, if they are not those of the keys.
    angles: Option<E::Angles>,
    attention: E::CachedAttention,
}

/// Keeps new keys and values.
fn write<C: Cache>(block: usize, kv: &C::Rows, sequences: &[Growth], caches: &mut [&mut C]) {
    let mut first = 0;
    for (cache, growth) in caches.iter_mut().zip(sequences) {
        cache.write(block, growth.len, kv, first..first + growth.rows);
        first += growth.rows;
    }
}

/// For each sequence its rows among the queries, and how many positions each of them sees.
fn grown(sequences: &[Growth], read_rows: Option<&[u32]>) -> Vec<Grown> {
    let (mut first, mut taken) = (0, 0);
    let of_sequence = |growth: &Growth| {
        let own: Range<usize> = first..first + growth.rows;
        let seen = |row: usize| growth.len + row - own.start + 1;
        let visible: Vec<usize> = match read_rows {
            None => own.clone().map(seen).collect(),
            Some(read) => {
                read[taken..].iter().map(|&row| row as usize).take_while(|row| *row < own.end).map(seen).collect()
            }
        };
        let queries = taken..taken + visible.len();
        (first, taken) = (own.end, queries.end);
        Grown { queries, visible }
    };
    sequences.iter().map(of_sequence).collect()
}

#[cfg(test)]
mod tests;
