//! Products with weights and with tables, norms, rotation, activations and moving rows.

use super::*;
use crate::config::{Activation, RopeScaling, RotaryDesign};
use crate::engine::rotary::Rotary;

const DTYPES: [Dtype; 5] = [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::Int8, Dtype::Int4];

fn linear<E: Engine>(engine: &E, seed: u64, shape: [usize; 2], dtype: Dtype, biased: bool) -> E::Linear {
    let [input, output] = shape;
    let weight = noise(seed, input * output);
    let bias = biased.then(|| noise(seed + 1, output));
    engine.load_linear(shape, bias, dtype, move |n: usize, values: &mut [f32]| {
        values.copy_from_slice(&weight[n * input..(n + 1) * input]);
    })
}

/// Scales and offsets of four bits are steps of their column, as on the host; the reference has them as f16, which is near them.
fn tolerance(dtype: Dtype) -> f32 {
    if dtype == Dtype::Int4 { 1e-3 } else { 2e-5 }
}

/// Products of every kind with weights of `[input, output]` and another `[input, other]`.
fn products<E: Engine>(engine: &E, dtype: Dtype, count: usize, [input, output, other]: [usize; 3]) -> Results {
    let one = linear(engine, 1, [input, output], dtype, true);
    let two = linear(engine, 3, [input, other], dtype, true);
    let (one, two) = engine.load_beside(one, two);
    let bare = linear(engine, 5, [input, 2 * other], dtype, false);
    let (x, dy) = (rows(engine, 10, count + 2, input), rows(engine, 11, count, output));
    let own = engine.slice(&x, 2..count + 2);
    let (a, b) = engine.project_both(&one, &two, &own);
    let mlp = MlpDesign { activation: Activation::Silu, gated: true, bias: false };
    let (sum, back_sum) = (rows(engine, 12, count, output), rows(engine, 13, count + 2, input));
    [
        engine.project(&one, &x, 2),
        engine.project(&two, &own, 0),
        a,
        b,
        engine.project_activated(mlp, &bare, &own),
        engine.project_onto(&one, &own, sum),
        engine.project_back(&one, &dy),
        engine.project_back(&two, &rows(engine, 14, count, other)),
        engine.project_back_onto(&one, &dy, back_sum, 2),
    ]
    .map(|rows| values(engine, rows))
    .into()
}

#[test]
fn products_of_any_size_and_dtype_are_the_references() {
    let Some(gpu) = vulkan() else { return };
    let shapes = [[64, 48, 32], [33, 7, 5], [160, 100, 36]];
    for dtype in DTYPES {
        for shape in shapes {
            for count in [1, 2, 3, 4, 7, 9, 16, 17, 32, 33, 70] {
                let what = format!("{dtype} {count} x {shape:?}");
                let expected = products(&Burn::new(), dtype, count, shape);
                assert_close(&what, &products(&gpu, dtype, count, shape), &expected, tolerance(dtype));
            }
        }
    }
}

/// What tensor cores would do, on the host.
fn by_hand(
    client: &cubecl::client::ComputeClient<cubecl::wgpu::WgpuRuntime>,
    _: &cubecl::wgpu::WgpuDevice,
    kernels::Halves { x, weight, out, shape: [rows, depth, columns], back }: kernels::Halves,
) -> Result<(), String> {
    let halves = |handle| -> Vec<f32> {
        let bytes = client.read_one(handle).unwrap();
        let words = bytes.chunks_exact(2).map(|half| u32::from(u16::from_le_bytes([half[0], half[1]])) << 16);
        words.map(f32::from_bits).collect()
    };
    let (x, weight) = (halves(x), halves(weight));
    let of_weight = |k: usize, n: usize| if back { weight[k * columns + n] } else { weight[n * depth + k] };
    let at = |row: usize, n: usize| (0..depth).map(|k| x[row * depth + k] * of_weight(k, n)).sum::<f32>();
    let y: Vec<f32> = (0..rows * columns).map(|i| at(i / columns, i % columns)).collect();
    // There is no writing to a buffer but by a kernel.
    let gpu = kernels::Gpu::<cubecl::wgpu::WgpuRuntime>::new(&cubecl::wgpu::WgpuDevice::Cpu);
    kernels::copy(&gpu, (&gpu.upload(&y), 0), (&kernels::Buffer::of(out, y.len()), 0), y.len());
    Ok(())
}

#[test]
fn large_products_go_to_tensor_cores_and_come_back() {
    let Some(gpu) = vulkan() else { return };
    let gpu = gpu.with_large(by_hand);
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::Int8, Dtype::Int4] {
        let shape = [64, 48, 32];
        let expected = products(&Burn::new(), dtype, 70, shape);
        // Rows, and what weights are widened to, are rounded to eight bits each.
        assert_close(&format!("{dtype}"), &products(&gpu, dtype, 70, shape), &expected, 1e-2);
    }
}

#[test]
fn rows_that_came_in_bf16_go_to_the_device_as_bf16() {
    let Some(gpu) = vulkan() else { return };
    let values: Vec<f32> = noise(1, 1 << 15).into_iter().map(|v| half::bf16::from_f32(v).to_f32()).collect();
    let before = gpu.counts().so_far();
    let rows = gpu.upload(values.clone(), 128);
    assert_eq!(gpu.counts().so_far().since(before).uploaded, 2 << 15);
    assert_eq!(self::values(&gpu, rows), values);
}

#[test]
fn weights_that_lie_in_blocks_are_read_as_they_lie() {
    use crate::checkpoint::blocks::{self, BLOCK, Bits, Column, EVEN, FITTED};
    /// A weight in blocks of these bits.
    struct Lying(Bits, usize);
    impl WeightColumns for Lying {
        fn column(&self, n: usize, values: &mut [f32]) {
            let mut column = Column::default();
            self.blocks(n, &mut vec![0.0; values.len()], &mut column);
            values.iter_mut().enumerate().for_each(|(at, value)| *value = column.value(self.0, at));
        }
        fn bits(&self) -> Option<Bits> {
            Some(self.0)
        }
        fn blocks(&self, n: usize, _: &mut [f32], to: &mut Column) {
            blocks::round(self.0, &noise(n as u64 + 1, self.1), to);
        }
    }
    let Some(gpu) = vulkan() else { return };
    fn product<E: Engine>(engine: &E, bits: Bits, dtype: Dtype, count: usize) -> Results {
        let (input, output) = (3 * BLOCK - 5, 24);
        let linear = engine.load_linear([input, output], None, dtype, Lying(bits, input));
        let y = engine.project(&linear, &rows(engine, 1, count, input), 0);
        vec![values(engine, y), values(engine, engine.project_back(&linear, &rows(engine, 2, count, output)))]
    }
    for (bits, dtype) in [
        (Bits::Eight, Dtype::Int8),
        (Bits::Four(EVEN), Dtype::Int4),
        (Bits::Four(FITTED), Dtype::Int4),
        (Bits::Four(FITTED), Dtype::Int8),
        (Bits::Offset, Dtype::Int4),
    ] {
        for count in [1, 5, 40] {
            let expected = product(&Burn::new(), bits, dtype, count);
            assert_close(&format!("{bits:?} {count}"), &product(&gpu, bits, dtype, count), &expected, tolerance(dtype));
        }
    }
}

/// Everything that trained tables take part in.
fn tables<E: Engine>(engine: &E, height: usize, width: usize, rank: usize) -> Results {
    let x = rows(engine, 1, height, width + 3);
    let (table, low) = (rows(engine, 2, rank, width), rows(engine, 3, height - 1, rank));
    let (scale, dy) = (rows(engine, 4, 1, width), rows(engine, 5, height, width + 3));
    let area = Area { rows: 1..height, column: 2 };
    [
        engine.times_table_back(&x, &area, &table),
        engine.add_times_table(x.clone(), &area, &low, &table),
        engine.table_gradient(&low, &x, &area, width),
        engine.scale(x.clone(), &area, &scale),
        engine.scale_gradient(&x, &dy, &area, width),
        x,
    ]
    .map(|rows| values(engine, rows))
    .into()
}

#[test]
fn tables_of_any_size_are_the_hosts() {
    let Some(gpu) = vulkan() else { return };
    for (height, width, rank) in [(2, 8, 1), (17, 33, 4), (50, 64, 16), (3, 5, 40)] {
        let what = format!("{height} x {width}, rank {rank}");
        assert_close(&what, &tables(&gpu, height, width, rank), &tables(&Host, height, width, rank), 2e-5);
    }
}

/// What happens to rows one by one.
fn rowwise<E: Engine>(engine: &E, height: usize, dim: usize, heads: usize, centred: bool) -> Results {
    let width = (heads + 1) * dim;
    let norm = |seed, width| NormWeights {
        weight: noise(seed, width),
        bias: centred.then(|| noise(seed + 1, width)),
        centred,
        eps: 1e-5,
    };
    let (whole, of_heads) =
        (engine.load_norm(norm(1, width)), engine.load_norm(NormWeights { bias: None, ..norm(3, dim) }));
    let (x, dy) = (rows(engine, 10, height, width), rows(engine, 11, height, width));
    let (normed, before) = engine.normalise_heads(&of_heads, x.clone(), heads);
    let picked = engine.pick(&(0..height as u32).step_by(2).collect::<Vec<_>>());
    let half = engine.gather(&x, &picked);
    let (top, bottom) = engine.split(x.clone(), height / 2);
    let places: Vec<_> = (0..height as u32).map(|row| Place { position: 7 * row + 3, long: false }).collect();
    let mut results = vec![
        engine.normalise(&whole, &x),
        engine.normalise_onto(&whole, &x, &dy),
        engine.normalise_back(&whole, &x, dy.clone()),
        engine.normalise_heads_back(&of_heads, &before, dy.clone(), heads),
        normed,
        before,
        engine.join(&bottom, top.clone()),
        engine.add(x.clone(), &bottom, height / 2),
        engine.add_picked(x.clone(), &half, &picked),
        engine.scale_rows(x.clone(), &noise(12, height)),
        engine.dot_rows(&x, &dy),
        engine.first(x.clone(), 1),
        half,
    ];
    for interleaved in [false, true] {
        let design = RotaryDesign {
            theta: 1e4,
            dim: if dim.is_multiple_of(4) { dim / 2 } else { dim },
            interleaved,
            scaling: RopeScaling::Default,
        };
        let angles = engine.angles(&Rotary::new(&design, dim), &places);
        results.push(engine.rotate(x.clone(), heads, &angles, Turn::Forward));
        results.push(engine.rotate(x.clone(), heads, &angles, Turn::Back));
    }
    // What was given is as it was.
    results.push(x);
    results.into_iter().map(|rows| values(engine, rows)).collect()
}

#[test]
fn rows_are_normed_turned_and_moved_as_on_the_host() {
    let Some(gpu) = vulkan() else { return };
    for (height, dim, heads, centred) in [(2, 8, 2, false), (5, 6, 3, true), (33, 128, 1, false), (3, 200, 2, true)] {
        let what = format!("{height} x {heads} x {dim}");
        let expected = rowwise(&Host, height, dim, heads, centred);
        assert_close(&what, &rowwise(&gpu, height, dim, heads, centred), &expected, 2e-5);
    }
}

#[test]
fn activations_and_their_slopes_are_the_hosts() {
    let Some(gpu) = vulkan() else { return };
    fn activated<E: Engine>(engine: &E, mlp: MlpDesign) -> Results {
        let width = 37 * mlp.sides();
        // Far enough from zero that limits are met.
        let inside = engine.upload(noise(1, 5 * width).into_iter().map(|v| 12.0 * v).collect(), width);
        let forward = engine.activate(mlp, &inside);
        let back = engine.activate_back(mlp, inside, &rows(engine, 2, 5, 37));
        vec![values(engine, forward), values(engine, back)]
    }
    use Activation::{ClampedSwish, Gelu, GeluTanh, Relu, ReluSquared, Silu};
    for activation in [Silu, Gelu, GeluTanh, Relu, ReluSquared, ClampedSwish] {
        for gated in [true, false] {
            let mlp = MlpDesign { activation, gated, bias: false };
            if gated || activation != ClampedSwish {
                assert_close(&format!("{mlp:?}"), &activated(&gpu, mlp), &activated(&Host, mlp), 1e-5);
            }
        }
    }
}
