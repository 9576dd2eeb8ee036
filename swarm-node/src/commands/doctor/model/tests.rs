use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::commands::events::{CheckStatus, NodeEvent};

fn config(changes: Value) -> ModelConfig {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config.to_string()).unwrap()
}

fn some_fit() -> BlocksThatFit {
    BlocksThatFit {
        device: "cpu".into(),
        dtype: "f32".into(),
        of: 6,
        blocks: 4,
        blocks_in_less: vec![("bf16".into(), 5), ("int8".into(), 6), ("int4".into(), 6)],
        experts_may_stay_in_files: false,
        block_bytes: 3 << 20,
        weight_room: 13 << 20,
        kv_bytes: 1 << 20,
        kv_tokens: 512,
        stash_bytes: 1 << 19,
        pass_bytes: 1 << 20,
        request_bytes: 1 << 19,
    }
}

/// Weights of attention and norms of [`config`]: matrices, then values that stay f32.
const ATTENTION: [u64; 2] = [64 * (64 + 32 + 32 + 64), 2 * 64];

#[test]
fn a_dense_block_has_all_of_its_weights_active() {
    let kinds = kinds(&config(json!({})), KvDtype::F32);
    let [dense] = kinds.as_slice() else { panic!("{kinds:?}") };
    let [matrices, vectors] = [ATTENTION[0] + 3 * 64 * 96, ATTENTION[1]];
    let expected = [("f32", 64), ("bf16", 32), ("f16", 32), ("int8", 17), ("int4", 9)].map(|(dtype, half_bits)| {
        let bytes = matrices * half_bits / 16 + vectors * 4;
        BlockBytes { dtype: dtype.into(), bytes, active_bytes: bytes }
    });
    assert_eq!((dense.blocks, dense.experts, dense.window), (6, None, None));
    assert_eq!(dense.weights, expected);
    // Two key heads of 16, keys and values, f32.
    assert_eq!((dense.cache_token_bytes, dense.cache_bytes), (2 * 2 * 16 * 4, 512 * 2 * 2 * 16 * 4));
}

#[test]
fn of_a_mixture_a_token_meets_the_experts_that_it_goes_through() {
    let kinds = kinds(
        &config(json!({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2})),
        KvDtype::F32,
    );
    let [mixture] = kinds.as_slice() else { panic!("{kinds:?}") };
    let (one, router) = (3 * 64 * 96, 64 * 8);
    let bytes = |experts: u64| 4 * (ATTENTION[0] + ATTENTION[1] + router + experts * one);
    assert_eq!((mixture.experts, mixture.experts_used), (Some(8), Some(2)));
    assert_eq!((mixture.weights[0].bytes, mixture.weights[0].active_bytes), (bytes(8), bytes(2)));
}

#[test]
fn a_shared_expert_is_met_by_all_and_dense_blocks_are_a_kind_of_their_own() {
    let experts = json!({
        "model_type": "qwen2_moe", "qkv_bias": false, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48, "mlp_only_layers": [0, 3],
    });
    let kinds = kinds(&config(experts), KvDtype::F32);
    let [dense, mixture] = kinds.as_slice() else { panic!("{kinds:?}") };
    assert_eq!((dense.blocks, mixture.blocks, dense.experts), (2, 4, None));
    let bytes = |experts: u64| 4 * (ATTENTION[0] + ATTENTION[1] + 64 * 6 + 64 + 3 * 64 * (48 + experts * 32));
    assert_eq!((mixture.weights[0].bytes, mixture.weights[0].active_bytes), (bytes(6), bytes(2)));
    assert_eq!(dense.weights[0].bytes, 4 * (ATTENTION[0] + ATTENTION[1] + 3 * 64 * 96));
}

#[test]
fn windows_make_kinds_and_keep_less() {
    let gemma = json!({"model_type": "gemma2", "head_dim": 16, "sliding_window": 128, "max_position_embeddings": 8192});
    let needs = needs(&config(gemma), some_fit(), KvDtype::F32);
    let windows: Vec<_> = needs.kinds.iter().map(|kind| (kind.blocks, kind.window)).collect();
    assert_eq!(windows, [(3, Some(128)), (3, None)]);
    let [sliding, full] = &needs.kinds[..] else { panic!("{needs:?}") };
    let all = 8192 * 2 * 2 * 16 * 4;
    assert_eq!(
        (sliding.cache_bytes_without_window, full.cache_bytes_without_window, full.cache_bytes),
        (all, all, all)
    );
    assert!(sliding.cache_bytes < all / 4, "{sliding:?}");
    let text = needs.to_string();
    assert!(text.contains("3 of ") && text.contains("with a window of 128 tokens"), "{text}");
    assert!(text.contains("(8192 tokens)") && text.contains("in all 6, for which windows save "), "{text}");
}

#[test]
fn what_a_model_needs_is_told_to_people_and_to_scripts() {
    let needs = needs(&config(json!({"model_type": "mixtral"})), some_fit(), KvDtype::F32);
    let text = needs.to_string();
    assert!(text.contains("mixtral, checked against MixtralForCausalLM of transformers 4.57.1"), "{text}");
    assert!(text.contains("2 of 8 experts"), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok    ")), "{text}");
    let event = serde_json::to_value(NodeEvent::ModelNeeds(needs)).unwrap();
    assert_eq!(event["event"], "model_needs");
    assert_eq!((&event["family"], &event["kinds"][0]["experts_used"]), (&json!("mixtral"), &json!(2)));
    assert_eq!((&event["kinds"][0]["weights"][1]["dtype"], &event["fit"]["blocks"]), (&json!("bf16"), &json!(4)));
}

#[test]
fn blocks_fit_as_serve_counts_them() {
    assert_eq!([tokens(1000, 100), tokens(1000, 0)], [10 * PAGE_TOKENS as u64, 0]);
    let fits = |fit: BlocksThatFit, changes: Value| memory(&needs(&config(changes), fit, KvDtype::F32));
    let told = fits(some_fit(), json!({})).to_string();
    assert!(
        told.contains("13.0 MiB for weights: 4 of 6 blocks fit in f32, 3.0 MiB each (5 in bf16, 6 in int8);"),
        "{told}"
    );
    assert!(told.contains("1.0 MiB for sessions (512 tokens)"), "{told}");
    let mixed = json!({"model_type": "qwen3_moe", "decoder_sparse_step": 2});
    assert!(fits(some_fit(), mixed).detail.contains("3.0 MiB each on average"));
    let none = fits(BlocksThatFit { blocks: 0, ..some_fit() }, json!({}));
    assert_eq!(none.status, CheckStatus::Fail);
    let remedy = none.remedy.unwrap();
    assert!(remedy.starts_with("serve with --dtype bf16; or close") && !remedy.contains("--blocks"), "{remedy}");
    let mixture = BlocksThatFit { experts_may_stay_in_files: true, ..some_fit() };
    assert!(fits(mixture.clone(), json!({})).detail.contains("; with --blocks more"));
    let none = fits(BlocksThatFit { blocks: 0, blocks_in_less: Vec::new(), ..mixture.clone() }, json!({}));
    assert!(none.remedy.unwrap().starts_with("say which blocks (--blocks)"));
    assert!(!fits(BlocksThatFit { blocks: 6, ..mixture }, json!({})).detail.contains("--blocks"));
}

#[test]
fn every_family_was_checked_against_a_class_of_the_oracle() {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle");
    let scripts = std::fs::read_dir(&oracle).unwrap().map(|entry| entry.unwrap().path());
    let families = scripts.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("families"));
    let models: String = families.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    for family in ModelConfig::families() {
        let class = CHECKED.iter().find(|(checked, _)| *checked == family).map(|(_, class)| *class);
        let class = class.unwrap_or_else(|| panic!("`{family}`: note what it was checked against in CHECKED"));
        assert!(models.contains(&format!("model_class={class}")), "`{family}`: tests/oracle has no {class}");
    }
    let versions = std::fs::read_to_string(oracle.join("requirements.txt")).unwrap();
    assert!(versions.contains(&REFERENCE.replace(' ', "==")), "another {REFERENCE} wrote the goldens");
}
