//! Attention of passes: groups of heads, ragged texts, prefixes, windows and everything that becomes of scores.

use super::*;
use crate::config::Alibi;
use crate::engine::shapes::Segment;

/// Texts of these lengths behind a prefix, which has queries of its own if it is `active`.
fn geometry(lengths: &[usize], prefix: usize, active: bool, window: usize) -> (Geometry, usize, usize) {
    let (mut segments, mut visible, mut queries) = (Vec::new(), Vec::new(), 0);
    let seen = |end: usize| end.saturating_sub(window) as u32..end as u32;
    if active && prefix > 0 {
        segments.push(Segment { queries: 0..prefix, keys: 0..prefix, prefix: 0 });
        visible.extend((1..=prefix).map(seen));
        queries = prefix;
    }
    let mut first = prefix;
    for &length in lengths {
        segments.push(Segment { queries: queries..queries + length, keys: first..first + length, prefix });
        visible.extend((1..=length).map(|end| seen(prefix + end)));
        (queries, first) = (queries + length, first + length);
    }
    (Geometry { segments, visible }, queries, first)
}

fn attended<E: Engine>(
    engine: &E,
    heads: Heads,
    (geometry, active, all): (Geometry, usize, usize),
    sinks: bool,
) -> Results {
    let attention = engine.attention(heads, geometry);
    let (q, kv) = (rows(engine, 1, active, heads.query_width()), rows(engine, 2, all, 2 * heads.key_width()));
    let sinks = sinks.then(|| rows(engine, 3, 1, heads.query));
    let d_output = rows(engine, 4, active, heads.query_width());
    let output = engine.attend(&attention, &q, &kv, sinks.as_ref());
    let (dq, dkv) = engine.attend_back(&attention, (&q, &kv, sinks.as_ref()), &d_output, false);
    [output, dq, dkv].map(|rows| values(engine, rows)).into()
}

#[test]
fn passes_attend_as_on_the_host() {
    let Some(gpu) = vulkan() else { return };
    let plain = Heads { query: 4, key_value: 2, dim: 16, scale: 0.25, soft_cap: None, alibi: None };
    let heads = [
        plain,
        Heads { query: 3, key_value: 3, dim: 6, ..plain },
        Heads { query: 7, key_value: 1, dim: 10, soft_cap: Some(1.5), ..plain },
        Heads { query: 8, key_value: 1, dim: 64, alibi: Some(Alibi { factor: 0.5, rounded: false }), ..plain },
        Heads { query: 20, key_value: 1, dim: 8, alibi: Some(Alibi { factor: 1.0, rounded: true }), ..plain },
        Heads { query: 2, key_value: 1, dim: 256, scale: 0.06, ..plain },
    ];
    let texts: [(&[usize], usize, bool, usize); 5] = [
        (&[1], 0, false, 1000),
        (&[5, 1, 33], 3, true, 1000),
        (&[5, 1, 33], 3, false, 1000),
        (&[70, 40], 20, true, 24),
        (&[3, 130], 0, false, 50),
    ];
    for heads in heads {
        for (lengths, prefix, active, window) in texts {
            for sinks in [false, true] {
                let made = || geometry(lengths, prefix, active, window);
                let what = format!("{heads:?}, {lengths:?} behind {prefix}, sinks {sinks}");
                let expected = attended(&Host, heads, made(), sinks);
                assert_close(&what, &attended(&gpu, heads, made(), sinks), &expected, 2e-5);
            }
        }
    }
}

#[test]
fn a_prefix_that_many_rows_see_gets_the_sum_of_their_parts() {
    let Some(gpu) = vulkan() else { return };
    let heads = Heads { query: 4, key_value: 1, dim: 8, scale: 0.3, soft_cap: None, alibi: None };
    let made = || geometry(&[400, 300], 18, true, 10_000);
    assert_close("parts", &attended(&gpu, heads, made(), false), &attended(&Host, heads, made(), false), 3e-5);
}
