//! What a pass computes, and what it leaves behind.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use petals_model::{
    BlockStack, ForwardOutput, ForwardPass, Keep, Manner, OnePlace, OutputGrads, PassError, Pause, Stash, StepSize,
};
use petals_protocol::{BlockPasses, PassLayout, Refusal, Span, StashId, StashLevel};

use super::ExecutorConfig;
use super::pass::{Inputs, Output, Pass, Work};
use super::stash::{Size, Sizes, StashPolicy, StashStore};
use crate::lock::lock;
use crate::machine::rooms::Rooms;

/// The blocks, and what a pass may take.
pub(crate) struct Compute<'a> {
    pub(crate) blocks: Arc<BlockStack>,
    /// What a budget has on each of their devices.
    pub(crate) rooms: Rooms,
    /// Bytes that one pass may take beside weights and stashes.
    pub(crate) pass_bytes: u64,
    pub(crate) policy: StashPolicy,
    /// What is done between blocks.
    pub(crate) pause: Pause<'a>,
    /// Blocks that a device may have before it at a time.
    pub(crate) ahead: usize,
}

impl<'a> Compute<'a> {
    /// On `blocks`, within what `config` allows; between two blocks there is a `pause`.
    pub(crate) fn new(blocks: Arc<BlockStack>, config: &ExecutorConfig, pause: Pause<'a>) -> Self {
        let ExecutorConfig { pass_bytes, stash_policy: policy, .. } = *config;
        Self { blocks, rooms: config.rooms.clone(), pass_bytes, policy, pause, ahead: usize::MAX }
    }

    /// Bytes that a training pass takes at its best.
    pub(crate) fn wanted(&self, pass: &Pass) -> u64 {
        let again = match pass.work {
            Work::Backward { stash: None, .. } => self.stash_bytes(&pass.layout),
            // What is kept may be what enters each block alone.
            Work::Backward { .. } => self.block_stash_bytes(&pass.layout),
            _ => 0,
        };
        self.activation_bytes(&pass.layout).saturating_add(again)
    }

    /// Runs a pass whose request was checked. Memory is weighed before anything is allocated.
    pub(crate) fn run(&self, pass: Pass, stashes: &Mutex<StashStore<Stash>>) -> Result<(Output, BlockPasses), Refusal> {
        let Pass { stream, layout, work, rounded, .. } = pass;
        self.check_memory(self.activation_bytes(&layout))?;
        match work {
            Work::Forward { inputs, stash } => {
                self.forward((layout, rounded), inputs, stash.map(|id| (stream, id)), stashes)
            }
            Work::KeysValues { inputs } => self.keys_values(&layout, inputs),
            Work::Backward { stash: Some(id), grads, text_grad, .. } => {
                let stash = lock(stashes).take((stream, id), &layout).ok_or(Refusal::StashGone)?;
                self.backward(stash, (grads, text_grad), rounded, 0)
            }
            Work::Backward { stash: None, inputs: Some(inputs), grads, text_grad } => {
                self.replay(&layout, inputs, (grads, text_grad), rounded)
            }
            Work::Step { .. } => Err(Refusal::Internal { what: "a step is not a pass".into() }),
            Work::Backward { stash: None, inputs: None, .. } => {
                Err(Refusal::BadRequest { what: "backward without stash or inputs".into() })
            }
        }
    }

    fn forward(
        &self,
        (layout, rounded): (PassLayout, bool),
        inputs: Inputs,
        key: Option<(u64, StashId)>,
        stashes: &Mutex<StashStore<Stash>>,
    ) -> Result<(Output, BlockPasses), Refusal> {
        let sizes = self.sizes(&layout);
        let room = |(stream, _)| lock(stashes).make_room(stream, self.policy, sizes, Instant::now());
        let level = key.map_or(StashLevel::None, room);
        let (keep, size) = match level {
            StashLevel::None => (Keep::Nothing, Size { bytes: 0, reduced: None }),
            StashLevel::Inputs => (Keep::Inputs, Size { bytes: sizes.inputs.unwrap_or_default(), reduced: None }),
            StashLevel::Full => {
                let reduced = sizes.inputs.filter(|_| self.policy == StashPolicy::Auto);
                (Keep::Everything, Size { bytes: sizes.full, reduced })
            }
        };
        let ForwardOutput { text, prefix, stash, .. } = self.run_forward(&layout, inputs, keep, rounded)?;
        let passes = passes_of_forward(&layout);
        let kept =
            key.zip(stash).is_some_and(|(key, stash)| lock(stashes).insert(key, layout, stash, size, Instant::now()));
        let stash = if kept { level } else { StashLevel::None };
        Ok((Output::Forward { text, prefix, stash, keys_values: None }, passes))
    }

    fn keys_values(&self, layout: &PassLayout, inputs: Inputs) -> Result<(Output, BlockPasses), Refusal> {
        // Twice: on the device, and as they leave.
        let of_block = (2 * layout.prefix_rows()).saturating_mul(2 * self.blocks.config().block_widths().key);
        let of_blocks = |count: usize| (4 * count as u64).saturating_mul(of_block as u64);
        let wanted = self
            .rooms
            .passing(&self.blocks, |place| of_blocks(place.span().intersect(layout.span).map_or(0, |own| own.len())));
        self.check_memory(self.activation_bytes(layout).saturating_add(wanted))?;
        let Inputs { text, prefix, tables } = inputs;
        let tables = tables.map(|tables| tables.into_values());
        let pass = ForwardPass { layout, text, prefix, tables };
        let ForwardOutput { text, prefix, keys_values, .. } =
            self.blocks.forward_with_keys_values(pass).map_err(refusal)?;
        let output = Output::Forward { text, prefix, stash: StashLevel::None, keys_values };
        Ok((output, passes_of_forward(layout)))
    }

    /// The backward of a forward that left nothing behind: repeats it first, at the level that the memory of a pass allows.
    fn replay(
        &self,
        layout: &PassLayout,
        inputs: Inputs,
        grads: (OutputGrads, bool),
        rounded: bool,
    ) -> Result<(Output, BlockPasses), Refusal> {
        let activations = self.activation_bytes(layout);
        let whole = activations.saturating_add(self.stash_bytes(layout));
        let keep = if whole <= self.pass_bytes {
            Keep::Everything
        } else {
            let parts = [self.input_bytes(layout), self.block_stash_bytes(layout)];
            self.check_memory(parts.iter().fold(activations, |sum, part| sum.saturating_add(*part)))?;
            Keep::Inputs
        };
        let stash = self.run_forward(layout, inputs, keep, false)?.stash;
        let stash = stash.ok_or_else(|| Refusal::Internal { what: "a forward kept nothing".into() })?;
        self.backward(stash, grads, rounded, layout.span.len() as u32)
    }

    /// `forward` blocks were run already for this.
    fn backward(
        &self,
        stash: Stash,
        (grads, text_grad): (OutputGrads, bool),
        rounded: bool,
        forward: u32,
    ) -> Result<(Output, BlockPasses), Refusal> {
        let (layout, repeats) = (stash.layout(), stash.has_inputs_only());
        // Where nothing is trained nobody needs any gradient from the first span, and none is computed.
        let backward =
            if layout.prefix_len > 0 || layout.has_tables() || text_grad { layout.span.len() as u32 } else { 0 };
        let forward = forward + if repeats { backward } else { 0 };
        let grads = self.blocks.backward_as(stash, grads, text_grad, self.manner(rounded)).map_err(refusal)?;
        Ok((Output::Backward(grads), BlockPasses { forward, backward }))
    }

    fn run_forward(
        &self,
        layout: &PassLayout,
        inputs: Inputs,
        keep: Keep,
        rounded: bool,
    ) -> Result<ForwardOutput, Refusal> {
        let Inputs { text, prefix, tables } = inputs;
        let tables = tables.map(|tables| tables.into_values());
        let pass = ForwardPass { layout, text, prefix, tables };
        self.blocks.forward_as(pass, keep, self.manner(rounded)).map_err(refusal)
    }

    fn manner(&self, rounded: bool) -> Manner<'_> {
        Manner { pause: self.pause, ahead: self.ahead, rounded }
    }

    /// What stashes of such a pass take. Inputs alone are no choice if their backward would not fit into a pass.
    fn sizes(&self, layout: &PassLayout) -> Sizes {
        let repeating = self.activation_bytes(layout).saturating_add(self.block_stash_bytes(layout));
        let inputs = (repeating <= self.pass_bytes).then(|| self.input_bytes(layout));
        Sizes { full: self.stash_bytes(layout), inputs }
    }

    // What is counted against the budgets: bytes where there is one memory, see [`Rooms`] for several.

    pub(crate) fn activation_bytes(&self, layout: &PassLayout) -> u64 {
        self.rooms.passing(&self.blocks, |place| place.activation_bytes_estimate(layout))
    }

    fn stash_bytes(&self, layout: &PassLayout) -> u64 {
        self.rooms.kept(&self.blocks, |place| place.stash_bytes_estimate(layout))
    }

    fn input_bytes(&self, layout: &PassLayout) -> u64 {
        self.rooms.kept(&self.blocks, |place| place.input_bytes_estimate(layout))
    }

    fn block_stash_bytes(&self, layout: &PassLayout) -> u64 {
        self.rooms.passing(&self.blocks, |place| place.block_stash_bytes_estimate(layout))
    }

    /// Of a step through the blocks of `span`.
    pub(crate) fn step_bytes(&self, span: Span, sizes: &[StepSize]) -> u64 {
        let of_place =
            |place: OnePlace<'_>| place.span().intersect(span).map_or(0, |_| place.step_bytes_estimate(sizes));
        self.rooms.passing(&self.blocks, of_place)
    }

    /// Of a page of a sequence's keys and values in the blocks of `span`.
    pub(crate) fn page_bytes(&self, span: Span) -> u64 {
        self.rooms.kept(&self.blocks, |place| place.kv_page_bytes(span))
    }

    /// Most that the keys and values of a sequence take.
    pub(crate) fn sequence_bytes(&self, span: Span, positions: u64) -> u64 {
        self.rooms.kept(&self.blocks, |place| place.kv_bytes(span, positions))
    }

    /// Of tables that sequences need for as long as they grow.
    pub(crate) fn lasting_table_bytes(&self, layout: &PassLayout) -> u64 {
        self.rooms.kept(&self.blocks, |place| place.lasting_table_bytes(layout))
    }

    pub(crate) fn check_memory(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes <= self.pass_bytes {
            return Ok(());
        }
        Err(Refusal::TooLarge { what: "the memory of the pass".into(), got: bytes, limit: self.pass_bytes })
    }
}

fn passes_of_forward(layout: &PassLayout) -> BlockPasses {
    BlockPasses { forward: layout.span.len() as u32, backward: 0 }
}

/// How long a client waits that was refused because a device had no memory.
const OUT_OF_MEMORY_PAUSE_MS: u32 = 1000;

pub(crate) fn refusal(error: PassError) -> Refusal {
    tracing::debug!(%error, "pass refused");
    match error {
        PassError::NotFinite(_) | PassError::BlockNotFinite(_) => Refusal::NotFinite { what: error.to_string() },
        PassError::Buffer { ref device, bytes, limit } => {
            Refusal::TooLarge { what: format!("a matrix of the pass on {device}"), got: bytes, limit }
        }
        // Estimates keep passes within the memory there is, but others may use the same card.
        PassError::Device(ref failure) if failure.is_out_of_memory() => {
            tracing::error!(%failure, "the device has no memory left: is anything else computing on it? Serve fewer blocks, or give less to --kv-bytes");
            Refusal::Busy { retry_after_ms: OUT_OF_MEMORY_PAUSE_MS }
        }
        PassError::Device(_) => {
            tracing::error!(%error, "the device failed");
            Refusal::Internal { what: error.to_string() }
        }
        _ => Refusal::BadShape { what: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
