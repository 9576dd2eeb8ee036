//! What the layout of a pass means for each of its blocks.

use petals_protocol::{Injection, PassLayout};

use super::rows::ActiveRows;
use crate::config::ModelConfig;
use crate::engine::Engine;
use crate::engine::rotary::Rotary;
use crate::engine::shapes::{Geometry, Heads, Segment};

/// What all blocks with the same active rows share.
#[derive(Debug)]
struct Activity<E: Engine> {
    rows: ActiveRows<E>,
    query_angles: E::Angles,
    attention: E::Attention,
}

/// A pass, ready for a device.
#[derive(Debug)]
pub(super) struct PassPlan<E: Engine> {
    key_angles: E::Angles,
    usual: Activity<E>,
    /// The last block's, if other.
    last: Option<Activity<E>>,
    blocks: usize,
    heads: Heads,
}

/// What one block needs to know of its pass.
#[derive(Debug)]
pub(super) struct BlockPlan<'p, E: Engine> {
    pub(super) step: StepPlan<'p, E>,
    pub(super) attention: &'p E::Attention,
}

/// What a block needs to know of its rows besides who attends to whom.
#[derive(Debug)]
pub(super) struct StepPlan<'p, E: Engine> {
    pub(super) rows: &'p ActiveRows<E>,
    pub(super) key_angles: &'p E::Angles,
    pub(super) query_angles: &'p E::Angles,
    pub(super) heads: Heads,
}

impl<E: Engine> Clone for StepPlan<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Engine> Copy for StepPlan<'_, E> {}

impl<E: Engine> PassPlan<E> {
    /// The layout must have been validated.
    pub(super) fn new(layout: &PassLayout, config: &ModelConfig, rotary: &Rotary, engine: &E) -> Self {
        let builder = Builder { layout, heads: config.heads(), rotary, engine, positions: positions(layout) };
        Self {
            key_angles: engine.angles(rotary, &builder.positions),
            usual: builder.usual(),
            last: layout.read_rows.as_deref().map(|read| builder.reading(read)),
            blocks: layout.span.len(),
            heads: builder.heads,
        }
    }

    /// The plan of the span's block `number`, counted from 0.
    pub(super) fn block(&self, number: usize) -> BlockPlan<'_, E> {
        let last = self.last.as_ref().filter(|_| number + 1 == self.blocks);
        let Activity { rows, query_angles, attention } = last.unwrap_or(&self.usual);
        let (key_angles, heads) = (&self.key_angles, self.heads);
        BlockPlan { step: StepPlan { rows, key_angles, query_angles, heads }, attention }
    }
}

/// The position of every row that goes through the blocks: `0..m` for the prefix, and from `m` for each text.
fn positions(layout: &PassLayout) -> Vec<u32> {
    let m = layout.prefix_len;
    let texts = layout.lengths.iter().flat_map(|&length| m..m + length);
    (0..layout.hidden_prefix_rows() as u32).chain(texts).collect()
}

struct Builder<'a, E> {
    layout: &'a PassLayout,
    heads: Heads,
    rotary: &'a Rotary,
    engine: &'a E,
    positions: Vec<u32>,
}

impl<E: Engine> Builder<'_, E> {
    /// Everything is active, or the text alone if the prefix is replaced.
    fn usual(&self) -> Activity<E> {
        let replaced = self.layout.injection == Injection::Replace;
        let first = if replaced { self.layout.prefix_rows() } else { 0 };
        let active: Vec<usize> = (first..self.positions.len()).collect();
        let rows = if first == 0 { ActiveRows::All } else { ActiveRows::Behind(first) };
        self.activity(rows, &active)
    }

    /// Only the text rows `read` are active.
    fn reading(&self, read: &[u32]) -> Activity<E> {
        let m = self.layout.hidden_prefix_rows();
        let active: Vec<usize> = read.iter().map(|&row| m + row as usize).collect();
        let picked: Vec<u32> = active.iter().map(|&row| row as u32).collect();
        self.activity(ActiveRows::Picked(self.engine.pick(&picked)), &active)
    }

    fn activity(&self, rows: ActiveRows<E>, active: &[usize]) -> Activity<E> {
        let positions: Vec<u32> = active.iter().map(|&row| self.positions[row]).collect();
        // Keys that do not go through the blocks lie in front of those that do.
        let front = self.layout.prefix_rows() - self.layout.hidden_prefix_rows();
        let among_keys: Vec<usize> = active.iter().map(|&row| front + row).collect();
        Activity {
            rows,
            query_angles: self.engine.angles(self.rotary, &positions),
            attention: self.engine.attention(self.heads, geometry(self.layout, &among_keys)),
        }
    }
}

/// Segments of the prefix, if any of its rows are active, and of every example; `active` ascending, as rows of keys.
fn geometry(layout: &PassLayout, active: &[usize]) -> Geometry {
    let m = layout.prefix_rows();
    let (mut segments, mut visible) = (Vec::new(), Vec::with_capacity(active.len()));
    let mut start = m;
    let texts = layout.lengths.iter().map(|&length| {
        start += length as usize;
        start - length as usize..start
    });
    let prefix = (m > 0 && active.first().is_some_and(|&row| row < m)).then_some((0..m, 0));
    let mut taken = 0;
    for (keys, prefix) in prefix.into_iter().chain(texts.map(|keys| (keys, m))) {
        let count = active[taken..].iter().take_while(|&&row| row < keys.end).count();
        visible.extend(active[taken..taken + count].iter().map(|&row| (row - keys.start + 1) as u32));
        segments.push(Segment { queries: taken..taken + count, keys, prefix });
        taken += count;
    }
    Geometry { segments, visible }
}
