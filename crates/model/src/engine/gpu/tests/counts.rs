//! How much a span asks of its device: figures that decide how fast it is, on any device.

use petals_kernels::Counted;
use petals_protocol::{Injection, PassLayout, Span};
use serde_json::{Value, json};

use super::*;
use crate::stack::{BlockStack, CachedRows, ForwardPass, Keep, Manner, OutputGrads, PassError};
use crate::{Checkpoint, Device, fixture};

const BLOCKS: usize = 3;
const D: usize = 64;

/// Blocks as Llama has them, on the device; none if there is no device.
fn llama(dtype: Dtype) -> Option<BlockStack> {
    Some(llama_on(&"vulkan".parse().ok()?, dtype, &[]))
}

/// The same on any device; the MLP's output of some blocks is much too large.
fn llama_on(device: &Device, dtype: Dtype, broken: &[usize]) -> BlockStack {
    let config = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": D, "intermediate_size": 96,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    let factor = |name: &str| {
        let is_broken = broken.iter().any(|block| name == format!("model.layers.{block}.mlp.down_proj.weight"));
        if is_broken { 1e25 } else { 0.3 }
    };
    loaded_with(device, dtype, &config, factor, |name| {
        let inside = ["gate", "up"].map(|side| (name(&format!("mlp.{side}_proj")), vec![96, D]));
        inside.into_iter().chain([(name("mlp.down_proj"), vec![D, 96])]).collect()
    })
}

/// The three blocks of a model of Llama's kind, whose networks have matrices of these names and shapes, given how matrices of a block are called.
pub(super) fn loaded(
    device: &Device,
    dtype: Dtype,
    config: &Value,
    network: impl Fn(&dyn Fn(&str) -> String) -> Vec<(String, Vec<usize>)>,
) -> BlockStack {
    loaded_with(device, dtype, config, |_| 0.3, network)
}

/// The same with values that are at most a factor, which goes by the matrix.
fn loaded_with(
    device: &Device,
    dtype: Dtype,
    config: &Value,
    factor: impl Fn(&str) -> f32,
    network: impl Fn(&dyn Fn(&str) -> String) -> Vec<(String, Vec<usize>)>,
) -> BlockStack {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![40, D]),
        ("model.norm.weight".to_owned(), vec![D]),
        ("lm_head.weight".to_owned(), vec![40, D]),
    ];
    for block in 0..BLOCKS {
        let at = |name: &str| format!("model.layers.{block}.{name}.weight");
        shapes.extend(["input_layernorm", "post_attention_layernorm"].map(|name| (at(name), vec![D])));
        shapes.extend(["q", "o"].map(|name| (at(&format!("self_attn.{name}_proj")), vec![D, D])));
        shapes.extend(["k", "v"].map(|name| (at(&format!("self_attn.{name}_proj")), vec![32, D])));
        shapes.extend(network(&at));
    }
    let tensors = shapes.into_iter().enumerate().map(|(seed, (name, shape))| {
        let factor = factor(&name);
        let values = noise(seed as u64 + 1, shape.iter().product()).into_iter().map(|v| factor * v).collect();
        (name, (shape, values))
    });
    let dir = fixture::model(config, &tensors.collect());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint.load_span(Span::new(0, BLOCKS as u32).unwrap(), device, dtype).unwrap()
}

pub(super) fn counted<T>(stack: &BlockStack, act: impl FnOnce() -> T) -> (T, Counted) {
    let counts = || stack.counts().unwrap();
    let before = counts();
    let result = act();
    (result, counts().since(before))
}

#[test]
fn a_step_has_ten_launches_a_block_waits_once_and_reads_weights_and_caches_once() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8, Dtype::Int4] {
        let Some(stack) = llama(dtype) else { return };
        let meter = KvMeter::default();
        for batch in [1, 16, 40] {
            let mut caches: Vec<_> = (0..batch).map(|_| stack.cache(stack.span(), 512, &meter).unwrap()).collect();
            let mut step = |rows: usize| {
                let mut sequences: Vec<CachedRows<'_>> =
                    caches.iter_mut().map(|cache| CachedRows { cache, rows, tables: None }).collect();
                stack.step(noise(1, batch * rows * D), &mut sequences, None).unwrap();
            };
            step(100);
            let ((), counted) = counted(&stack, || step(1));
            println!("{dtype}, {batch} sequences: {counted:?}");
            let Counted { launches, syncs, uploads, uploaded, downloaded, read } = counted;
            assert!(launches <= 10 * BLOCKS as u64, "{dtype}, {batch}: {launches} launches");
            // Beside the rows a word that says where they stopped to be finite.
            assert_eq!((syncs, downloaded), (1, (batch * D * 4 + 4) as u64));
            // Rows, angles, and what attention needs to know, however many blocks there are.
            assert_eq!(uploads, 3);
            assert!(uploaded <= (batch * (D + 16 + 40) * 4 + 2048) as u64, "{uploaded} bytes up");
            let caches = batch as u64 * 101 * stack.kv_page_bytes(stack.span()) / crate::PAGE_TOKENS as u64;
            let needed = stack.weight_bytes() + caches;
            assert!(read as f64 <= 1.15 * needed as f64, "{dtype}, {batch}: {read} bytes read, {needed} needed");
        }
    }
}

#[test]
fn a_pass_with_a_matrix_that_no_buffer_holds_is_refused_and_the_next_one_is_computed() {
    let Some(stack) = llama(Dtype::F32) else { return };
    // What a card holds in one piece may be more than this machine has.
    let Some(limit) = stack.largest_buffer().filter(|limit| *limit <= 1 << 28) else { return };
    let rows = (limit / (2 * 96 * 4) + 1) as u32;
    let layout = |lengths| plain(&stack, lengths);
    let forward = |layout: &PassLayout| {
        let text = vec![0.1; layout.tokens() * D];
        stack.forward(ForwardPass { layout, text, prefix: None, tables: None }, Keep::Nothing)
    };
    let refused = forward(&layout(vec![512; rows as usize / 512 + 1])).unwrap_err().to_string();
    assert!(refused.contains("fewer rows"), "{refused}");
    forward(&layout(vec![3])).unwrap();
}

#[test]
fn training_waits_once_a_pass_and_its_launches_do_not_depend_on_rows() {
    let Some(stack) = llama(Dtype::F32) else { return };
    let pass = |lengths: Vec<u32>| {
        let tokens: u32 = lengths.iter().sum();
        let layout = plain(&stack, lengths);
        let text = noise(1, tokens as usize * D);
        let given = ForwardPass { layout: &layout, text: text.clone(), prefix: None, tables: None };
        let (output, forward) = counted(&stack, || stack.forward(given, Keep::Everything).unwrap());
        let grads = OutputGrads { text, prefix: None };
        let (_, backward) = counted(&stack, || stack.backward(output.stash.unwrap(), grads, true).unwrap());
        println!("{tokens} rows: forward {forward:?}, backward {backward:?}");
        for counted in [forward, backward] {
            assert_eq!((counted.syncs, counted.downloaded), (1, u64::from(tokens) * D as u64 * 4 + 4));
        }
        [forward.launches, backward.launches]
    };
    let [forward, backward] = pass(vec![140, 130]);
    assert_eq!(pass(vec![90, 200, 31]), [forward, backward]);
    // Beside those of blocks one that looks at what leaves.
    let of_blocks = [forward - 1, backward - 1];
    assert!(
        of_blocks[0] <= 12 * BLOCKS as u64 && of_blocks[1] <= 16 * BLOCKS as u64,
        "{forward} and {backward} launches"
    );
}

/// Rows of a text with nothing in front.
fn plain(stack: &BlockStack, lengths: Vec<u32>) -> PassLayout {
    PassLayout {
        span: stack.span(),
        lengths,
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    }
}

#[test]
fn prompts_of_every_block_are_trained_with_one_wait() {
    let Some(stack) = llama(Dtype::F32) else { return };
    for injection in [Injection::Add, Injection::Replace] {
        let layout = PassLayout { prefix_len: 3, injection, ..plain(&stack, vec![5, 2]) };
        let prefix = layout.carries_prefix().then(|| noise(1, 3 * D));
        let (text, tables) = (noise(2, 7 * D), Some(noise(3, BLOCKS * 3 * D)));
        let given = ForwardPass { layout: &layout, text: text.clone(), prefix, tables };
        let (output, forward) = counted(&stack, || stack.forward(given, Keep::Everything).unwrap());
        let prefix = layout.returns_prefix().then(|| noise(4, 3 * D));
        let grads = OutputGrads { text, prefix };
        let (grads, backward) = counted(&stack, || stack.backward(output.stash.unwrap(), grads, true).unwrap());
        assert_eq!((forward.syncs, backward.syncs), (1, 1), "{injection:?}");
        assert_eq!(grads.tables.unwrap().len(), BLOCKS * 3 * D);
    }
}

#[test]
fn rows_that_will_be_rounded_come_back_in_half_as_many_bytes() {
    let Some(stack) = llama(Dtype::F32) else { return };
    let layout = plain(&stack, vec![200, 121]);
    let text = noise(1, 321 * D);
    let rounded = |values: &[f32]| -> Vec<f32> { values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect() };
    let pass = |manner: Manner<'_>| {
        let given = ForwardPass { layout: &layout, text: text.clone(), prefix: None, tables: None };
        let (output, forward) = counted(&stack, || stack.forward_as(given, Keep::Everything, manner).unwrap());
        let grads = OutputGrads { text: text.clone(), prefix: None };
        let act = || stack.backward_as(output.stash.unwrap(), grads, true, manner).unwrap();
        let (grads, backward) = counted(&stack, act);
        (output.text, grads.text.unwrap(), [forward.downloaded, backward.downloaded])
    };
    let (text_of, grad_of, bytes) = pass(Manner::PLAIN);
    let (text_rounded, grad_rounded, halved) = pass(Manner { rounded: true, ..Manner::PLAIN });
    assert_eq!((bytes, halved), ([321 * D as u64 * 4 + 4; 2], [321 * D as u64 * 2 + 4; 2]));
    assert!(text_rounded == rounded(&text_of) && grad_rounded == rounded(&grad_of));
}

#[test]
fn the_block_that_stops_to_be_finite_is_named() {
    let mut devices = vec![Device::cpu(), Device::reference()];
    devices.extend("vulkan".parse::<Device>());
    for (device, broken) in devices.iter().flat_map(|device| (0..BLOCKS).map(move |block| (device, block))) {
        for rows in [1, 321] {
            // One that breaks behind it changes nothing.
            let stack = llama_on(device, Dtype::F32, &[broken, (broken + 1).min(BLOCKS - 1)]);
            let layout = plain(&stack, vec![rows]);
            let text = noise(1, rows as usize * D).into_iter().map(|v| 1e8 * v).collect();
            let given = ForwardPass { layout: &layout, text, prefix: None, tables: None };
            let result = stack.forward(given, Keep::Nothing);
            // Large values that leave the last block are its client's: they can be sent, and the next server refuses them.
            let expected = if broken + 1 < BLOCKS { Some(broken as u32) } else { None };
            let named = match result {
                Err(PassError::BlockNotFinite(block)) => Some(block),
                Ok(_) => None,
                Err(other) => panic!("{device}, {rows} rows: {other}"),
            };
            assert_eq!(named, expected, "{device}, {rows} rows");
        }
    }
}
