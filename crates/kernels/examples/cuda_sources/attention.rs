//! Attention over rows and over caches, and its backward.

use std::error::Error;

use petals_kernels::attention::{
    Given, Heads, Keys, Parts, Queries, Slopes, backward, forward, grown, queries_of_tile,
};
use petals_kernels::{Buffer, Gpu, Kept, Kv, Turning, turn_and_keep};

use super::runtime::Printer;
use super::{Sources, When};

/// Values of a head, and query heads of a key head.
const HEADS: [(usize, usize); 9] =
    [(64, 1), (64, 4), (64, 8), (128, 1), (128, 4), (128, 8), (256, 1), (256, 4), (256, 8)];
const KEY_HEADS: usize = 8;
/// Rows of a pass.
const ROWS: usize = 4096;
/// Positions of a sequence that is kept, few enough for one cube and enough for several.
const SHORT: usize = 100;
const LONG: usize = 8192;
const PAGE: usize = 64;

const KEPT: [(Kept, &str); 4] = [(Kept::F32, "f32"), (Kept::Bf16, "bf16"), (Kept::F16, "f16"), (Kept::Int8, "int8")];

/// What scores may have.
#[derive(Clone, Copy)]
struct Scores {
    name: &'static str,
    cap: bool,
    /// ALiBi's biases, and whether they are rounded.
    slopes: Option<bool>,
    sinks: bool,
}

const PLAIN: Scores = Scores { name: "", cap: false, slopes: None, sinks: false };
const OTHERS: [Scores; 4] = [
    Scores { name: "_capped", cap: true, ..PLAIN },
    Scores { name: "_alibi", slopes: Some(false), ..PLAIN },
    Scores { name: "_rounded_alibi", slopes: Some(true), ..PLAIN },
    Scores { name: "_sunk", sinks: true, ..PLAIN },
];

pub(super) fn write(sources: &mut Sources) -> Result<(), Box<dyn Error>> {
    for (dim, group) in HEADS {
        let name = format!("{dim}x{group}");
        let kind = format!("heads of {dim}");
        let (of_rows, of_pages) = (format!("rows, {kind}"), format!("pages in bf16, {kind}"));
        sources.of(When::Training, &of_rows, &format!("rows_{name}"), |gpu| rows(gpu, dim, group, PLAIN, false))?;
        sources.of(When::Training, &format!("for a backward, {kind}"), &format!("backward_{name}"), |gpu| {
            rows(gpu, dim, group, PLAIN, true)
        })?;
        sources.of(When::Decoding, &of_pages, &format!("paged_{name}_bf16_long"), |gpu| {
            paged(gpu, dim, group, PLAIN, (Kept::Bf16, LONG));
        })?;
    }
    for scores in OTHERS {
        let name = format!("128x4{}", scores.name);
        sources.of(When::Training, "rows, heads of 128", &format!("rows_{name}"), |gpu| {
            rows(gpu, 128, 4, scores, false);
        })?;
        sources
            .of(When::Training, "heads of 128", &format!("backward_{name}"), |gpu| rows(gpu, 128, 4, scores, true))?;
        for (positions, length) in [(SHORT, "short"), (LONG, "long")] {
            let group = "pages in bf16, heads of 128";
            sources.of(When::Decoding, group, &format!("paged_{name}_bf16_{length}"), |gpu| {
                paged(gpu, 128, 4, scores, (Kept::Bf16, positions));
            })?;
        }
    }
    for (kept, name) in KEPT {
        for dim in [64, 128, 256] {
            for (positions, length) in [(SHORT, "short"), (LONG, "long")] {
                let group = format!("pages in {name}, heads of {dim}");
                sources.of(When::Decoding, &group, &format!("paged_{dim}x4_{name}_{length}"), |gpu| {
                    paged(gpu, dim, 4, PLAIN, (kept, positions));
                })?;
            }
        }
        for (interleaved, order) in [(false, "halves"), (true, "neighbours")] {
            sources
                .of(When::Decoding, name, &format!("keep_{name}_{order}"), |gpu| keep(gpu, kept, interleaved, true))?;
        }
        sources.of(When::Decoding, name, &format!("keep_{name}_unturned"), |gpu| keep(gpu, kept, false, false))?;
        sources.of(When::Decoding, "", "copy_page", |gpu| {
            let (words, scales) = (gpu.empty(1 << 20), gpu.empty(1 << 16));
            let kv = Kv { kept, words: &words, scales: (kept == Kept::Int8).then_some(&scales) };
            petals_kernels::copy_page(gpu, kv, [KEY_HEADS, 128], 0, 1);
        })?;
    }
    Ok(())
}

/// Runs `launch` with heads.
fn with_heads(gpu: &Gpu<Printer>, dim: usize, group: usize, scores: Scores, launch: impl FnOnce(Heads<'_>)) {
    let query = group * KEY_HEADS;
    let of_heads = gpu.empty(query);
    let slopes = scores.slopes.map(|rounded| Slopes { of_heads: &of_heads, factor: 1.0, rounded });
    let cap = scores.cap.then_some(50.0);
    let sinks = scores.sinks.then_some(&of_heads);
    launch(Heads { query, key: KEY_HEADS, dim, scale: 0.1, cap, slopes, sinks });
}

fn rows(gpu: &Gpu<Printer>, dim: usize, group: usize, scores: Scores, back: bool) {
    with_heads(gpu, dim, group, scores, |heads| {
        let [q, kv] = [ROWS * heads.query * dim, 2 * ROWS * heads.key * dim].map(|len| gpu.empty(len));
        let [out, dq, d_output] = [(); 3].map(|()| gpu.empty(ROWS * heads.query * dim));
        let (dkv, tiles, visible) = (gpu.empty(kv.len()), gpu.empty(7 * ROWS), gpu.empty(2 * ROWS));
        let queries = |back| queries(&tiles, &visible, queries_of_tile(dim, ROWS * group, back), ROWS);
        if back {
            let parts = Parts { tiles: &tiles, count: 4, rows: 16, parts: 4 };
            let keys = Keys { tiles: &tiles, count: 4, parts: Some(parts) };
            let given = Given { q: &q, kv: &kv, d_output: &d_output };
            backward(gpu, heads, (&queries(false), &queries(true), &keys), given, (&dq, &dkv));
        } else {
            forward(gpu, heads, &queries(false), (&q, &kv), &out, None);
        }
    });
}

fn queries<'a>(tiles: &'a Buffer, visible: &'a Buffer, most: usize, rows: usize) -> Queries<'a> {
    Queries { tiles, count: 4, most, visible, rows }
}

fn paged(gpu: &Gpu<Printer>, dim: usize, group: usize, scores: Scores, (kept, positions): (Kept, usize)) {
    with_heads(gpu, dim, group, scores, |heads| {
        let pages = positions.div_ceil(PAGE);
        let words = gpu.empty(pages * kept.words_of_page(KEY_HEADS, dim));
        let scales = gpu.empty(pages * kept.scales_of_page(KEY_HEADS));
        let kv = Kv { kept, words: &words, scales: (kept == Kept::Int8).then_some(&scales) };
        let [q, out] = [(); 2].map(|()| gpu.empty(heads.query * dim));
        let (table, tiles, visible) = (gpu.empty(pages), gpu.empty(7 * 4), gpu.empty(2));
        let queries = queries(&tiles, &visible, queries_of_tile(dim, group, false), 1);
        grown(gpu, heads, &queries, &q, (kv, &table), &out, positions);
    });
}

fn keep(gpu: &Gpu<Printer>, kept: Kept, interleaved: bool, turned: bool) {
    let (dim, group) = (128, 4);
    let words = gpu.empty(kept.words_of_page(KEY_HEADS, dim));
    let scales = gpu.empty(kept.scales_of_page(KEY_HEADS));
    let [cos, sin] = [(); 2].map(|()| gpu.empty(dim / 2));
    let angles = turned.then_some((&cos, &sin));
    let (q, kv, slots) = (gpu.empty(group * KEY_HEADS * dim), gpu.empty(2 * KEY_HEADS * dim), gpu.empty(1));
    let turning = Turning {
        queries: (&q, 1, angles),
        keys_values: (&kv, 1, angles),
        heads: [group * KEY_HEADS, KEY_HEADS, dim],
        pairs: dim / 2,
        interleaved,
        slots: &slots,
    };
    turn_and_keep(gpu, turning, Kv { kept, words: &words, scales: (kept == Kept::Int8).then_some(&scales) });
}
