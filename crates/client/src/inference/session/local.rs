//! The part of a session that this client computes: keys and values of its own blocks.
//!
//! What enters these blocks is kept, so their caches can be made again whenever they are ahead of the session, behind it or lost: after a step that failed
//! or was dropped half-way nothing has to be undone here.

use std::sync::Arc;

use petals_model::{BlockStack, CachedPrefix, CachedRows, KvCache, KvMeter, PassError, SpanTables};
use petals_protocol::{PassLayout, WeightChange};

use super::{InferenceSession, Inputs};
use crate::adapter::tables::PromptTables;
use crate::sequence::SequenceError;
use crate::servers::local::LocalBlocks;

/// Rows that go through the blocks at a time.
const CHUNK: usize = 512;

/// Keys and values of the local blocks.
#[derive(Debug)]
pub(super) struct LocalCaches {
    blocks: Arc<LocalBlocks>,
    /// What all sequences begin with, once it is there.
    begun: Option<Begun>,
    /// Of each sequence; none if they have to be made again.
    sequences: Vec<KvCache>,
}

/// A sequence without text.
#[derive(Debug, Clone)]
struct Begun {
    cache: KvCache,
    /// How weights are adapted, if they are.
    tables: Option<Arc<SpanTables>>,
    /// The prefix's hidden states behind the blocks, if it has any.
    prefix: Option<Vec<f32>>,
}

impl LocalCaches {
    pub(super) fn new(blocks: Arc<LocalBlocks>) -> Self {
        Self { blocks, begun: None, sequences: Vec::new() }
    }

    /// Sequence `i` goes on from what sequence `order[i]` was.
    pub(super) fn reorder(&mut self, order: &[u32]) {
        self.sequences = order.iter().filter_map(|&from| self.sequences.get(from as usize).cloned()).collect();
    }
}

impl InferenceSession {
    /// Runs the rows up to `target` that the local blocks have not seen, so that what enters the servers' blocks is known of all of them.
    pub(super) async fn enter(&mut self, target: &[usize]) -> Result<(), SequenceError> {
        let Some(local) = &mut self.local else { return Ok(()) };
        let blocks = local.blocks.clone();
        let (hidden, served) = (self.sequence.hidden(), self.sequence.served().start());
        if local.begun.is_none() {
            let (tables, longest) = (self.tables.clone(), self.limits.max_positions as usize);
            local.begun = Some(blocks.compute(move |stack| begin(stack, tables.as_deref(), longest)).await?);
        }
        let Some(begun) = local.begun.clone() else { return Ok(()) };
        let prefix_rows = begun.cache.len();
        let behind = self.inputs.entry(served).or_insert_with(|| Inputs { rows: Vec::new(), prefix: None });
        behind.rows.resize(target.len(), Vec::new());
        behind.prefix.clone_from(&begun.prefix);
        // What is dropped half-way is gone, and made again the next time.
        let mut caches = std::mem::take(&mut local.sequences);
        caches.resize(target.len(), begun.cache.clone());
        for ((cache, behind), &length) in caches.iter_mut().zip(&behind.rows).zip(&self.lengths) {
            let kept = prefix_rows + length.min(behind.len() / hidden.max(1));
            // What lies behind a window is not there to go back to.
            if cache.len() > kept && kept < cache.shortest() {
                *cache = begun.cache.clone();
            }
            cache.truncate(kept);
        }
        let entering = self.inputs.get(&self.sequence.blocks().start());
        let missing = caches.iter().zip(target).enumerate().map(|(number, (cache, &target))| {
            let rows = entering.and_then(|all| all.rows.get(number)).map_or(&[][..], Vec::as_slice);
            rows.get((cache.len() - prefix_rows) * hidden..target * hidden).unwrap_or_default().to_vec()
        });
        let missing: Vec<Vec<f32>> = missing.collect();
        let tables = begun.tables;
        let known: Vec<usize> = caches.iter().map(|cache| cache.len() - prefix_rows).collect();
        let work = move |stack: &BlockStack| {
            let outputs = run(stack, &mut caches, missing, tables.as_deref())?;
            Ok((caches, outputs))
        };
        let (caches, outputs) = blocks.compute(work).await?;
        if let Some(behind) = self.inputs.get_mut(&served) {
            for ((rows, known), output) in behind.rows.iter_mut().zip(known).zip(outputs) {
                // Of caches that were made again the first rows are known.
                rows.truncate(known * hidden);
                rows.extend(output);
            }
        }
        if let Some(local) = &mut self.local {
            local.sequences = caches;
        }
        Ok(())
    }
}

/// A sequence without text behind `tables`, in blocks of `stack`.
fn begin(stack: &BlockStack, tables: Option<&PromptTables>, longest: usize) -> Result<Begun, PassError> {
    let (span, mut prefix) = (stack.span(), None);
    let mut cache = stack.cache(span, longest, &KvMeter::default())?;
    let Some(tables) = tables else { return Ok(Begun { cache, tables: None, prefix }) };
    let shape = tables.shape();
    let layout = PassLayout {
        span,
        lengths: vec![1],
        prefix_len: shape.prefix_len as u32,
        injection: shape.injection,
        weights: shape.weights,
        read_rows: None,
    };
    let values = tables.tables_for(span).filter(|_| layout.has_tables());
    let uploaded = values.map(|values| stack.upload_tables(&layout, &values)).transpose()?;
    if layout.prefix_len > 0 {
        let hidden = layout.carries_prefix().then(|| tables.input().to_vec());
        let (rows, injection) = (layout.prefix_rows(), layout.injection);
        prefix = stack.begin(CachedPrefix { rows, injection, hidden, tables: uploaded.as_ref() }, &mut cache)?;
    }
    // A prefix is in the cache by now.
    let adapts = layout.weights != WeightChange::None;
    Ok(Begun { cache, tables: uploaded.filter(|_| adapts).map(Arc::new), prefix })
}

/// What leaves the blocks of the rows `missing` of each sequence.
fn run(
    stack: &BlockStack,
    caches: &mut [KvCache],
    missing: Vec<Vec<f32>>,
    tables: Option<&SpanTables>,
) -> Result<Vec<Vec<f32>>, PassError> {
    let hidden = stack.config().hidden_size.max(1);
    let most = stack.config().longest_step(stack.span()).clamp(1, CHUNK);
    let mut outputs = vec![Vec::new(); missing.len()];
    loop {
        let done = |number: usize| outputs.get(number).map_or(0, Vec::len);
        let next = missing.iter().enumerate().map(|(number, all)| {
            let rest = all.get(done(number)..).unwrap_or_default();
            rest.get(..rest.len().min(most * hidden)).unwrap_or_default()
        });
        let next: Vec<&[f32]> = next.collect();
        let rows: Vec<usize> = next.iter().map(|rows| rows.len() / hidden).collect();
        if rows.iter().all(|&rows| rows == 0) {
            return Ok(outputs);
        }
        let text = next.concat();
        let new = caches.iter_mut().zip(&rows).map(|(cache, &rows)| CachedRows { cache, rows, tables });
        let output = stack.step(text, &mut new.collect::<Vec<_>>(), None)?;
        let mut rest = output.as_slice();
        for (output, rows) in outputs.iter_mut().zip(rows) {
            let (own, others) = rest.split_at((rows * hidden).min(rest.len()));
            output.extend_from_slice(own);
            rest = others;
        }
    }
}
