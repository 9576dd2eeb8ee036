//! Products with frozen weights.

use std::error::Error;

use petals_kernels::{
    Activation, Choice, Columns, Format, Gpu, Inside, Onto, Product, Weight, add_chosen, choose, product,
    product_of_chosen,
};

use super::runtime::Printer;
use super::{Sources, When};

/// Llama's with 8 billion parameters.
const HIDDEN: usize = 4096;
/// Its MLP's width.
const MLP: usize = 14_336;
/// How many rows are multiplied at a time.
const FEW: [usize; 5] = [1, 2, 4, 8, 16];
/// So many are cut into tiles.
const MANY: usize = 4096;

const FORMATS: [(Format, &str); 6] = [
    (Format::F32, "f32"),
    (Format::Bf16, "bf16"),
    (Format::F16, "f16"),
    (Format::Int8, "int8"),
    (Format::Table, "table"),
    (Format::Offset, "offset"),
];

pub(super) fn write(sources: &mut Sources) -> Result<(), Box<dyn Error>> {
    for (format, name) in FORMATS {
        for rows in FEW {
            let gated = Inside::Gated(Activation::Silu);
            let group = format!("{name}, rows: {rows}");
            sources.of(When::Decoding, &group, &format!("skinny_{name}_{rows}"), |gpu| {
                run(gpu, format, rows, false, Inside::Plain, Ends::Written);
            })?;
            sources.of(When::Decoding, &group, &format!("skinny_{name}_{rows}_gated"), |gpu| {
                run(gpu, format, rows, false, gated, Ends::Written);
            })?;
        }
        for back in [false, true] {
            let group = format!("{name}{}", if back { ", back" } else { "" });
            let name = format!("tiled_{name}{}", if back { "_back" } else { "" });
            sources
                .of(When::Training, &group, &name, |gpu| run(gpu, format, MANY, back, Inside::Plain, Ends::Written))?;
        }
    }
    // What becomes of results, and other activations: in one format, since that is decided after the weights.
    for (ends, name) in [(Ends::Added, "added"), (Ends::Two, "two"), (Ends::Biased, "biased")] {
        for (rows, kind, group, when) in [
            (1, "skinny", "bf16, rows: 1", When::Decoding),
            (16, "skinny", "bf16, rows: 16", When::Decoding),
            (MANY, "tiled", "bf16", When::Training),
        ] {
            sources.of(when, group, &format!("{kind}_bf16_{rows}_{name}"), |gpu| {
                run(gpu, Format::Bf16, rows, false, Inside::Plain, ends);
            })?;
        }
    }
    // What is around products that others compute.
    for (format, name) in FORMATS {
        for (ends, kind) in [(Ends::Added, "added"), (Ends::Two, "two"), (Ends::Biased, "biased")] {
            sources.of(
                When::Training,
                &format!("{name}, around a large product"),
                &format!("large_{name}_{kind}"),
                |gpu| {
                    run(&gpu.clone().with_large(|_, _, _| Ok(())), format, MANY, false, Inside::Plain, ends);
                },
            )?;
        }
    }
    sources.of(When::Training, "", "rows_in_bf16", |gpu| drop(gpu.upload(&vec![1.0; 1 << 15])))?;
    for (activation, name) in super::others::ACTIVATIONS {
        sources.of(When::Decoding, "bf16, rows: 1", &format!("skinny_bf16_1_gated_{name}"), |gpu| {
            run(gpu, Format::Bf16, 1, false, Inside::Gated(activation), Ends::Written);
        })?;
    }
    mixtures(sources)
}

/// Experts as in Mixtral 8x7B, Qwen3 30B-A3B and gpt-oss 120B: how many, how many a row goes through, their width, and whether they have biases.
fn mixtures(sources: &mut Sources) -> Result<(), Box<dyn Error>> {
    for (format, name) in FORMATS {
        for (count, used, width, biased) in [(8, 2, MLP, false), (128, 8, 768, false), (128, 4, 2880, true)] {
            for rows in [1, 16, 32] {
                let group = format!("{name}, chosen experts");
                sources.of(When::Decoding, &group, &format!("mixture_{name}_{count}_{used}_{rows}"), |gpu| {
                    let choice = Choice { count, used, of_all: biased };
                    let [scores, gates] = [rows * count, rows].map(|len| gpu.empty(len));
                    let chosen = choose(gpu, choice, &scores, biased.then_some(&gates));
                    let weight = |inputs, outputs: usize| weight(gpu, format, inputs, count * outputs);
                    let bias = gpu.empty(count * 2 * width.max(HIDDEN));
                    let bias = biased.then_some(&bias);
                    let [x, inside, outputs] = [HIDDEN, used * width, used * HIDDEN].map(|len| gpu.empty(rows * len));
                    let gated = Inside::Gated(if biased { Activation::ClampedSwish } else { Activation::Silu });
                    product_of_chosen(gpu, &weight(HIDDEN, 2 * width), &chosen, (&x, false), (bias, gated), &inside);
                    let down = weight(width, HIDDEN);
                    product_of_chosen(gpu, &down, &chosen, (&inside, true), (bias, Inside::Plain), &outputs);
                    add_chosen(gpu, &chosen, &outputs, (&x, HIDDEN), true);
                })?;
            }
        }
    }
    Ok(())
}

/// Memory for a weight.
fn weight(gpu: &Gpu<Printer>, format: Format, inputs: usize, outputs: usize) -> Weight {
    let table = (format == Format::Table).then(|| gpu.empty(16));
    Weight { table, ..Weight::empty(gpu, format, [inputs, outputs]) }
}

/// Where results go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Written,
    Added,
    Two,
    Biased,
}

fn run(gpu: &Gpu<Printer>, format: Format, rows: usize, back: bool, inside: Inside, ends: Ends) {
    let outputs = if inside == Inside::Plain { HIDDEN } else { 2 * MLP };
    let weight = weight(gpu, format, HIDDEN, outputs);
    let [x, bias] = [rows * HIDDEN.max(outputs), outputs].map(|len| gpu.empty(len));
    let [out, second] = [(); 2].map(|()| gpu.empty(rows * outputs));
    let onto = match ends {
        Ends::Written | Ends::Biased => Onto::Write(&out),
        Ends::Added => Onto::Add(&out, 0),
        Ends::Two => Onto::WriteTwo(&out, outputs / 2, &second),
    };
    let bias = (ends == Ends::Biased).then_some(&bias);
    product(
        gpu,
        &weight,
        Columns { first: 0, count: outputs },
        Product { x: &x, first: 0, rows, back, bias, inside },
        onto,
    );
}
