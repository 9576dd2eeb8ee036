use petals_protocol::{Injection, Module, Modules, PassLayout, Span, WeightChange};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::device::{Device, Dtype};
use crate::engine::shapes::PAGE_TOKENS;
use crate::fixture::{self, noise};
use crate::stack::{ForwardPass, Keep};

mod narrow;
mod windows;

const D: usize = 12;
const M: usize = 3;

fn stack_on(device: &Device) -> BlockStack {
    let dir = fixture::single();
    Checkpoint::open(dir.path()).unwrap().load_span(span(), device, Dtype::F32).unwrap()
}

/// One on every engine, and some that are divided.
fn stacks() -> Vec<BlockStack> {
    let checkpoint = Checkpoint::open(fixture::single().path()).unwrap();
    fixture::divisions().iter().map(|division| checkpoint.load_division(division, None).unwrap()).collect()
}

fn span() -> Span {
    Span::new(0, 3).unwrap()
}

/// Hidden states of a sequence of `tokens`.
fn text(seed: u64, tokens: usize) -> Vec<f32> {
    noise(seed, tokens * D)
}

/// What a sequence begins with.
#[derive(Clone, Copy)]
struct Beginning {
    prefix_len: u32,
    injection: Injection,
    weights: WeightChange,
}

impl Beginning {
    fn layout(self, tokens: usize) -> PassLayout {
        let Self { prefix_len, injection, weights } = self;
        PassLayout { span: span(), lengths: vec![tokens as u32], prefix_len, injection, weights, read_rows: None }
    }

    fn hidden(self) -> Option<Vec<f32>> {
        self.layout(1).carries_prefix().then(|| noise(101, M * D))
    }

    fn values(self, stack: &BlockStack) -> Option<Vec<f32>> {
        let layout = self.layout(1);
        let values = layout.block_values(stack.config().block_widths());
        layout.has_tables().then(|| noise(102, span().len() * values))
    }

    fn tables(self, stack: &BlockStack) -> Option<SpanTables> {
        self.values(stack).map(|values| stack.upload_tables(&self.layout(1), &values).unwrap())
    }

    /// Begins a sequence. Gives back the prefix behind the span.
    fn begin(self, stack: &BlockStack, tables: Option<&SpanTables>, cache: &mut KvCache) -> Option<Vec<f32>> {
        let Self { prefix_len, injection, .. } = self;
        if prefix_len == 0 {
            return None;
        }
        stack
            .begin(CachedPrefix { rows: prefix_len as usize, injection, hidden: self.hidden(), tables }, cache)
            .unwrap()
    }
}

/// What one forward gives for the whole sequence behind the prefix.
fn one_shot(stack: &BlockStack, beginning: Option<Beginning>, text: &[f32]) -> (Vec<f32>, Option<Vec<f32>>) {
    let beginning = beginning.unwrap_or(bare());
    let layout = beginning.layout(text.len() / D);
    let (prefix, tables) = (beginning.hidden(), beginning.values(stack));
    let output = stack.forward(ForwardPass { layout: &layout, text: text.to_vec(), prefix, tables }, Keep::Nothing);
    let output = output.unwrap();
    (output.text, output.prefix)
}

fn add(stack: &BlockStack, cache: &mut KvCache, text: &[f32]) -> Vec<f32> {
    let rows = text.len() / D;
    stack.step(text.to_vec(), &mut [CachedRows { cache, rows, tables: None }], None).unwrap()
}

fn bare() -> Beginning {
    Beginning { prefix_len: 0, injection: Injection::None, weights: WeightChange::None }
}

fn prefix(injection: Injection) -> Beginning {
    Beginning { prefix_len: M as u32, injection, ..bare() }
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    let worst = got.iter().zip(expected).fold(0.0f32, |a, (g, e)| a.max((g - e).abs()));
    assert!(worst <= 1e-5 * largest, "{what}: off by {:e}", worst / largest);
}

#[test]
fn steps_of_any_size_equal_one_forward() {
    for stack in stacks() {
        let text = text(1, 2 * PAGE_TOKENS + 37);
        let (expected, _) = one_shot(&stack, None, &text);
        for sizes in [vec![165], vec![1; 165], vec![70, 1, 1, 0, 62, 30, 1]] {
            let mut cache = stack.cache(span(), 64, &KvMeter::default()).unwrap();
            let mut got = Vec::new();
            for size in sizes {
                let at = cache.len() * D;
                got.extend(add(&stack, &mut cache, &text[at..at + size * D]));
            }
            assert_close("all rows", &got, &expected);
        }
    }
}

/// Every kind of prefix, with and without a change of the weights.
fn beginnings() -> Vec<Beginning> {
    let injections = [Injection::None, Injection::Add, Injection::Replace, Injection::KeysValues].map(prefix);
    let all: Modules = Module::ALL.into_iter().collect();
    let changes = [
        WeightChange::None,
        WeightChange::LowRank { rank: 2, modules: all },
        WeightChange::Scales { modules: Modules::SCALED },
    ];
    let with = |beginning: Beginning| changes.map(|weights| Beginning { weights, ..beginning });
    injections.into_iter().chain([bare()]).flat_map(with).collect()
}

#[test]
fn a_beginning_of_every_kind_counts_as_in_one_forward() {
    for (stack, beginning) in stacks().iter().flat_map(|stack| beginnings().into_iter().map(move |b| (stack, b))) {
        let text = text(2, 11);
        let (expected, behind) = one_shot(stack, Some(beginning), &text);
        let mut cache = stack.cache(span(), 64, &KvMeter::default()).unwrap();
        let tables = beginning.tables(stack);
        let hidden = beginning.begin(stack, tables.as_ref(), &mut cache);
        assert_eq!(hidden.is_some(), behind.is_some());
        if let (Some(hidden), Some(behind)) = (hidden, behind) {
            assert_close("the prefix", &hidden, &behind);
        }
        let mut got = Vec::new();
        for part in [&text[..4 * D], &text[4 * D..]] {
            let rows = part.len() / D;
            let mut sequence = [CachedRows { cache: &mut cache, rows, tables: tables.as_ref() }];
            got.extend(stack.step(part.to_vec(), &mut sequence, None).unwrap());
        }
        assert_close("the text", &got, &expected);
    }
}

#[test]
fn sequences_with_different_tables_in_one_batch_equal_the_same_alone() {
    for stack in stacks() {
        let modules = [Module::Query, Module::Value, Module::Up].into_iter().collect();
        let rank = |rank| Beginning { weights: WeightChange::LowRank { rank, modules }, ..bare() };
        let scaled = Beginning { weights: WeightChange::Scales { modules: Modules::SCALED }, ..bare() };
        let beginnings = [rank(1), rank(1), bare(), scaled, rank(3)];
        let own = [rank(1), scaled, rank(3)].map(|beginning| beginning.tables(&stack));
        let tables = [&own[0], &own[0], &None, &own[1], &own[2]];
        let texts: Vec<_> =
            [7, 2, 3, 1, 5].into_iter().enumerate().map(|(n, rows)| text(10 + n as u64, rows)).collect();
        let mut caches: Vec<_> = texts.iter().map(|_| stack.cache(span(), 64, &KvMeter::default()).unwrap()).collect();
        let mut batch: Vec<_> = (caches.iter_mut().zip(&texts).zip(tables))
            .map(|((cache, text), tables)| CachedRows { cache, rows: text.len() / D, tables: tables.as_ref() })
            .collect();
        // Some sequences have no row among those that are read of the last block.
        let read = [0, 6, 8, 12, 17];
        let got = stack.step(texts.concat(), &mut batch, Some(&read)).unwrap();
        let alone: Vec<f32> =
            beginnings.iter().zip(&texts).flat_map(|(b, text)| one_shot(&stack, Some(*b), text).0).collect();
        let expected: Vec<f32> = read.iter().flat_map(|&row| &alone[row as usize * D..][..D]).copied().collect();
        assert_close("the rows that are read", &got, &expected);
    }
}

#[test]
fn sequences_of_one_batch_do_not_see_each_other() {
    for stack in stacks() {
        let texts = [text(3, 70), text(4, 3), text(5, 20)];
        let meter = KvMeter::default();
        let mut shared = stack.cache(span(), 64, &meter).unwrap();
        let tables = prefix(Injection::Replace).tables(&stack);
        prefix(Injection::Replace).begin(&stack, tables.as_ref(), &mut shared);
        let mut caches = [shared.clone(), stack.cache(span(), 64, &meter).unwrap(), shared.clone()];
        let expected: Vec<_> = [Some(prefix(Injection::Replace)), None, Some(prefix(Injection::Replace))]
            .iter()
            .zip(&texts)
            .map(|(prefix, text)| one_shot(&stack, *prefix, text).0)
            .collect();
        // First all but the last row of each, of which one is read, then the last rows together.
        let before = |n: usize| texts[n].len() - D;
        let first: Vec<f32> = (0..3).flat_map(|n| texts[n][..before(n)].to_vec()).collect();
        let mut batch: Vec<_> = caches
            .iter_mut()
            .enumerate()
            .map(|(n, cache)| CachedRows { cache, rows: before(n) / D, tables: None })
            .collect();
        let read = stack.step(first, &mut batch, Some(&[5, 70])).unwrap();
        assert_close("row 5 of the first", &read[..D], &expected[0][5 * D..6 * D]);
        assert_close("row 1 of the second", &read[D..], &expected[1][D..2 * D]);
        let last: Vec<f32> = (0..3).flat_map(|n| texts[n][before(n)..].to_vec()).collect();
        let mut batch: Vec<_> = caches.iter_mut().map(|cache| CachedRows { cache, rows: 1, tables: None }).collect();
        let got = stack.step(last, &mut batch, None).unwrap();
        for (n, got) in got.chunks_exact(D).enumerate() {
            assert_close("the last row", got, &expected[n][before(n)..]);
        }
        assert_eq!(shared.len(), M, "the shared beginning is as it was");
    }
}

#[test]
fn rolled_back_positions_and_failed_steps_leave_no_trace() {
    for stack in stacks() {
        let text = text(6, 90);
        let (expected, _) = one_shot(&stack, None, &text);
        let mut cache = stack.cache(span(), 64, &KvMeter::default()).unwrap();
        add(&stack, &mut cache, &text[..80 * D]);
        let fork = cache.clone();
        add(&stack, &mut cache, &noise(7, 10 * D));
        cache.truncate(10);
        add(&stack, &mut cache, &noise(8, 60 * D));
        cache.truncate(10);
        let broken = vec![f32::NAN; D];
        assert!(matches!(
            stack.step(broken, &mut [CachedRows { cache: &mut cache, rows: 1, tables: None }], None),
            Err(PassError::BlockNotFinite(0))
        ));
        assert_eq!(cache.len(), 10);
        let got = add(&stack, &mut cache, &text[10 * D..]);
        assert_close("after the way back", &got, &expected[10 * D..]);
        let mut fork = fork;
        assert_close("the fork", &add(&stack, &mut fork, &text[80 * D..]), &expected[80 * D..]);
    }
}

#[test]
fn memory_is_counted_by_pages_and_given_back() {
    let stack = stack_on(&Device::cpu());
    let (meter, page) = (KvMeter::default(), stack.kv_page_bytes(span()));
    let mut cache = stack.cache(span(), 64, &meter).unwrap();
    assert_eq!(meter.bytes(), 0);
    add(&stack, &mut cache, &text(9, PAGE_TOKENS));
    assert_eq!(meter.bytes(), page);
    add(&stack, &mut cache, &text(9, 1));
    let mut fork = cache.clone();
    assert_eq!(meter.bytes(), 2 * page, "a fork shares");
    add(&stack, &mut fork, &text(9, 1));
    assert_eq!(meter.bytes(), 3 * page, "and copies the page that it writes to");
    fork.truncate(PAGE_TOKENS);
    assert_eq!(meter.bytes(), 2 * page);
    drop((cache, fork));
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn memory_of_the_reference_is_counted_by_pages_and_shared_as_a_whole() {
    let stack = stack_on(&Device::reference());
    let (meter, page) = (KvMeter::default(), stack.kv_page_bytes(span()));
    let mut cache = stack.cache(span(), 64, &meter).unwrap();
    add(&stack, &mut cache, &text(9, PAGE_TOKENS + 1));
    assert_eq!(meter.bytes(), 2 * page);
    let mut fork = cache.clone();
    assert_eq!(meter.bytes(), 2 * page, "a fork shares");
    add(&stack, &mut fork, &text(9, 1));
    assert_eq!(meter.bytes(), 4 * page, "and copies what it writes to");
    fork.truncate(PAGE_TOKENS);
    assert_eq!(meter.bytes(), 3 * page);
    fork.truncate(0);
    assert_eq!(meter.bytes(), 2 * page);
    drop((cache, fork));
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn caches_and_stashes_of_another_device_are_refused() {
    let [host, reference] = [Device::cpu(), Device::reference()].map(|device| stack_on(&device));
    let mut cache = reference.cache(span(), 64, &KvMeter::default()).unwrap();
    let foreign = host.step(vec![0.0; D], &mut [CachedRows { cache: &mut cache, rows: 1, tables: None }], None);
    assert!(matches!(foreign, Err(PassError::ForeignCache)));
    let layout = bare().layout(2);
    let pass = ForwardPass { layout: &layout, text: text(1, 2), prefix: None, tables: None };
    let stash = reference.forward(pass, Keep::Everything).unwrap().stash.unwrap();
    let grads = crate::stack::OutputGrads { text: text(2, 2), prefix: None };
    assert!(matches!(host.backward(stash, grads, true), Err(PassError::ForeignStash)));
}

#[test]
fn impossible_steps_are_refused() {
    let stack = stack_on(&Device::cpu());
    let mut cache = stack.cache(span(), 64, &KvMeter::default()).unwrap();
    let mut step = |text: Vec<f32>, rows, read: Option<&[u32]>| {
        stack.step(text, &mut [CachedRows { cache: &mut cache, rows, tables: None }], read)
    };
    assert!(matches!(step(vec![0.0; D], 2, None), Err(PassError::Size { .. })));
    assert!(matches!(step(vec![0.0; D], 1, Some(&[1])), Err(PassError::Rows)));
    assert!(matches!(step(vec![0.0; 2 * D], 2, Some(&[1, 0])), Err(PassError::Rows)));
    assert!(matches!(step(vec![0.0; 301 * D], 301, None), Err(PassError::TooLong { length: 301, max: 300 })));
    assert!(matches!(stack.cache(Span::new(2, 4).unwrap(), 64, &KvMeter::default()), Err(PassError::Span { .. })));
    let mut part = stack.cache(Span::new(1, 3).unwrap(), 64, &KvMeter::default()).unwrap();
    let mut both = [
        CachedRows { cache: &mut cache, rows: 0, tables: None },
        CachedRows { cache: &mut part, rows: 1, tables: None },
    ];
    assert!(matches!(stack.step(vec![0.0; D], &mut both, None), Err(PassError::Span { .. })));
    assert!(matches!(
        stack.begin(CachedPrefix { rows: M, injection: Injection::Add, hidden: None, tables: None }, &mut part),
        Err(PassError::Missing(_))
    ));
}
