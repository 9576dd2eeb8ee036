//! Products with frozen weights.

use std::error::Error;

use petals_kernels::{Activation, Columns, Format, Gpu, Inside, Onto, Product, Weight, product};

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
    Ok(())
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
    let weight = Weight {
        format,
        inputs: HIDDEN,
        outputs,
        words: gpu.empty(outputs * format.words_of_row(HIDDEN)),
        scales: format.is_scaled().then(|| gpu.empty(outputs * format.scale_words_of_row(HIDDEN))),
        steps: (format == Format::Offset).then(|| gpu.empty(2 * outputs)),
        table: (format == Format::Table).then(|| gpu.empty(16)),
    };
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
