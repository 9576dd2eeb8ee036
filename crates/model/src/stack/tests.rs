use std::sync::Arc;

use petals_protocol::{Injection, PassLayout, Span};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::engine::host::Host;
use crate::fixture::{self, noise};

const D: usize = 12;
const M: usize = 3;

fn stack_on(device: &Device, dtype: Dtype) -> BlockStack {
    let dir = fixture::single();
    Checkpoint::open(dir.path()).unwrap().load_span(Span::new(0, 3).unwrap(), device, dtype).unwrap()
}

fn stack() -> BlockStack {
    stack_on(&Device::cpu(), Dtype::F32)
}

/// One on every engine, and some that are divided.
fn stacks() -> Vec<BlockStack> {
    fixture::divisions().iter().map(divided).collect()
}

fn divided(division: &Division) -> BlockStack {
    Checkpoint::open(fixture::single().path()).unwrap().load_division(division, None).unwrap()
}

fn layout(injection: Injection, prefix_len: usize) -> PassLayout {
    let span = Span::new(0, 3).unwrap();
    PassLayout {
        span,
        lengths: vec![5, 2, 7],
        prefix_len: prefix_len as u32,
        injection,
        weights: Default::default(),
        read_rows: None,
    }
}

/// Every injection, with and without rows to read, and no prefix at all.
fn layouts() -> Vec<PassLayout> {
    let mut all = vec![layout(Injection::None, 0)];
    all.extend([Injection::None, Injection::Add, Injection::Replace].map(|injection| layout(injection, M)));
    let reading = all.iter().map(|layout| PassLayout { read_rows: Some(vec![1, 4, 5, 13]), ..layout.clone() });
    let reading: Vec<_> = reading.collect();
    all.into_iter().chain(reading).collect()
}

#[derive(Clone)]
struct Inputs {
    text: Vec<f32>,
    prefix: Option<Vec<f32>>,
    tables: Option<Vec<f32>>,
}

fn inputs(layout: &PassLayout) -> Inputs {
    let m = layout.prefix_rows();
    Inputs {
        text: noise(100, layout.tokens() * D),
        prefix: layout.carries_prefix().then(|| noise(101, m * D)),
        tables: layout.has_tables().then(|| noise(102, layout.span.len() * m * D)),
    }
}

fn forward(stack: &BlockStack, layout: &PassLayout, inputs: Inputs) -> ForwardOutput {
    let Inputs { text, prefix, tables } = inputs;
    stack.forward(ForwardPass { layout, text, prefix, tables }, Keep::Everything).unwrap()
}

/// Weights that make a scalar of a pass's outputs.
fn output_grads(layout: &PassLayout) -> OutputGrads {
    OutputGrads {
        text: noise(103, layout.output_rows() * D),
        prefix: layout.returns_prefix().then(|| noise(104, layout.prefix_rows() * D)),
    }
}

fn scalar(stack: &BlockStack, layout: &PassLayout, inputs: Inputs) -> f64 {
    let (output, weights) = (forward(stack, layout, inputs), output_grads(layout));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let prefix = output.prefix.zip(weights.prefix).map_or(0.0, |(a, b)| dot(&a, &b));
    dot(&output.text, &weights.text) + prefix
}

fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(expected).fold(0.0f32, |a, (g, e)| a.max((g - e).abs()));
    assert!(worst <= tolerance * largest, "{what}: off by {:e} of {largest}", worst / largest);
}

#[test]
fn the_backward_is_the_derivative_of_the_forward() {
    let stack = stack();
    for layout in layouts() {
        let inputs = inputs(&layout);
        let stash = forward(&stack, &layout, inputs.clone()).stash.unwrap();
        let grads = stack.backward(stash, output_grads(&layout), true).unwrap();
        let along = |values: &[f32], seed, step: f32| -> Vec<f32> {
            values.iter().zip(noise(seed, values.len())).map(|(v, n)| v + n * step).collect()
        };
        let check = |name: &str, grad: Option<Vec<f32>>, moved: &dyn Fn(f32) -> Inputs, seed| {
            let Some(grad) = grad else { return };
            let predicted: f64 =
                grad.iter().zip(noise(seed, grad.len())).map(|(g, n)| f64::from(*g) * f64::from(n)).sum();
            let h = 2e-3;
            let measured =
                (scalar(&stack, &layout, moved(h)) - scalar(&stack, &layout, moved(-h))) / f64::from(2.0 * h);
            let error = (predicted - measured).abs() / measured.abs().max(1.0);
            assert!(error < 5e-3, "{layout:?} {name}: {predicted} for {measured}");
        };
        let Inputs { text, prefix, tables } = &inputs;
        check("text", grads.text, &|h| Inputs { text: along(text, 7, h), ..inputs.clone() }, 7);
        let moved = |values: &Option<Vec<f32>>, seed, h| values.as_ref().map(|values| along(values, seed, h));
        check("prefix", grads.prefix, &|h| Inputs { prefix: moved(prefix, 8, h), ..inputs.clone() }, 8);
        check("tables", grads.tables, &|h| Inputs { tables: moved(tables, 9, h), ..inputs.clone() }, 9);
    }
}

#[test]
fn engines_agree() {
    let kernels = stack();
    for (layout, other) in layouts().iter().flat_map(|layout| stacks().into_iter().map(move |stack| (layout, stack))) {
        let [a, b] = [&kernels, &other].map(|stack| {
            let output = forward(stack, layout, inputs(layout));
            let grads = stack.backward(output.stash.unwrap(), output_grads(layout), true).unwrap();
            (output.text, grads)
        });
        assert_close("text", &a.0, &b.0, 1e-5);
        assert_close("text gradient", &a.1.text.unwrap(), &b.1.text.unwrap(), 1e-4);
        let parts = [(a.1.prefix, b.1.prefix), (a.1.tables, b.1.tables)];
        for (a, b) in parts.into_iter().filter_map(|(a, b)| a.zip(b)) {
            assert_close("prefix or prompt gradient", &a, &b, 1e-4);
        }
    }
}

#[test]
fn without_the_text_gradient_the_others_are_the_same() {
    for stack in stacks() {
        for layout in layouts() {
            let run = |text_grad| {
                let stash = forward(&stack, &layout, inputs(&layout)).stash.unwrap();
                stack.backward(stash, output_grads(&layout), text_grad).unwrap()
            };
            let (with, without) = (run(true), run(false));
            assert_eq!(without.text, None);
            for (a, b) in [(&without.prefix, &with.prefix), (&without.tables, &with.tables)] {
                assert_eq!(a.is_some(), b.is_some());
                assert_close("gradient", a.as_deref().unwrap_or(&[]), b.as_deref().unwrap_or(&[]), 1e-6);
            }
        }
    }
}

#[test]
fn a_stack_of_three_is_three_stacks_of_one() {
    let stack = stack();
    for layout in layouts() {
        let all = inputs(&layout);
        let whole = forward(&stack, &layout, all.clone());
        let (mut text, mut prefix) = (all.text, all.prefix);
        for block in 0..3 {
            let read_rows = layout.read_rows.clone().filter(|_| block == 2);
            let one = PassLayout { span: Span::new(block, block + 1).unwrap(), read_rows, ..layout.clone() };
            let table = layout.prefix_rows() * D;
            let tables = all.tables.as_ref().map(|p| p[block as usize * table..][..table].to_vec());
            let output = forward(&stack, &one, Inputs { text, prefix, tables });
            (text, prefix) = (output.text, output.prefix);
        }
        assert_close("text", &text, &whole.text, 1e-6);
        assert_eq!(prefix.is_some(), whole.prefix.is_some());
    }
}

#[test]
fn rows_that_are_read_are_those_of_the_full_output() {
    let stack = stack();
    for layout in layouts() {
        let Some(read) = layout.read_rows.clone() else { continue };
        let part = forward(&stack, &layout, inputs(&layout)).text;
        let full = PassLayout { read_rows: None, ..layout.clone() };
        let full = forward(&stack, &full, inputs(&layout)).text;
        let gathered: Vec<f32> = read.iter().flat_map(|&row| full[row as usize * D..][..D].to_vec()).collect();
        assert_close("rows", &part, &gathered, 1e-6);
    }
}

#[test]
fn examples_do_not_see_each_other() {
    for stack in stacks() {
        let packed = PassLayout { lengths: vec![70, 2, 131], ..layout(Injection::Replace, M) };
        let all = inputs(&packed);
        let together = forward(&stack, &packed, all.clone()).text;
        let mut start = 0;
        for &length in &packed.lengths {
            let one = PassLayout { lengths: vec![length], ..packed.clone() };
            let range = start * D..(start + length as usize) * D;
            let alone = forward(&stack, &one, Inputs { text: all.text[range.clone()].to_vec(), ..all.clone() }).text;
            assert_close("example", &together[range], &alone, 1e-5);
            start += length as usize;
        }
    }
}

#[test]
fn narrow_weights_change_results_by_their_rounding_only() {
    let exact = forward(&stack(), &layout(Injection::Add, M), inputs(&layout(Injection::Add, M))).text;
    for (dtype, tolerance) in [(Dtype::Bf16, 6e-2), (Dtype::F16, 6e-3), (Dtype::Int8, 6e-2), (Dtype::Int4, 4e-1)] {
        let half = stack_on(&Device::cpu(), dtype);
        assert!(half.weight_bytes() < stack().weight_bytes());
        let output = forward(&half, &layout(Injection::Add, M), inputs(&layout(Injection::Add, M)));
        assert_close("text", &output.text, &exact, tolerance);
        half.backward(output.stash.unwrap(), output_grads(&layout(Injection::Add, M)), true).unwrap();
    }
}

#[test]
fn engines_agree_on_weights_in_blocks() {
    let layout = layout(Injection::Add, M);
    for dtype in [Dtype::Int8, Dtype::Int4] {
        // The CPU's own engine rounds a few rows as well, or, where bf16 is multiplied, the widened weights.
        let stacks = fixture::devices().into_iter().map(|device| stack_on(&device, dtype));
        let results: Vec<_> = stacks
            .map(|stack| {
                let output = forward(&stack, &layout, inputs(&layout));
                let grads = stack.backward(output.stash.unwrap(), output_grads(&layout), true).unwrap();
                (output.text, grads.text.unwrap())
            })
            .collect();
        for (text, grads) in &results[1..] {
            assert_close("text", text, &results[0].0, 3e-2);
            assert_close("gradients", grads, &results[0].1, 1e-1);
        }
    }
}

#[test]
fn inputs_alone_give_the_same_gradients() {
    for stack in stacks() {
        for layout in layouts() {
            let Inputs { text, prefix, tables } = inputs(&layout);
            let output = stack.forward(ForwardPass { layout: &layout, text, prefix, tables }, Keep::Inputs).unwrap();
            let whole = forward(&stack, &layout, inputs(&layout));
            assert_eq!(output.text, whole.text);
            let (inputs, whole) = (output.stash.unwrap(), whole.stash.unwrap());
            assert!(inputs.has_inputs_only() && !whole.has_inputs_only());
            let reduced = forward(&stack, &layout, self::inputs(&layout)).stash.unwrap().reduce();
            for stash in [&inputs, &reduced] {
                assert_eq!(stash.bytes(), stack.input_bytes_estimate(&layout));
            }
            let [inputs, reduced, whole] =
                [inputs, reduced, whole].map(|stash| stack.backward(stash, output_grads(&layout), true).unwrap());
            assert_eq!((&inputs, &reduced), (&whole, &whole));
        }
    }
}

#[test]
fn a_stash_is_as_large_as_estimated() {
    for (stack, layout) in stacks().iter().flat_map(|stack| layouts().into_iter().map(move |layout| (stack, layout))) {
        let stash = forward(stack, &layout, inputs(&layout)).stash.unwrap();
        assert_eq!(stash.bytes(), stack.stash_bytes_estimate(&layout));
        let blocks = layout.span.len() as u64;
        assert!(stash.bytes() <= blocks * stack.block_stash_bytes_estimate(&layout));
        assert!(stack.activation_bytes_estimate(&layout) > 0);
    }
}

#[test]
fn estimates_saturate_for_a_strangers_layout() {
    for device in [Device::cpu(), Device::reference()] {
        let mut layout = layout(Injection::Add, M);
        (layout.lengths, layout.prefix_len) = (vec![u32::MAX; 64], u32::MAX);
        let stack = stack_on(&device, Dtype::Bf16);
        assert!(stack.activation_bytes_estimate(&layout) > 1 << 40 && stack.stash_bytes_estimate(&layout) > 1 << 40);
        assert!(stack.input_bytes_estimate(&layout) > 1 << 40 && stack.block_stash_bytes_estimate(&layout) > 1 << 40);
    }
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let stack = stack();
    let layout = layout(Injection::Add, M);
    let refusal = |layout: &PassLayout, change: fn(&mut Inputs)| {
        let mut inputs = inputs(layout);
        change(&mut inputs);
        let Inputs { text, prefix, tables } = inputs;
        stack.forward(ForwardPass { layout, text, prefix, tables }, Keep::Nothing).unwrap_err().to_string()
    };
    assert_eq!(refusal(&layout, |i| i.text.truncate(24)), "the text: 24 values were given, 168 expected");
    assert_eq!(refusal(&layout, |i| i.prefix = None), "the prefix is missing");
    assert_eq!(refusal(&layout, |i| i.tables = Some(vec![0.0; 5])), "the tables: 5 values were given, 108 expected");
    let bare = PassLayout { prefix_len: 0, injection: Injection::None, ..layout.clone() };
    assert!(refusal(&bare, |i| i.prefix = Some(vec![])).contains("no place"));
    let far = PassLayout { span: Span::new(2, 4).unwrap(), ..bare.clone() };
    assert_eq!(refusal(&far, |_| ()), "blocks 2..4 were asked for, only 0..3 are here");
    let long = PassLayout { lengths: vec![301], ..bare.clone() };
    assert!(refusal(&long, |_| ()).contains("301 positions"));
    let empty = PassLayout { lengths: vec![], ..bare.clone() };
    assert!(refusal(&empty, |_| ()).contains("impossible layout"));
    let broken = refusal(&bare, |i| i.text[3] = f32::NAN);
    assert_eq!(broken, "what block 0 gives is not finite, or so large that its square is not");
    assert_eq!(refusal(&bare, |i| i.text[3] = 3e38), "the square of a value that enters the span is not finite");
    let stash = forward(&stack, &layout, inputs(&layout)).stash.unwrap();
    let grads = OutputGrads { prefix: None, ..output_grads(&layout) };
    assert_eq!(stack.backward(stash, grads, true).unwrap_err().to_string(), "the prefix gradient is missing");
}

/// A block on the host engine.
fn block(stack: &BlockStack, number: u32) -> Option<&Arc<block::Block<Host>>> {
    stack.parts.iter().find_map(|part| match &part.blocks {
        OnEngine::Host(blocks) => blocks.block(number),
        _ => None,
    })
}

#[test]
fn blocks_that_are_loaded_already_are_shared() {
    let dir = fixture::single();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let span = |start, end| Span::new(start, end).unwrap();
    let first = checkpoint.load_span(span(0, 2), &Device::cpu(), Dtype::F32).unwrap();
    let moved = checkpoint.load_span_beside(span(1, 3), &first).unwrap();
    assert_eq!(moved.span(), span(1, 3));
    assert!(Arc::ptr_eq(block(&first, 1).unwrap(), block(&moved, 1).unwrap()));
    assert!(block(&moved, 0).is_none() && block(&first, 2).is_none() && block(&moved, 3).is_none());
    let part = moved.part(span(2, 9)).unwrap();
    assert_eq!((part.span(), part.weight_bytes()), (span(2, 3), first.weight_bytes() / 2));
    assert!(Arc::ptr_eq(block(&part, 2).unwrap(), block(&moved, 2).unwrap()));
    assert!(moved.part(span(0, 1)).is_none());
    let fresh = checkpoint.load_span(span(1, 3), &Device::cpu(), Dtype::F32).unwrap();
    let layout = PassLayout { span: span(1, 3), ..layout(Injection::Add, M) };
    let [a, b] = [&moved, &fresh].map(|stack| forward(stack, &layout, inputs(&layout)));
    assert_eq!((a.text, a.prefix), (b.text, b.prefix));
}
