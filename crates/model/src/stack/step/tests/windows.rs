//! Sequences of models in which some blocks see no further than a window.

use super::*;
use crate::fixture::{config, divided_as, divisions, model, tensors};
use crate::stack::Division;

const WINDOW: usize = 20;
const LONGEST: usize = 290;

/// The fixture's model with a window in the blocks 0 and 2.
fn sliding(division: &Division) -> BlockStack {
    let mut config = config();
    let layers = ["sliding_attention", "full_attention", "sliding_attention"];
    for (key, value) in [
        ("use_sliding_window", serde_json::json!(true)),
        ("sliding_window", serde_json::json!(WINDOW)),
        ("layer_types", serde_json::json!(layers)),
    ] {
        config[key] = value;
    }
    let dir = model(&config, &tensors());
    Checkpoint::open(dir.path()).unwrap().load_division(division, None).unwrap()
}

fn on_the_cpu() -> BlockStack {
    sliding(&divided_as(&[(3, Device::cpu())]))
}

fn cache(stack: &BlockStack, meter: &KvMeter) -> KvCache {
    stack.cache(span(), LONGEST, meter).unwrap()
}

#[test]
fn steps_go_back_across_the_edge_of_a_window_and_equal_one_forward() {
    for division in divisions() {
        let stack = sliding(&division);
        for beginning in [bare(), prefix(Injection::None), prefix(Injection::Replace), prefix(Injection::KeysValues)] {
            let text = text(5, LONGEST - M);
            let (expected, _) = one_shot(&stack, Some(beginning), &text);
            let tables = beginning.tables(&stack);
            let mut cache = cache(&stack, &KvMeter::default());
            beginning.begin(&stack, tables.as_ref(), &mut cache);
            let front = cache.len();
            let mut got = vec![0.0; expected.len()];
            // Each step is followed by a wrong turn, some of them longer than the window.
            for (size, wrong) in [(7, 5), (30, 40), (1, 1), (60, 3), (1, 100), (101, 9), (1, 40), (40, 2), (46, 0)] {
                let at = (cache.len() - front) * D;
                got[at..at + size * D].copy_from_slice(&add(&stack, &mut cache, &text[at..at + size * D]));
                let len = cache.len();
                if wrong > 0 && len + wrong <= LONGEST {
                    add(&stack, &mut cache, &noise(77, wrong * D));
                    assert!(cache.shortest() <= len, "a step back of {wrong} rows");
                    cache.truncate(len);
                }
            }
            assert_eq!(cache.len() - front, LONGEST - M);
            assert_close(&format!("{stack:?}, {:?}", beginning.injection), &got, &expected);
        }
    }
}

#[test]
fn what_is_far_behind_a_window_is_given_back() {
    let (stack, meter) = (on_the_cpu(), KvMeter::default());
    let mut cache = cache(&stack, &meter);
    let most = stack.kv_bytes(span(), LONGEST as u64);
    let mut seen = 0;
    for row in text(6, LONGEST).chunks_exact(D) {
        add(&stack, &mut cache, row);
        seen = seen.max(meter.bytes());
    }
    let page = stack.kv_page_bytes(Span::new(0, 1).unwrap());
    // Five pages of the block without a window, and of each other one those that reach over the window and what is kept behind it.
    assert_eq!(meter.bytes(), (5 + 2 * 3) * page);
    assert!(seen <= most);
    assert_eq!(cache.shortest(), 2 * PAGE_TOKENS + WINDOW - 1);
    let copy = cache.clone();
    assert_eq!(meter.bytes(), (5 + 2 * 3) * page, "shared");
    drop((cache, copy));
    assert_eq!(meter.bytes(), 0);
}

#[test]
fn a_sequence_of_a_huge_model_takes_little_more_than_its_windows() {
    let stack = on_the_cpu();
    let (short, long) = (stack.kv_bytes(span(), 10_000), stack.kv_bytes(span(), 1_000_000));
    let page = stack.kv_page_bytes(Span::new(0, 1).unwrap());
    assert_eq!(
        long - short,
        (1_000_000u64.div_ceil(64) - 10_000u64.div_ceil(64)) * page,
        "only the block without a window"
    );
}

#[test]
fn steps_of_more_rows_than_are_accounted_for_are_refused() {
    let mut config = config();
    config["use_sliding_window"] = true.into();
    config["sliding_window"] = WINDOW.into();
    config["max_window_layers"] = 0.into();
    config["max_position_embeddings"] = 4096.into();
    let dir = model(&config, &tensors());
    let stack = Checkpoint::open(dir.path()).unwrap().load_span(span(), &Device::cpu(), Dtype::F32).unwrap();
    let mut cache = stack.cache(span(), 4096, &KvMeter::default()).unwrap();
    let rows = stack.config().longest_step(span()) + 1;
    let step = stack.step(text(7, rows), &mut [CachedRows { cache: &mut cache, rows, tables: None }], None);
    assert!(matches!(step, Err(PassError::LongStep { rows: 1025, max: 1024 })), "{step:?}");
    assert!(cache.is_empty());
    add(&stack, &mut cache, &text(7, 1024));
}
