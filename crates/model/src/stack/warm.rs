//! Compiles what passes and steps will need before anybody waits for it.

use petals_protocol::{Injection, PassLayout, Span};

use super::{BlockStack, CachedRows, ForwardPass, Keep, OutputGrads, PassError};
use crate::engine::KvMeter;

/// Rows of steps for which kernels differ: each is compiled for a power of two of them, and differently for many.
const STEPS: [usize; 6] = [1, 2, 3, 5, 9, 40];
/// Rows of the pass that is trained on, enough for the products of many rows.
const TRAINED: u32 = 72;

impl BlockStack {
    /// Runs steps and a training pass of each kind of kernels through one block, so that a GPU has compiled and tuned them; on the CPU that is a few milliseconds. Other
    /// kinds of adapters, and blocks of which a span has several kinds, are compiled for when they come.
    ///
    /// # Errors
    /// If the device fails.
    pub fn warm_up(&self) -> Result<(), PassError> {
        let Ok(span) = Span::new(self.span.start(), self.span.start() + 1) else { return Ok(()) };
        let Some(one) = self.part(span) else { return Ok(()) };
        let (d, most) = (self.config.hidden_size, self.config.max_position_embeddings);
        let values = |rows: usize| (0..rows * d).map(|n| ((n % 17) as f32 - 8.25) / 100.0).collect::<Vec<_>>();
        for rows in STEPS.into_iter().filter(|rows| *rows < most) {
            let mut cache = one.cache(span, rows, &KvMeter::default())?;
            one.step(values(rows), &mut [CachedRows { cache: &mut cache, rows, tables: None }], None)?;
        }
        let rows = TRAINED.min(u32::try_from(most).unwrap_or(u32::MAX).saturating_sub(2)).max(1);
        let layout = PassLayout {
            span,
            lengths: vec![rows],
            prefix_len: 1,
            injection: Injection::Add,
            weights: Default::default(),
            read_rows: None,
        };
        let (text, prefix) = (values(rows as usize), Some(values(1)));
        let pass = ForwardPass { layout: &layout, text, prefix: prefix.clone(), tables: prefix };
        let output = one.forward(pass, Keep::Everything)?;
        if let Some(stash) = output.stash {
            one.backward(stash, OutputGrads { text: output.text, prefix: output.prefix }, true)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::device::Dtype;
    use crate::{Checkpoint, fixture};
    use petals_protocol::Span;

    #[test]
    fn every_device_can_be_warmed_up() {
        let dir = fixture::single();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for device in fixture::devices() {
            let stack = checkpoint.load_span(Span::new(1, 3).unwrap(), &device, Dtype::F32).unwrap();
            stack.warm_up().unwrap();
        }
    }
}
