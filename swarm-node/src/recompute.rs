//! A backward whose forward left nothing behind.

use petals_model::{BlockStack, ForwardPass, InputGrads, OutputGrads, PassError, Stash};
use petals_protocol::{PassLayout, Span};

use crate::executor::Inputs;

/// Runs the layout's span forward and backward.
///
/// If the stash of the whole span takes at most `stash_bytes`, it is made at once. Otherwise the span is computed block
/// by block: first forward, keeping each block's input only, then backward with the stash of one block at a time. That
/// costs one forward more and a fraction of the memory.
pub(crate) fn backward(
    blocks: &BlockStack,
    layout: &PassLayout,
    inputs: Inputs,
    grads: OutputGrads,
    text_grad: bool,
    stash_bytes: u64,
) -> Result<InputGrads, PassError> {
    if layout.span.len() == 1 || blocks.stash_bytes_estimate(layout) <= stash_bytes {
        return blocks.backward(stash(blocks, layout, inputs)?, grads, text_grad);
    }
    let OutputGrads { text, mut prefix } = grads;
    let mut text = Some(text);
    let mut prompts = Vec::with_capacity(layout.span.len());
    for (number, (layout, inputs)) in inputs_of_blocks(blocks, layout, inputs)?.into_iter().enumerate().rev() {
        let grads = OutputGrads { text: text.ok_or(PassError::Missing("the text gradient"))?, prefix };
        let grads = blocks.backward(stash(blocks, &layout, inputs)?, grads, number > 0 || text_grad)?;
        (text, prefix) = (grads.text, grads.prefix);
        prompts.push(grads.prompts);
    }
    let prompts: Option<Vec<_>> = prompts.into_iter().rev().collect();
    Ok(InputGrads { text, prefix, prompts: prompts.map(|tables| tables.concat()) })
}

/// Every block as a span of its own, with what enters it.
fn inputs_of_blocks(
    blocks: &BlockStack,
    layout: &PassLayout,
    inputs: Inputs,
) -> Result<Vec<(PassLayout, Inputs)>, PassError> {
    let Inputs { mut text, mut prefix, prompts } = inputs;
    let table = (layout.prefix_rows() * blocks.config().hidden_size).max(1);
    let mut tables = prompts.as_deref().map(|prompts| prompts.chunks_exact(table));
    let count = layout.span.len();
    let mut all = Vec::with_capacity(count);
    for layout in layouts_of_blocks(layout) {
        let prompts = tables.as_mut().and_then(Iterator::next).map(<[f32]>::to_vec);
        let inputs = Inputs { text: text.clone(), prefix: prefix.clone(), prompts: prompts.clone() };
        // Nothing but the backward needs the last block, and that runs it itself.
        if all.len() + 1 < count {
            let output = blocks.forward(ForwardPass { layout: &layout, text, prefix, prompts }, false)?;
            (text, prefix) = (output.text, output.prefix);
        }
        all.push((layout, inputs));
    }
    Ok(all)
}

/// Rows are read behind the last block only, so every other one passes all of its text and prefix on.
fn layouts_of_blocks(layout: &PassLayout) -> Vec<PassLayout> {
    let PassLayout { span, lengths, prefix_len, injection, read_rows } = layout;
    let one = |block| {
        let span = Span::new(block, block + 1).ok()?;
        let read_rows = read_rows.clone().filter(|_| span.end() == layout.span.end());
        Some(PassLayout { span, lengths: lengths.clone(), prefix_len: *prefix_len, injection: *injection, read_rows })
    };
    span.blocks().filter_map(one).collect()
}

fn stash(blocks: &BlockStack, layout: &PassLayout, inputs: Inputs) -> Result<Stash, PassError> {
    let Inputs { text, prefix, prompts } = inputs;
    let output = blocks.forward(ForwardPass { layout, text, prefix, prompts }, true)?;
    output.stash.ok_or(PassError::ForeignStash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use petals_protocol::Injection;

    /// Values of about a hidden state's size that repeat late.
    fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|n| ((n + 31 * seed) as f32 * 0.7).sin()).collect()
    }

    fn inputs(layout: &PassLayout, d: usize) -> Inputs {
        let prefix = layout.prefix_rows() * d;
        Inputs {
            text: values(1, layout.tokens() * d),
            prefix: layout.carries_prefix().then(|| values(2, prefix)),
            prompts: layout.has_prompts().then(|| values(3, layout.span.len() * prefix)),
        }
    }

    fn output_grads(layout: &PassLayout, d: usize) -> OutputGrads {
        OutputGrads {
            text: values(4, layout.output_rows() * d),
            prefix: layout.returns_prefix().then(|| values(5, layout.prefix_rows() * d)),
        }
    }

    fn assert_close(what: &str, got: Option<&[f32]>, expected: Option<&[f32]>) {
        assert_eq!(got.map(<[f32]>::len), expected.map(<[f32]>::len), "{what}: number of values");
        let (got, expected) = (got.unwrap_or_default(), expected.unwrap_or_default());
        let largest = expected.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
        let worst = got.iter().zip(expected).fold(0.0f32, |a, (g, e)| a.max((g - e).abs()));
        assert!(worst <= 1e-5 * largest, "{what}: off by {worst} of {largest}");
    }

    #[test]
    fn block_by_block_gives_the_gradients_of_the_whole_span() {
        let stack = fixture::stack();
        let d = stack.config().hidden_size;
        let prefixes = [(0, Injection::None), (3, Injection::None), (3, Injection::Add), (3, Injection::Replace)];
        for (prefix_len, injection) in prefixes {
            for (read_rows, text_grad) in [(None, true), (None, false), (Some(vec![0, 4, 6]), true)] {
                let (span, lengths) = (stack.span(), vec![5, 2, 4]);
                let layout = PassLayout { span, lengths, prefix_len, injection, read_rows };
                let run = |stash_bytes| {
                    let grads = output_grads(&layout, d);
                    backward(&stack, &layout, inputs(&layout, d), grads, text_grad, stash_bytes).unwrap()
                };
                let (whole, parts) = (run(u64::MAX), run(0));
                assert_close(&format!("{layout:?} text"), parts.text.as_deref(), whole.text.as_deref());
                assert_close(&format!("{layout:?} prefix"), parts.prefix.as_deref(), whole.prefix.as_deref());
                assert_close(&format!("{layout:?} prompts"), parts.prompts.as_deref(), whole.prompts.as_deref());
            }
        }
    }
}
