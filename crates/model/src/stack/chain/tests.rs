use std::sync::Arc;

use petals_protocol::{Injection, Module, Modules, WeightChange};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::engine::{Listed, host::Host};
use crate::fixture::{self, divided_as, noise};
use crate::stack::{CachedPrefix, CachedRows, Division, SpanTables};
use crate::{KvCache, KvMeter, StepSize};

const D: usize = 12;
const M: usize = 3;

fn load(counts: &[(usize, Device)]) -> BlockStack {
    Checkpoint::open(fixture::single().path()).unwrap().load_division(&divided_as(counts), None).unwrap()
}

/// One stack, and the same blocks cut behind each of them, all on the CPU's own engine: nothing may differ in a single bit.
fn whole_and_divided() -> (BlockStack, Vec<BlockStack>) {
    let cpu = Device::cpu;
    let divided =
        [vec![(1, cpu()), (2, cpu())], vec![(2, cpu()), (1, cpu())], vec![(1, cpu()), (1, cpu()), (1, cpu())]];
    (load(&[(3, cpu())]), divided.iter().map(|counts| load(counts)).collect())
}

fn span(start: u32, end: u32) -> Span {
    Span::new(start, end).unwrap()
}

/// Every kind of prefix with every change of weights, over all blocks and some of them, read as a whole and in part.
fn layouts() -> Vec<PassLayout> {
    let all: Modules = Module::ALL.into_iter().collect();
    let changes = [
        WeightChange::None,
        WeightChange::LowRank { rank: 2, modules: all },
        WeightChange::Scales { modules: Modules::SCALED },
    ];
    let prefixes = [
        (Injection::None, 0),
        (Injection::None, M),
        (Injection::Add, M),
        (Injection::Replace, M),
        (Injection::KeysValues, M),
    ];
    let mut layouts = Vec::new();
    for (weights, (injection, prefix_len)) in changes.iter().flat_map(|change| prefixes.map(|prefix| (*change, prefix)))
    {
        for (span, read_rows) in
            [(span(0, 3), None), (span(0, 3), Some(vec![1, 5, 13])), (span(1, 3), None), (span(2, 3), None)]
        {
            let prefix_len = prefix_len as u32;
            layouts.push(PassLayout { span, lengths: vec![5, 2, 7], prefix_len, injection, weights, read_rows });
        }
    }
    layouts
}

fn pass<'a>(stack: &BlockStack, layout: &'a PassLayout) -> ForwardPass<'a> {
    let values = layout.span.len() * layout.block_values(stack.config().block_widths());
    ForwardPass {
        layout,
        text: noise(100, layout.tokens() * D),
        prefix: layout.carries_prefix().then(|| noise(101, M * D)),
        tables: layout.has_tables().then(|| noise(102, values)),
    }
}

fn output_grads(layout: &PassLayout) -> OutputGrads {
    OutputGrads {
        text: noise(103, layout.output_rows() * D),
        prefix: layout.returns_prefix().then(|| noise(104, M * D)),
    }
}

#[test]
fn forward_and_backward_of_a_divided_stack_are_those_of_one() {
    let (whole, divided) = whole_and_divided();
    for (layout, divided) in layouts().iter().flat_map(|layout| divided.iter().map(move |stack| (layout, stack))) {
        for (keep, text_grad) in [(Keep::Everything, true), (Keep::Everything, false), (Keep::Inputs, true)] {
            let [one, several] = [&whole, divided].map(|stack| {
                let ForwardOutput { text, prefix, stash, .. } = stack.forward(pass(stack, layout), keep).unwrap();
                let stash = stash.unwrap();
                let bytes = stash.bytes();
                let grads = stack.backward(stash, output_grads(layout), text_grad).unwrap();
                (text, prefix, bytes, grads)
            });
            assert_eq!(several, one, "{divided:?}, {layout:?}, {keep:?}, {text_grad}");
        }
        assert_eq!(divided.stash_bytes_estimate(layout), whole.stash_bytes_estimate(layout));
        assert_eq!(divided.input_bytes_estimate(layout), whole.input_bytes_estimate(layout));
        assert_eq!(divided.lasting_table_bytes(layout), whole.lasting_table_bytes(layout));
        assert!(divided.activation_bytes_estimate(layout) <= whole.activation_bytes_estimate(layout));
        let of_places: u64 = divided.places().map(|place| place.stash_bytes_estimate(layout)).sum();
        assert_eq!(of_places, whole.stash_bytes_estimate(layout));
    }
    let sizes = [StepSize { new: 2, kept: 5, weights: WeightChange::None }];
    assert!(divided.iter().all(|stack| stack.step_bytes_estimate(&sizes) == whole.step_bytes_estimate(&sizes)));
    assert!(divided.iter().all(|stack| stack.weight_bytes() == whole.weight_bytes()));
}

#[test]
fn keys_and_values_of_a_prefix_come_from_every_device() {
    let (whole, divided) = whole_and_divided();
    for (layout, divided) in layouts().iter().flat_map(|layout| divided.iter().map(move |stack| (layout, stack))) {
        if layout.prefix_len == 0 {
            continue;
        }
        let run = |stack: &BlockStack| stack.forward_with_keys_values(pass(stack, layout)).unwrap();
        let (one, several) = (run(&whole), run(divided));
        assert_eq!((several.text, several.prefix, several.keys_values), (one.text, one.prefix, one.keys_values));
    }
}

#[test]
fn sessions_of_a_divided_stack_are_those_of_one() {
    let (whole, divided) = whole_and_divided();
    for (layout, divided) in layouts().iter().flat_map(|layout| divided.iter().map(move |stack| (layout, stack))) {
        let run = |stack: &BlockStack| {
            let ForwardPass { text, prefix: hidden, tables, .. } = pass(stack, layout);
            let tables = tables.map(|values| stack.upload_tables(layout, &values).unwrap());
            let meter = KvMeter::default();
            let mut cache = stack.cache(layout.span, 64, &meter).unwrap();
            let mut seen = Vec::new();
            if layout.prefix_len > 0 {
                let (rows, injection) = (M, layout.injection);
                let prefix = CachedPrefix { rows, injection, hidden, tables: tables.as_ref() };
                seen.extend(stack.begin(prefix, &mut cache).unwrap().into_iter().flatten());
            }
            let mut add = |cache: &mut _, text: &[f32], read: Option<&[u32]>| {
                let mut rows = [CachedRows { cache, rows: text.len() / D, tables: tables.as_ref() }];
                seen.extend(stack.step(text.to_vec(), &mut rows, read).unwrap());
            };
            add(&mut cache, &text[..8 * D], Some(&[3, 7]));
            // Two that begin alike, of which one goes back.
            let mut fork = cache.clone();
            add(&mut fork, &noise(105, 2 * D), None);
            fork.truncate(cache.len());
            add(&mut cache, &text[8 * D..], None);
            add(&mut fork, &text[8 * D..10 * D], None);
            let lens = (cache.len(), cache.shortest(), fork.len(), meter.bytes());
            (seen, lens)
        };
        assert_eq!(run(divided), run(&whole), "{divided:?}, {layout:?}");
    }
}

fn add(
    stack: &BlockStack,
    cache: &mut KvCache,
    text: Vec<f32>,
    tables: Option<&SpanTables>,
) -> Result<Vec<f32>, PassError> {
    let rows = text.len() / D;
    stack.step(text, &mut [CachedRows { cache, rows, tables }], None)
}

#[test]
fn a_step_that_fails_on_the_last_device_leaves_no_trace_on_the_others() {
    for division in fixture::divisions() {
        let stack = Checkpoint::open(fixture::single().path()).unwrap().load_division(&division, None).unwrap();
        let weights = WeightChange::Scales { modules: Modules::SCALED };
        let (lengths, prefix_len, injection) = (vec![1], 0, Injection::None);
        let layout = PassLayout { span: span(0, 3), lengths, prefix_len, injection, weights, read_rows: None };
        // Only what the last block is given cannot be computed with.
        let of_block = layout.block_values(stack.config().block_widths());
        let values = [vec![1.0; 2 * of_block], vec![f32::INFINITY; of_block]].concat();
        let broken = stack.upload_tables(&layout, &values).unwrap();
        let [mut cache, mut fresh] = [(); 2].map(|()| stack.cache(span(0, 3), 64, &KvMeter::default()).unwrap());
        for cache in [&mut cache, &mut fresh] {
            add(&stack, cache, noise(1, 2 * D), None).unwrap();
        }
        let failed = add(&stack, &mut cache, noise(3, D), Some(&broken));
        assert!(matches!(failed, Err(PassError::BlockNotFinite(2))), "{division:?}: {failed:?}");
        assert_eq!(cache.len(), 2);
        let [after, expected] = [&mut cache, &mut fresh].map(|cache| add(&stack, cache, noise(2, D), None).unwrap());
        assert_eq!(after, expected, "{division:?}");
    }
}

#[test]
fn what_was_divided_otherwise_is_refused() {
    let (whole, divided) = whole_and_divided();
    for (made, used) in [(&whole, &divided[0]), (&divided[0], &whole), (&divided[0], &divided[1])] {
        let layout = PassLayout {
            span: span(0, 3),
            lengths: vec![2],
            prefix_len: 0,
            injection: Injection::None,
            weights: WeightChange::Scales { modules: Modules::SCALED },
            read_rows: None,
        };
        let stash = made.forward(pass(made, &layout), Keep::Everything).unwrap().stash.unwrap();
        assert!(matches!(used.backward(stash, output_grads(&layout), true), Err(PassError::ForeignStash)));
        let mut cache = made.cache(span(0, 3), 64, &KvMeter::default()).unwrap();
        let rows = &mut [CachedRows { cache: &mut cache, rows: 1, tables: None }];
        assert!(matches!(used.step(vec![0.0; D], rows, None), Err(PassError::ForeignCache)));
        let tables = made.upload_tables(&layout, &pass(made, &layout).tables.unwrap()).unwrap();
        let mut own = used.cache(span(0, 3), 64, &KvMeter::default()).unwrap();
        let rows = &mut [CachedRows { cache: &mut own, rows: 1, tables: Some(&tables) }];
        assert!(matches!(used.step(vec![0.0; D], rows, None), Err(PassError::ForeignCache)));
        // Where both have one block in the same place, what was made by one serves the other.
        let last = PassLayout { span: span(2, 3), weights: WeightChange::None, ..layout };
        let stash = made.forward(pass(made, &last), Keep::Everything).unwrap().stash.unwrap();
        used.backward(stash, output_grads(&last), true).unwrap();
    }
}

#[test]
fn blocks_that_stay_on_their_device_are_shared() {
    let dir = fixture::single();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let (cpu, reference) = (Device::cpu(), Device::reference());
    let division = divided_as(&[(1, cpu.clone()), (1, cpu.clone()), (1, reference)]);
    let all = checkpoint.load_division(&division, None).unwrap();
    let first = all.part(span(0, 2)).unwrap();
    assert_eq!((first.span(), first.places().count()), (span(0, 2), 2));
    assert_eq!(all.part(span(1, 2)).unwrap().division(), Division::whole(span(1, 2), division.parts()[1].1.clone()));
    let moved = checkpoint.load_span_beside(span(1, 3), &first).unwrap();
    assert_eq!(moved.span(), span(1, 3));
    let block = |stack: &BlockStack, number| {
        let blocks = stack.parts.iter().filter_map(|part| Host::borrow(&part.blocks));
        blocks.filter_map(|blocks| blocks.block(number).cloned()).next()
    };
    assert!(Arc::ptr_eq(&block(&moved, 1).unwrap(), &block(&all, 1).unwrap()));
    assert!(block(&all, 2).is_none() && block(&moved, 2).is_some(), "on the device whose block left");
}
