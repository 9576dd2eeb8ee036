//! Attention over caches: pages that are shared, given back and grown into, kept in every dtype.

use super::*;
use crate::config::{RopeScaling, RotaryDesign};
use crate::engine::rotary::Rotary;
use crate::engine::shapes::{Growth, PAGE_TOKENS};
use crate::engine::{Cache, KvMeter};

/// Sequences that grow step by step, in two blocks, the second with a window: the outputs of all steps.
fn steps<E: Engine>(engine: &E, heads: Heads, dtype: KvDtype, steps: &[[usize; 2]]) -> Results {
    let meter = KvMeter::default();
    let windows = [None, Some(PAGE_TOKENS)];
    let mut caches: Vec<E::Cache> = (0..2).map(|_| engine.cache(&windows, heads, dtype, &meter)).collect();
    let design = RotaryDesign { theta: 1e4, dim: heads.dim, scaling: RopeScaling::Default, interleaved: false };
    let rotary = Rotary::new(&design, heads.dim);
    let (mut lens, mut results) = ([0; 2], Vec::new());
    for (number, counts) in steps.iter().enumerate() {
        let growths: Vec<Growth> =
            lens.iter().zip(counts).map(|(&len, &rows)| Growth { len, rows, long: false }).collect();
        let mut borrowed: Vec<&mut E::Cache> = caches.iter_mut().collect();
        for (cache, growth) in borrowed.iter_mut().zip(&growths) {
            cache.grow(growth.len, growth.rows);
        }
        let places: Vec<Place> = growths.iter().flat_map(Growth::places).collect();
        let angles = engine.angles(&rotary, &places);
        for (block, window) in windows.into_iter().enumerate() {
            let mut first = 0;
            let grown = growths.iter().map(|growth| {
                let queries = first..first + growth.rows;
                first = queries.end;
                let seen = |end: usize| window.map_or(0, |window| end.saturating_sub(window))..end;
                Grown { queries, visible: (growth.len + 1..=growth.len + growth.rows).map(seen).collect() }
            });
            let attention = engine.cached_attention(heads, grown.collect());
            let seed = (10 * number + block) as u64;
            let new = NewRows {
                queries: rows(engine, 1000 + seed, first, heads.query_width()),
                keys_values: rows(engine, 2000 + seed, first, 2 * heads.key_width()),
                query_angles: Some(&angles),
                key_angles: Some(&angles),
                heads,
                sinks: None,
                sequences: &growths,
            };
            results.push(values(engine, engine.attend_new(&attention, block, new, &mut borrowed)));
        }
        lens.iter_mut().zip(counts).for_each(|(len, rows)| *len += rows);
        if number == 1 {
            // The second sequence goes on from where the first one is, on the same pages.
            caches[1] = caches[0].clone();
            lens[1] = lens[0];
        }
        if number == 2 {
            // The first goes back, and forgets what both share.
            lens[0] -= 3;
            caches[0].truncate(lens[0]);
        }
    }
    let bytes = meter.bytes();
    drop(caches);
    assert_eq!(meter.bytes(), 0);
    results.push(vec![bytes as f32]);
    results
}

#[test]
fn caches_of_every_dtype_attend_as_on_the_host() {
    let Some(gpu) = vulkan() else { return };
    let grouped = Heads { query: 4, key_value: 2, dim: 16, scale: 0.25, soft_cap: None, alibi: None };
    let wide = Heads { query: 3, key_value: 1, dim: 64, soft_cap: Some(2.0), ..grouped };
    let lengths = [[40, 3], [30, 1], [5, 1], [1, 70], [1, 1], [64, 2], [1, 1], [300, 1], [1, 1]];
    for heads in [grouped, wide] {
        for dtype in KvDtype::KEPT {
            let expected = steps(&Host, heads, dtype, &lengths);
            // Values in the middle between two of a dtype may be rounded to either.
            let tolerance = if dtype == KvDtype::F32 { 2e-5 } else { 4e-3 };
            assert_close(&format!("{heads:?} in {dtype}"), &steps(&gpu, heads, dtype, &lengths), &expected, tolerance);
        }
    }
}

#[test]
fn long_sequences_are_cut_and_put_together() {
    let Some(gpu) = vulkan() else { return };
    let heads = Heads { query: 2, key_value: 1, dim: 8, scale: 0.5, soft_cap: None, alibi: None };
    let lengths = [[900, 0], [700, 10], [1, 1]];
    let expected = steps(&Host, heads, KvDtype::F32, &lengths);
    assert_close("long", &steps(&gpu, heads, KvDtype::F32, &lengths), &expected, 2e-5);
}
