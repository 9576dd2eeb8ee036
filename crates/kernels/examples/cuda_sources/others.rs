//! Norms, rotary embedding, activations, small products, and rows.

use std::error::Error;

use petals_kernels::{
    Activation, Leaving, NormShape, Rotation, Strided, activate, activate_back, add, add_picked, column_sums, copy,
    dot_rows, gather, norm, norm_back, rotate, scale_area, scale_rows, small_product, zero,
};

use super::{Sources, When};

/// Rows of a pass.
const ROWS: usize = 4096;
const WIDTH: usize = 4096;

pub(super) const ACTIVATIONS: [(Activation, &str); 6] = [
    (Activation::Silu, "silu"),
    (Activation::Gelu, "gelu"),
    (Activation::GeluTanh, "gelu_tanh"),
    (Activation::Relu, "relu"),
    (Activation::ReluSquared, "relu_squared"),
    (Activation::ClampedSwish, "clamped_swish"),
];

pub(super) fn write(sources: &mut Sources) -> Result<(), Box<dyn Error>> {
    norms(sources)?;
    sources.of(When::Training, "", "leaving", |gpu| {
        let x = gpu.empty(ROWS * WIDTH);
        gpu.check(&x, &gpu.watch(), 1);
        let leaving = Leaving { values: x, first: 0, place: 1, rounded: true };
        // Nothing was computed, so there is nothing to read.
        let _ = gpu.fetch(&[leaving], gpu.watch());
    })?;
    for (activation, name) in ACTIVATIONS {
        for (is_gated, kind) in [(true, "gated_"), (false, "")] {
            sources.of(When::Training, "", &format!("{kind}{name}"), |gpu| {
                let (inside, out) = (gpu.empty(2 * ROWS * WIDTH), gpu.empty(ROWS * WIDTH));
                activate(gpu, (activation, is_gated), &inside, &out, WIDTH);
                activate_back(gpu, (activation, is_gated), &out, &inside, WIDTH);
            })?;
        }
    }
    for (interleaved, order) in [(false, "halves"), (true, "neighbours")] {
        for (back, way) in [(false, ""), (true, "_back")] {
            sources.of(When::Training, "", &format!("{order}{way}"), |gpu| {
                let (angles, x) = (gpu.empty(ROWS * 64), gpu.empty(ROWS * WIDTH));
                let rotation =
                    Rotation { rows: ROWS, stride: WIDTH, heads: 32, dim: 128, pairs: 64, interleaved, back };
                rotate(gpu, rotation, (&angles, &angles), &x);
            })?;
        }
    }
    sources.of(When::Training, "", "small", |gpu| {
        let [a, b, out] = [(); 3].map(|()| gpu.empty(WIDTH * 64));
        let area = |buffer, row| Strided { buffer, first: 0, row, column: 1 };
        for added in [false, true] {
            small_product(gpu, (area(&a, WIDTH), area(&b, 16)), area(&out, 16), [64, WIDTH, 16], added);
        }
        scale_area(gpu, &a, area(&out, WIDTH), [64, WIDTH]);
        column_sums(gpu, (area(&a, 64), area(&b, 64)), &out, 64);
    })?;
    sources.of(When::Training, "", "rows", |gpu| {
        let [x, out] = [(); 2].map(|()| gpu.empty(WIDTH * 64));
        let picked = gpu.empty(64);
        copy(gpu, (&x, 0), (&out, 0), WIDTH);
        add(gpu, &x, (&out, 0), WIDTH);
        zero(gpu, &out);
        gather(gpu, &x, &picked, &out, WIDTH);
        add_picked(gpu, &x, &picked, &out, WIDTH);
        scale_rows(gpu, &out, &picked, WIDTH);
        dot_rows(gpu, (&x, &out), &picked, WIDTH);
    })?;
    Ok(())
}

/// Root mean square of rows and of heads, and layer norm.
fn norms(sources: &mut Sources) -> Result<(), Box<dyn Error>> {
    for (name, groups, width, centred) in
        [("rms", 1, WIDTH, false), ("rms_of_heads", 32, 128, false), ("layer", 1, WIDTH, true)]
    {
        for (keeps, kind, when) in [(false, "", When::Decoding), (true, "_keeping", When::Training)] {
            sources.of(when, "", &format!("{name}{kind}"), |gpu| {
                let [x, out, before] = [(); 3].map(|()| gpu.empty(ROWS * WIDTH));
                let weights = gpu.empty(width);
                let shape = NormShape { rows: ROWS, stride: WIDTH, groups, width, centred, eps: 1e-5 };
                let watch = gpu.watch();
                let watched = (groups == 1 && !keeps).then_some((&watch, 1));
                let weights_and_biases = (&weights, centred.then_some(&weights));
                norm(gpu, shape, &x, weights_and_biases, &out, keeps.then_some(&before), watched);
                if keeps {
                    norm_back(gpu, shape, &before, &weights, &x, &out);
                }
            })?;
        }
    }
    Ok(())
}
