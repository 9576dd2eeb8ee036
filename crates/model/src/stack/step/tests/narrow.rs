//! Keys and values that are kept in less than f32.

use super::*;
use crate::device::KvDtype;
use crate::fixture::devices;

/// The largest difference, in parts of the largest value.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    got.iter().zip(expected).fold(0.0f32, |a, (g, e)| a.max((g - e).abs())) / largest
}

#[test]
fn narrow_keys_and_values_change_results_by_their_rounding_only() {
    let text = text(1, 2 * PAGE_TOKENS + 37);
    let (expected, _) = one_shot(&stack_on(&Device::cpu()), None, &text);
    for device in devices() {
        for (dtype, tolerance) in [(KvDtype::Bf16, 2e-2), (KvDtype::F16, 2e-3), (KvDtype::Int8, 2e-2)] {
            let Ok(stack) = stack_on(&device).with_kv_dtype(dtype) else {
                println!("{device} has no {dtype}");
                continue;
            };
            let (meter, page) = (KvMeter::default(), stack.kv_page_bytes(span()));
            assert!(page < stack_on(&device).kv_page_bytes(span()));
            // Token by token takes minutes on a Vulkan device in software.
            let token_by_token = if device == Device::cpu() { vec![vec![1; 165]] } else { Vec::new() };
            let of_all = [vec![165], vec![70, 1, 1, 0, 62, 30, 1]];
            for sizes in of_all.into_iter().chain(token_by_token) {
                let mut cache = stack.cache(span(), 64, &meter).unwrap();
                let mut got = Vec::new();
                for size in sizes {
                    let at = cache.len() * D;
                    got.extend(add(&stack, &mut cache, &text[at..at + size * D]));
                }
                assert_eq!(meter.bytes(), 3 * page);
                let off = difference(&got, &expected);
                assert!(off > 0.0 && off < tolerance, "{device}, {dtype}: off by {off:e}");
            }
        }
    }
}

#[test]
fn sequences_that_share_pages_and_go_back_are_as_new_ones() {
    let all = devices().into_iter().flat_map(|device| KvDtype::KEPT.map(|dtype| (device.clone(), dtype)));
    for (device, dtype) in all {
        let Ok(stack) = stack_on(&device).with_kv_dtype(dtype) else { continue };
        let text = text(3, PAGE_TOKENS + 20);
        let fresh = |stack: &BlockStack| {
            let mut cache = stack.cache(span(), 64, &KvMeter::default()).unwrap();
            add(stack, &mut cache, &text[..80 * D]);
            add(stack, &mut cache, &text[80 * D..])
        };
        let mut cache = stack.cache(span(), 64, &KvMeter::default()).unwrap();
        add(&stack, &mut cache, &text[..80 * D]);
        let mut fork = cache.clone();
        // What is written behind a fork, and what was taken back, is nobody else's.
        add(&stack, &mut cache, &noise(9, 3 * D));
        cache.truncate(80);
        add(&stack, &mut cache, &noise(10, 2 * D));
        assert_eq!(add(&stack, &mut fork, &text[80 * D..]), fresh(&stack), "{device}, {dtype}");
    }
}

#[test]
fn devices_say_what_they_keep() {
    assert_eq!(KvDtype::Auto.on(&Device::cpu(), Dtype::F32), Ok(KvDtype::F32));
    assert_eq!(KvDtype::Auto.on(&Device::cpu(), Dtype::Int4), Ok(KvDtype::F16));
    assert_eq!(KvDtype::Auto.on(&Device::reference(), Dtype::Int4), Ok(KvDtype::F16));
    for device in devices() {
        assert_eq!(KvDtype::Int8.on(&device, Dtype::F32), Ok(KvDtype::Int8));
        match KvDtype::Bf16.on(&device, Dtype::F32) {
            Ok(dtype) => assert_eq!(dtype, KvDtype::Bf16),
            Err(refused) => assert!(refused.to_string().contains("no bf16"), "{refused}"),
        }
    }
    assert!("f64".parse::<KvDtype>().unwrap_err().contains("bf16"));
    assert!(KvDtype::KEPT.iter().all(|dtype| dtype.to_string().parse() == Ok(*dtype)));
}
