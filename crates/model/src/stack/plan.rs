//! What the layout of a pass means for each of its blocks.

use std::ops::Range;

use petals_protocol::{Injection, PassLayout};

use super::rows::ActiveRows;
use crate::config::{LayerDesign, ModelConfig};
use crate::engine::Engine;
use crate::engine::rotary::{Place, Rotary};
use crate::engine::shapes::{Geometry, Heads, Segment};

/// What blocks of one stack do in different ways.
#[derive(Debug)]
pub(super) struct Variety {
    /// Rotary embeddings by their numbers.
    pub(super) rotaries: Vec<Rotary>,
    /// Windows, each once.
    windows: Vec<Option<usize>>,
}

impl Variety {
    pub(super) fn of(config: &ModelConfig, layers: &[LayerDesign]) -> Self {
        let mut windows = Vec::new();
        for layer in layers {
            if !windows.contains(&layer.window) {
                windows.push(layer.window);
            }
        }
        let rotary = |design| Rotary::new(design, config.head_dim);
        Self { rotaries: config.rotaries.iter().map(rotary).collect(), windows }
    }

    /// Something for each window.
    pub(super) fn for_each_window<T>(&self, make: impl Fn(Option<usize>) -> T) -> ByWindow<T> {
        ByWindow(self.windows.iter().map(|&window| (window, make(window))).collect())
    }

    /// The angles of rows at these places, for each rotary embedding.
    pub(super) fn angles<E: Engine>(&self, engine: &E, places: &[Place]) -> Vec<E::Angles> {
        self.rotaries.iter().map(|rotary| engine.angles(rotary, places)).collect()
    }
}

/// Something for each window.
#[derive(Debug)]
pub(super) struct ByWindow<T>(Vec<(Option<usize>, T)>);

impl<T> ByWindow<T> {
    /// What there is for layers with this window.
    ///
    /// # Panics
    /// If no layer has it.
    pub(super) fn of(&self, window: Option<usize>) -> &T {
        let found = self.0.iter().find(|(own, _)| *own == window);
        &found.expect("every layer's window is one of its stack's").1
    }
}

/// What all blocks with the same active rows share.
#[derive(Debug)]
struct Activity<E: Engine> {
    rows: ActiveRows<E>,
    query_angles: Vec<E::Angles>,
    attention: ByWindow<E::Attention>,
}

/// A pass, ready for a device.
#[derive(Debug)]
pub(super) struct PassPlan<E: Engine> {
    key_angles: Vec<E::Angles>,
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

impl<E: Engine> Clone for BlockPlan<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Engine> Copy for BlockPlan<'_, E> {}

/// What a block needs to know of its rows besides who attends to whom. Blocks that do not rotate have no angles.
#[derive(Debug)]
pub(super) struct StepPlan<'p, E: Engine> {
    pub(super) rows: &'p ActiveRows<E>,
    pub(super) key_angles: Option<&'p E::Angles>,
    pub(super) query_angles: Option<&'p E::Angles>,
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
    pub(super) fn new(layout: &PassLayout, config: &ModelConfig, variety: &Variety, engine: &E) -> Self {
        let longest = layout.lengths.iter().copied().max().unwrap_or_default() as usize + layout.prefix_rows();
        let long = config.is_long(longest);
        let places = positions(layout).into_iter().map(|position| Place { position, long }).collect();
        let builder = Builder { layout, heads: config.heads(), variety, engine, places };
        Self {
            key_angles: variety.angles(engine, &builder.places),
            usual: builder.usual(),
            last: layout.read_rows.as_deref().map(|read| builder.reading(read)),
            blocks: layout.span.len(),
            heads: builder.heads,
        }
    }

    /// The plan of the span's block `number`, counted from 0, which does `layer`.
    pub(super) fn block(&self, number: usize, layer: LayerDesign) -> BlockPlan<'_, E> {
        let last = self.last.as_ref().filter(|_| number + 1 == self.blocks);
        let Activity { rows, query_angles, attention } = last.unwrap_or(&self.usual);
        let step = StepPlan {
            rows,
            key_angles: layer.rotary.and_then(|rotary| self.key_angles.get(rotary)),
            query_angles: layer.rotary.and_then(|rotary| query_angles.get(rotary)),
            heads: self.heads,
        };
        BlockPlan { step, attention: attention.of(layer.window) }
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
    variety: &'a Variety,
    engine: &'a E,
    places: Vec<Place>,
}

impl<E: Engine> Builder<'_, E> {
    /// Everything is active, or the text alone if the prefix is replaced.
    fn usual(&self) -> Activity<E> {
        let replaced = self.layout.injection == Injection::Replace;
        let first = if replaced { self.layout.prefix_rows() } else { 0 };
        let active: Vec<usize> = (first..self.places.len()).collect();
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
        let places: Vec<Place> = active.iter().map(|&row| self.places[row]).collect();
        // Keys that do not go through the blocks lie in front of those that do.
        let front = self.layout.prefix_rows() - self.layout.hidden_prefix_rows();
        let among_keys: Vec<usize> = active.iter().map(|&row| front + row).collect();
        Activity {
            rows,
            query_angles: self.variety.angles(self.engine, &places),
            attention: self.variety.for_each_window(|window| {
                self.engine.attention(self.heads, geometry(self.layout, &among_keys, window))
            }),
        }
    }
}

/// Segments of the prefix, if any of its rows are active, and of every example; `active` ascending, as rows of keys. Rows of a prefix are
/// positions like any others, so a window leaves them behind.
fn geometry(layout: &PassLayout, active: &[usize], window: Option<usize>) -> Geometry {
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
        let end = |row: usize| prefix + row - keys.start + 1;
        visible.extend(active[taken..taken + count].iter().map(|&row| seen(end(row), window)));
        segments.push(Segment { queries: taken..taken + count, keys, prefix });
        taken += count;
    }
    Geometry { segments, visible }
}

/// What is seen of the positions before `end`.
fn seen(end: usize, window: Option<usize>) -> Range<u32> {
    window.map_or(0, |window| end.saturating_sub(window)) as u32..end as u32
}
