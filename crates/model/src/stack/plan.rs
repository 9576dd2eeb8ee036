//! What the layout of a pass means for each of its blocks.

use petals_protocol::{Injection, PassLayout};

use crate::config::ModelConfig;
use crate::device::Device;
use crate::ops::attention::{Attention, Geometry, Heads, Segment};
use crate::ops::linear::Linear;
use crate::ops::rotary::{Angles, Rotary};
use crate::tensor::{DeviceFailure, Indices, Tensor, indices, rows};

/// The rows of a block that go on behind its keys and values: through queries, attention, MLP and residuals.
///
/// A replaced prefix is overwritten before the next block, and rows that nobody reads end with the last block: of those,
/// only keys and values are needed.
#[derive(Debug)]
pub(crate) enum ActiveRows {
    All,
    /// All but the first so many.
    Behind(usize),
    /// These, ascending.
    Picked(Indices),
}

impl ActiveRows {
    /// The active rows of a matrix over all rows.
    pub(super) fn gather(&self, all: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::All => all.clone(),
            Self::Behind(first) => rows(all, *first..all.dims()[0]),
            Self::Picked(picked) => all.clone().select(0, picked.clone()),
        }
    }

    /// Projects the active rows of a matrix over all rows.
    pub(super) fn project(&self, linear: &Linear, all: &mut Tensor<2>) -> Result<Tensor<2>, DeviceFailure> {
        match self {
            Self::All => linear.forward(all, 0),
            Self::Behind(first) => linear.forward(all, *first),
            Self::Picked(_) => linear.forward(&mut self.gather(all), 0),
        }
    }

    /// Adds the input gradient of a projection of the active rows to one over all rows.
    pub(super) fn project_back(
        &self,
        linear: &Linear,
        dy: &mut Tensor<2>,
        all: Tensor<2>,
    ) -> Result<Tensor<2>, DeviceFailure> {
        match self {
            Self::All => linear.backward_onto(dy, all, 0),
            Self::Behind(first) => linear.backward_onto(dy, all, *first),
            Self::Picked(_) => Ok(self.add(all, linear.backward(dy)?)),
        }
    }

    /// Adds a matrix over the active rows to one over all rows.
    pub(super) fn add(&self, all: Tensor<2>, active: Tensor<2>) -> Tensor<2> {
        match self {
            Self::All => all + active,
            Self::Behind(first) => {
                let [height, width] = all.dims();
                let sum = rows(&all, *first..height) + active;
                all.slice_assign([*first..height, 0..width], sum)
            }
            Self::Picked(picked) => all.select_assign(0, picked.clone(), active, burn::tensor::IndexingUpdateOp::Add),
        }
    }
}

/// What all blocks with the same active rows share.
#[derive(Debug)]
struct Activity {
    rows: ActiveRows,
    query_angles: Angles,
    attention: Attention,
}

/// A pass, ready for a device.
#[derive(Debug)]
pub(super) struct PassPlan {
    key_angles: Angles,
    usual: Activity,
    /// The last block's, if other.
    last: Option<Activity>,
    blocks: usize,
    heads: Heads,
    kernels: bool,
}

/// What one block needs to know of its pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockPlan<'p> {
    pub(super) step: StepPlan<'p>,
    pub(super) attention: &'p Attention,
}

/// What a block needs to know of its rows besides who attends to whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepPlan<'p> {
    pub(super) rows: &'p ActiveRows,
    pub(super) key_angles: &'p Angles,
    pub(super) query_angles: &'p Angles,
    pub(super) heads: Heads,
    pub(super) kernels: bool,
}

impl PassPlan {
    /// The layout must have been validated.
    pub(super) fn new(layout: &PassLayout, config: &ModelConfig, rotary: &Rotary, device: &Device) -> Self {
        let builder = Builder { layout, heads: config.heads(), rotary, device, positions: positions(layout) };
        Self {
            key_angles: rotary.angles(&builder.positions, device),
            usual: builder.usual(),
            last: layout.read_rows.as_deref().map(|read| builder.reading(read)),
            blocks: layout.span.len(),
            heads: builder.heads,
            kernels: device.has_kernels(),
        }
    }

    /// The plan of the span's block `number`, counted from 0.
    pub(super) fn block(&self, number: usize) -> BlockPlan<'_> {
        let last = self.last.as_ref().filter(|_| number + 1 == self.blocks);
        let Activity { rows, query_angles, attention } = last.unwrap_or(&self.usual);
        let (key_angles, heads, kernels) = (&self.key_angles, self.heads, self.kernels);
        BlockPlan { step: StepPlan { rows, key_angles, query_angles, heads, kernels }, attention }
    }
}

/// The position of every row: `0..m` for the prefix, and from `m` for each text.
fn positions(layout: &PassLayout) -> Vec<u32> {
    let m = layout.prefix_len;
    let texts = layout.lengths.iter().flat_map(|&length| m..m + length);
    (0..m).chain(texts).collect()
}

struct Builder<'a> {
    layout: &'a PassLayout,
    heads: Heads,
    rotary: &'a Rotary,
    device: &'a Device,
    positions: Vec<u32>,
}

impl Builder<'_> {
    /// Everything is active, or the text alone if the prefix is replaced.
    fn usual(&self) -> Activity {
        let m = self.layout.prefix_rows();
        let all = self.layout.injection != Injection::Replace;
        let first = if all { 0 } else { m };
        let active: Vec<usize> = (first..self.positions.len()).collect();
        let rows = if first == 0 { ActiveRows::All } else { ActiveRows::Behind(first) };
        self.activity(rows, &active)
    }

    /// Only the text rows `read` are active.
    fn reading(&self, read: &[u32]) -> Activity {
        let m = self.layout.prefix_rows();
        let active: Vec<usize> = read.iter().map(|&row| m + row as usize).collect();
        let picked: Vec<u32> = active.iter().map(|&row| row as u32).collect();
        self.activity(ActiveRows::Picked(indices(&picked, self.device.raw())), &active)
    }

    fn activity(&self, rows: ActiveRows, active: &[usize]) -> Activity {
        let positions: Vec<u32> = active.iter().map(|&row| self.positions[row]).collect();
        Activity {
            rows,
            query_angles: self.rotary.angles(&positions, self.device),
            attention: Attention::new(self.heads, geometry(self.layout, active), self.device),
        }
    }
}

/// Segments of the prefix, if any of its rows are active, and of every example; `active` ascending.
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
