//! What a pass computes, and what it leaves behind.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use petals_model::{BlockStack, ForwardOutput, ForwardPass, Keep, OutputGrads, PassError, Pause, Stash};
use petals_protocol::{BlockPasses, PassLayout, Refusal, StashId, StashLevel};

use super::pass::{Inputs, Output, Pass, Work};
use super::stash::{Size, Sizes, StashPolicy, StashStore};
use crate::lock::lock;

/// The blocks, and what a pass may take.
pub(crate) struct Compute<'a> {
    pub(crate) blocks: Arc<BlockStack>,
    /// Bytes that one pass may take beside weights and stashes.
    pub(crate) pass_bytes: u64,
    pub(crate) policy: StashPolicy,
    /// What is done between blocks.
    pub(crate) pause: Pause<'a>,
}

impl Compute<'_> {
    /// Runs a pass whose request was checked. Memory is weighed before anything is allocated.
    pub(crate) fn run(&self, pass: Pass, stashes: &Mutex<StashStore<Stash>>) -> Result<(Output, BlockPasses), Refusal> {
        let Pass { stream, layout, work, .. } = pass;
        self.check_memory(self.blocks.activation_bytes_estimate(&layout))?;
        match work {
            Work::Forward { inputs, stash } => self.forward(layout, inputs, stash.map(|id| (stream, id)), stashes),
            Work::KeysValues { inputs } => self.keys_values(&layout, inputs),
            Work::Backward { stash: Some(id), grads, text_grad, .. } => {
                let stash = lock(stashes).take((stream, id), &layout).ok_or(Refusal::StashGone)?;
                self.backward(stash, grads, text_grad, 0)
            }
            Work::Backward { stash: None, inputs: Some(inputs), grads, text_grad } => {
                self.replay(&layout, inputs, grads, text_grad)
            }
            Work::Step { .. } => Err(Refusal::Internal { what: "a step is not a pass".into() }),
            Work::Backward { stash: None, inputs: None, .. } => {
                Err(Refusal::BadRequest { what: "backward without stash or inputs".into() })
            }
        }
    }

    fn forward(
        &self,
        layout: PassLayout,
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
            StashLevel::Full => (Keep::Everything, Size { bytes: sizes.full, reduced: sizes.inputs }),
        };
        let ForwardOutput { text, prefix, stash, .. } = self.run_forward(&layout, inputs, keep)?;
        let passes = passes_of_forward(&layout);
        let kept =
            key.zip(stash).is_some_and(|(key, stash)| lock(stashes).insert(key, layout, stash, size, Instant::now()));
        let stash = if kept { level } else { StashLevel::None };
        Ok((Output::Forward { text, prefix, stash, keys_values: None }, passes))
    }

    fn keys_values(&self, layout: &PassLayout, inputs: Inputs) -> Result<(Output, BlockPasses), Refusal> {
        // Twice: on the device, and as they leave.
        let of_block = (2 * layout.prefix_rows()).saturating_mul(2 * self.blocks.config().block_widths().key);
        let wanted = (4 * layout.span.len() as u64).saturating_mul(of_block as u64);
        self.check_memory(self.blocks.activation_bytes_estimate(layout).saturating_add(wanted))?;
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
        grads: OutputGrads,
        text_grad: bool,
    ) -> Result<(Output, BlockPasses), Refusal> {
        let activations = self.blocks.activation_bytes_estimate(layout);
        let whole = activations.saturating_add(self.blocks.stash_bytes_estimate(layout));
        let keep = if whole <= self.pass_bytes {
            Keep::Everything
        } else {
            let parts = [self.blocks.input_bytes_estimate(layout), self.blocks.block_stash_bytes_estimate(layout)];
            self.check_memory(parts.iter().fold(activations, |sum, part| sum.saturating_add(*part)))?;
            Keep::Inputs
        };
        let stash = self.run_forward(layout, inputs, keep)?.stash;
        let stash = stash.ok_or_else(|| Refusal::Internal { what: "a forward kept nothing".into() })?;
        self.backward(stash, grads, text_grad, layout.span.len() as u32)
    }

    /// `forward` blocks were run already for this.
    fn backward(
        &self,
        stash: Stash,
        grads: OutputGrads,
        text_grad: bool,
        forward: u32,
    ) -> Result<(Output, BlockPasses), Refusal> {
        let (layout, repeats) = (stash.layout(), stash.has_inputs_only());
        // Where nothing is trained nobody needs any gradient from the first span, and none is computed.
        let backward =
            if layout.prefix_len > 0 || layout.has_tables() || text_grad { layout.span.len() as u32 } else { 0 };
        let forward = forward + if repeats { backward } else { 0 };
        let grads = self.blocks.backward_with_pauses(stash, grads, text_grad, self.pause).map_err(refusal)?;
        Ok((Output::Backward(grads), BlockPasses { forward, backward }))
    }

    fn run_forward(&self, layout: &PassLayout, inputs: Inputs, keep: Keep) -> Result<ForwardOutput, Refusal> {
        let Inputs { text, prefix, tables } = inputs;
        let tables = tables.map(|tables| tables.into_values());
        self.blocks.forward_with_pauses(ForwardPass { layout, text, prefix, tables }, keep, self.pause).map_err(refusal)
    }

    /// What stashes of such a pass take. Inputs alone are no choice if their backward would not fit into a pass.
    fn sizes(&self, layout: &PassLayout) -> Sizes {
        let activations = self.blocks.activation_bytes_estimate(layout);
        let repeating = activations.saturating_add(self.blocks.block_stash_bytes_estimate(layout));
        let inputs = (repeating <= self.pass_bytes).then(|| self.blocks.input_bytes_estimate(layout));
        Sizes { full: self.blocks.stash_bytes_estimate(layout), inputs }
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

pub(crate) fn refusal(error: PassError) -> Refusal {
    tracing::debug!(%error, "pass refused");
    match error {
        PassError::NotFinite(_) => Refusal::NotFinite { what: error.to_string() },
        PassError::Device(_) => {
            tracing::error!(%error, "the device failed");
            Refusal::Internal { what: error.to_string() }
        }
        _ => Refusal::BadShape { what: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
