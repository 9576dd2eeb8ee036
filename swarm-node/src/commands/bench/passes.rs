//! The passes that are timed.

use std::time::{Duration, Instant};

use petals_model::{BlockStack, Checkpoint, ForwardPass, Keep, OutputGrads, PassError};
use petals_protocol::{Injection, PassLayout, Span};

use super::{injection, read_rows};
use crate::args::{BenchArgs, BenchKind};

/// Inputs of one kind of work, the same in each repetition.
pub(super) struct Passes {
    layout: PassLayout,
    hidden: usize,
    /// Values of all tables.
    tables: usize,
    train: bool,
    /// Nobody needs the text's gradient below block 0.
    text_grad: bool,
    label: String,
}

/// What one repetition took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lap {
    pub(super) forward: Duration,
    /// Zero without training.
    pub(super) backward: Duration,
    pub(super) stash_bytes: Option<u64>,
}

impl Passes {
    pub(super) fn new(checkpoint: &Checkpoint, span: Span, args: &BenchArgs, kind: BenchKind) -> Self {
        let decode = kind == BenchKind::Decode;
        let train = kind == BenchKind::Train;
        let batch = args.batch.unwrap_or(if decode { 1 } else { 4 });
        let length = if decode { 1 } else { args.length };
        let injection = if train { injection(args) } else { Injection::None };
        let prefix_len = if train { args.prefix_len } else { 0 };
        let last = span.end() == checkpoint.blocks().end();
        let layout = PassLayout {
            span,
            lengths: vec![length; batch as usize],
            prefix_len,
            injection,
            weights: Default::default(),
            read_rows: if last { read_rows(args, kind, batch) } else { None },
        };
        let label = match (train, injection) {
            (false, _) => format!("{batch} x {length}"),
            (true, Injection::None) => format!("{batch} x {length}, ptune {prefix_len}"),
            (true, injection) => format!("{batch} x {length}, deep {injection:?} {prefix_len}").to_lowercase(),
        };
        let hidden = checkpoint.config().hidden_size;
        let tables = span.len() * layout.block_values(checkpoint.config().block_widths());
        Self { layout, hidden, tables, train, text_grad: span.start() > 0, label }
    }

    /// The sizes, for people.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Tokens of text.
    pub(super) fn tokens(&self) -> usize {
        self.layout.tokens()
    }

    pub(super) fn run(&self, blocks: &BlockStack) -> Result<Lap, PassError> {
        let layout = &self.layout;
        let prefix = layout.prefix_rows() * self.hidden;
        let pass = ForwardPass {
            layout,
            text: values(layout.tokens() * self.hidden),
            prefix: layout.carries_prefix().then(|| values(prefix)),
            tables: layout.has_tables().then(|| values(self.tables)),
        };
        let started = Instant::now();
        let output = blocks.forward(pass, if self.train { Keep::Everything } else { Keep::Nothing })?;
        let forward = started.elapsed();
        let Some(stash) = output.stash else {
            return Ok(Lap { forward, backward: Duration::ZERO, stash_bytes: None });
        };
        let stash_bytes = Some(stash.bytes());
        let grads =
            OutputGrads { text: values(output.text.len()), prefix: output.prefix.map(|rows| values(rows.len())) };
        let started = Instant::now();
        blocks.backward(stash, grads, self.text_grad)?;
        Ok(Lap { forward, backward: started.elapsed(), stash_bytes })
    }
}

/// Numbers of the size of hidden states; none is zero, so that nothing is faster than with real ones.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|n| ((n % 17) as f32 - 8.25) / 100.0).collect()
}
