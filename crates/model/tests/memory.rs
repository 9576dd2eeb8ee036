//! Whether passes keep to the memory that they are estimated to take, counted by an allocator.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy takes for production code")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use petals_model::{CachedRows, Checkpoint, Device, Dtype, ForwardPass, Keep, KvMeter, OutputGrads, PAGE_TOKENS};
use petals_protocol::{Injection, PassLayout, Span};

struct Counting;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
/// Of everything that was ever allocated.
static ALL: AtomicU64 = AtomicU64::new(0);

#[allow(unsafe_code)]
// SAFETY: hands everything on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size() as u64, Relaxed).wrapping_add(layout.size() as u64);
        PEAK.fetch_max(now, Relaxed);
        ALL.fetch_add(layout.size() as u64, Relaxed);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result, and how far memory rose while `run` ran.
fn rise<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = run();
    (result, PEAK.load(Relaxed) - before)
}

fn layouts() -> Vec<PassLayout> {
    let even = PassLayout {
        span: Span::new(0, 4).unwrap(),
        lengths: vec![100; 8],
        prefix_len: 16,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let ragged = PassLayout { lengths: vec![3, 180, 2, 5, 60, 1], injection: Injection::Add, ..even.clone() };
    let many = PassLayout { lengths: vec![4; 200], injection: Injection::Replace, ..even.clone() };
    let reading = PassLayout { read_rows: Some((0..700).collect()), ..even.clone() };
    vec![even, ragged, many, reading]
}

/// Tests run side by side, but memory is counted once.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn passes_take_no_more_memory_than_estimated() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/qwen3/model");
    let checkpoint = Checkpoint::open(model).unwrap();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dtypes = [Dtype::F32, Dtype::Int8, Dtype::Int4];
    for (device, dtype) in
        [Device::cpu(), Device::reference()].iter().flat_map(|device| dtypes.map(|dtype| (device, dtype)))
    {
        let stack = checkpoint.load_span(Span::new(0, 4).unwrap(), device, dtype).unwrap();
        let d = stack.config().hidden_size;
        let layouts = layouts();
        let runs = layouts.iter().flat_map(|layout| [true, false].map(|warm| (layout, warm)));
        let kept = |run| [Keep::Everything, Keep::Inputs].map(|keep| (run, keep));
        for ((layout, warm), keep) in runs.flat_map(kept) {
            let m = layout.prefix_rows() * d;
            let text = vec![0.1; layout.tokens() * d];
            let prefix = layout.carries_prefix().then(|| vec![0.2; m]);
            let tables = layout.has_tables().then(|| vec![0.3; 4 * m]);
            let estimate = stack.activation_bytes_estimate(layout);
            let (kept, repeated) = match keep {
                Keep::Inputs => (stack.input_bytes_estimate(layout), stack.block_stash_bytes_estimate(layout)),
                _ => (stack.stash_bytes_estimate(layout), 0),
            };
            let pass = ForwardPass { layout, text, prefix, tables };
            let (output, forward) = rise(|| stack.forward(pass, keep).unwrap());
            let grads = OutputGrads { text: output.text, prefix: output.prefix };
            let stash = output.stash.unwrap();
            let (_, backward) = rise(|| stack.backward(stash, grads, true).unwrap());
            // The first pass also makes threads and the products' packing buffers.
            if !warm {
                println!(
                    "{device} {dtype}: estimate {estimate}, forward {forward} with a stash of {kept}, backward {backward}"
                );
                assert!(forward <= estimate + kept, "{layout:?}: forward took {forward} of {estimate} + {kept}");
                let estimate = estimate + repeated;
                assert!(backward <= estimate, "{layout:?}, {keep:?}: backward took {backward} of {estimate}");
            }
        }
    }
}

/// What a step of one row allocates grows with what it attends to by a score for each position, on the CPU's engine. burn's own CPU backend
/// turns keys and packs keys and values for its products, once each; if they were copied to be written to as well, that would be three times.
#[test]
fn keys_and_values_are_written_where_they_are() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/qwen3/model");
    let checkpoint = Checkpoint::open(model).unwrap();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (device, times) in [(Device::cpu(), 0.25), (Device::reference(), 2.25)] {
        let stack = checkpoint.load_span(Span::new(0, 4).unwrap(), &device, Dtype::F32).unwrap();
        let (d, longest) = (stack.config().hidden_size, stack.config().max_position_embeddings);
        let of_step = |kept: usize| {
            let mut cache = stack.cache(stack.span(), 4096, &KvMeter::default()).unwrap();
            let mut step = |rows| {
                let before = ALL.load(Relaxed);
                stack
                    .step(vec![0.1; rows * d], &mut [CachedRows { cache: &mut cache, rows, tables: None }], None)
                    .unwrap();
                ALL.load(Relaxed) - before
            };
            step(kept);
            // The first makes threads and buffers.
            step(1);
            step(1)
        };
        // Neither step begins a page.
        let (few, many) = (PAGE_TOKENS / 2, longest.min(4 * PAGE_TOKENS) - PAGE_TOKENS / 2);
        let (short, long) = (of_step(few), of_step(many));
        let kept = stack.kv_page_bytes(stack.span()) / PAGE_TOKENS as u64 * (many - few) as u64;
        println!("{device}: {short} bytes behind {few} positions, {long} behind {many}, which are {kept} more");
        let allowed = short as f64 + times * kept as f64;
        assert!((long as f64) < allowed, "{device}: {long} for {short}, {kept} more are kept");
    }
}
