//! What a mixture of experts asks of its device.

use serde_json::json;

use super::counts::{counted, loaded};
use super::*;
use crate::stack::CachedRows;

const BLOCKS: usize = 3;
const D: usize = 64;
const WIDTH: usize = 96;
const EXPERTS: usize = 8;
const USED: usize = 2;

#[test]
fn a_step_through_a_mixture_waits_once_and_reads_the_experts_that_it_needs() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let Ok(device) = "vulkan".parse() else { return println!("skipped: no Vulkan device") };
        let config = json!({
            "model_type": "mixtral", "vocab_size": 40, "hidden_size": D, "intermediate_size": WIDTH,
            "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": EXPERTS,
            "num_experts_per_tok": USED, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "sliding_window": null,
        });
        let stack = loaded(&device, dtype, &config, |name| {
            let mut shapes = vec![(name("block_sparse_moe.gate"), vec![EXPERTS, D])];
            for expert in 0..EXPERTS {
                let of_expert = |weight: &str| name(&format!("block_sparse_moe.experts.{expert}.{weight}"));
                shapes.extend([(of_expert("w1"), vec![WIDTH, D]), (of_expert("w3"), vec![WIDTH, D])]);
                shapes.push((of_expert("w2"), vec![D, WIDTH]));
            }
            shapes
        });
        let meter = KvMeter::default();
        for batch in [1, 16] {
            let mut caches: Vec<_> = (0..batch).map(|_| stack.cache(stack.span(), 512, &meter).unwrap()).collect();
            let mut step = |rows: usize| {
                let mut sequences: Vec<CachedRows<'_>> =
                    caches.iter_mut().map(|cache| CachedRows { cache, rows, tables: None }).collect();
                stack.step(noise(1, batch * rows * D), &mut sequences, None).unwrap();
            };
            step(40);
            let ((), counted) = counted(&stack, || step(1));
            println!("{dtype}, {batch} sequences: {counted:?}");
            // Router, choice, insides, outputs and their sum, where a dense block has two products.
            assert!(counted.launches <= 13 * BLOCKS as u64, "{dtype}, {batch}: {} launches", counted.launches);
            assert_eq!((counted.syncs, counted.uploads), (1, 3), "{dtype}, {batch}");
            let caches = batch as u64 * 41 * stack.kv_page_bytes(stack.span()) / crate::PAGE_TOKENS as u64;
            let of_expert = (3 * D * WIDTH * dtype.bytes(1) as usize) as u64;
            let unused = (BLOCKS * EXPERTS.saturating_sub(batch * USED)) as u64 * of_expert;
            let needed = stack.weight_bytes() - unused + caches;
            assert!(
                counted.read as f64 <= 1.15 * needed as f64,
                "{dtype}, {batch}: {} read, {needed} needed",
                counted.read
            );
        }
    }
}
