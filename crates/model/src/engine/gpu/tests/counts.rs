//! How much a span asks of its device: figures that decide how fast it is, on any device.

use petals_kernels::Counted;
use petals_protocol::{Injection, PassLayout, Span};
use serde_json::json;

use super::*;
use crate::stack::{BlockStack, CachedRows, ForwardPass, Keep, OutputGrads};
use crate::{Checkpoint, fixture};

const BLOCKS: usize = 3;
const D: usize = 64;

/// Blocks as Llama has them, on the device; none if there is no device.
fn llama(dtype: Dtype) -> Option<BlockStack> {
    let device = "vulkan".parse().ok()?;
    let config = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": D, "intermediate_size": 96,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
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
        shapes.extend(["gate", "up"].map(|name| (at(&format!("mlp.{name}_proj")), vec![96, D])));
        shapes.push((at("mlp.down_proj"), vec![D, 96]));
    }
    let tensors = shapes.into_iter().enumerate().map(|(seed, (name, shape))| {
        let values = noise(seed as u64 + 1, shape.iter().product()).into_iter().map(|v| 0.3 * v).collect();
        (name, (shape, values))
    });
    let dir = fixture::model(&config, &tensors.collect());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    Some(checkpoint.load_span(Span::new(0, BLOCKS as u32).unwrap(), &device, dtype).unwrap())
}

fn counted<T>(stack: &BlockStack, act: impl FnOnce() -> T) -> (T, Counted) {
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
            assert_eq!((syncs, downloaded), (1, (batch * D * 4) as u64));
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
    let layout = |lengths| PassLayout {
        span: stack.span(),
        lengths,
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
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
        let layout = PassLayout {
            span: stack.span(),
            lengths,
            prefix_len: 0,
            injection: Injection::None,
            weights: Default::default(),
            read_rows: None,
        };
        let text = noise(1, tokens as usize * D);
        let given = ForwardPass { layout: &layout, text: text.clone(), prefix: None, tables: None };
        let (output, forward) = counted(&stack, || stack.forward(given, Keep::Everything).unwrap());
        let grads = OutputGrads { text, prefix: None };
        let (_, backward) = counted(&stack, || stack.backward(output.stash.unwrap(), grads, true).unwrap());
        println!("{tokens} rows: forward {forward:?}, backward {backward:?}");
        for counted in [forward, backward] {
            assert_eq!((counted.syncs, counted.downloaded), (1, u64::from(tokens) * D as u64 * 4));
        }
        [forward.launches, backward.launches]
    };
    let [forward, backward] = pass(vec![40, 30]);
    assert_eq!(pass(vec![90, 200, 31]), [forward, backward]);
    assert!(forward <= 12 * BLOCKS as u64 && backward <= 16 * BLOCKS as u64, "{forward} and {backward} launches");
}
