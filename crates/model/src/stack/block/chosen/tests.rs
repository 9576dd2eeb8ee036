use super::super::experts::{Experts, Shared};
use super::super::mlp::Mlp;
use super::super::network::{InsideStash, Network};
use crate::config::{Activation, ExpertWeights, ExpertsDesign, MlpDesign, SharedExpert};
use crate::device::{Device, Dtype, Kind};
use crate::engine::host::Host;
use crate::engine::{Engine, Vulkan};
use crate::fixture::noise;
use crate::stack::tables::Given;

/// Width of rows.
const D: usize = 40;

fn linear<E: Engine>(engine: &E, seed: u64, shape: [usize; 2], dtype: Dtype, bias: bool) -> E::Linear {
    several(engine, seed, shape, (dtype, bias), 1).pop().expect("one was asked for")
}

fn several<E: Engine>(
    engine: &E,
    seed: u64,
    [input, output]: [usize; 2],
    (dtype, bias): (Dtype, bool),
    count: usize,
) -> Vec<E::Linear> {
    let given = (0..count as u64).map(|number| {
        let weight = noise(seed + 100 * number, input * output);
        let columns = move |n: usize, to: &mut [f32]| to.copy_from_slice(&weight[n * input..(n + 1) * input]);
        (bias.then(|| noise(seed + 100 * number + 50, output)), columns)
    });
    engine.load_linears([input, output], dtype, (count, true), given)
}

fn mixture<E: Engine>(engine: &E, design: ExpertsDesign, mlp: MlpDesign, dtype: Dtype) -> Network<E> {
    let bias = (dtype, mlp.bias);
    let insides = several(engine, 1, [D, mlp.sides() * design.width], bias, design.count);
    let downs = several(engine, 2, [design.width, D], bias, design.count);
    let experts = insides.into_iter().zip(downs).map(|(inside, down)| Mlp { design: mlp, inside, down }).collect();
    let shared = design.shared.map(|shared| Shared {
        mlp: Mlp {
            design: mlp,
            inside: linear(engine, 3, [D, mlp.sides() * shared.width], dtype, mlp.bias),
            down: linear(engine, 4, [shared.width, D], dtype, mlp.bias),
        },
        gate: shared.gated.then(|| linear(engine, 5, [D, 1], Dtype::F32, false)),
    });
    let router = linear(engine, 6, [D, design.count], Dtype::F32, design.bias);
    Network::Experts(Box::new(Experts { design, router, experts, shared }))
}

/// What comes out, added to something and not, and whether the device chose.
fn out<E: Engine>(engine: &E, network: &Network<E>, rows: usize, keep: bool) -> (Vec<f32>, bool) {
    let x = engine.upload(noise(7, rows * D), D);
    let given = Given { adapted: &[], keys_values: None };
    let inside = network.inside(engine, &x, given, keep);
    let sum = engine.upload(noise(8, rows * D), D);
    let both =
        [Some(sum), None].map(|sum| engine.download(network.out(engine, &inside, sum, given)).expect("it computes"));
    (both.concat(), matches!(inside, InsideStash::Chosen(_)))
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.1f32, |most, value| most.max(value.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(got.len() == expected.len() && worst <= 2e-5 * largest, "{what}: off by {worst} of {largest}");
}

#[test]
fn what_the_device_chooses_is_what_the_host_does() {
    let Ok(device) = "vulkan".parse::<Device>() else { return println!("skipped: no Vulkan device") };
    let Kind::Vulkan(adapter) = device.kind() else { return };
    let gpu = Vulkan::new(&adapter.raw());
    let silu = MlpDesign { activation: Activation::Silu, gated: true, bias: false };
    let clamped = MlpDesign { activation: Activation::ClampedSwish, bias: true, ..silu };
    let plain = MlpDesign { activation: Activation::Relu, gated: false, bias: false };
    let design =
        ExpertsDesign { count: 8, used: 2, width: 24, weights: ExpertWeights::OfChosen, bias: false, shared: None };
    let shared = |gated| Some(SharedExpert { width: 36, gated });
    let designs = [
        (design, silu),
        (ExpertsDesign { count: 4, used: 1, width: 33, shared: shared(false), ..design }, plain),
        (ExpertsDesign { count: 5, used: 5, bias: true, ..design }, clamped),
        (ExpertsDesign { count: 70, used: 8, weights: ExpertWeights::OfAll, shared: shared(true), ..design }, silu),
    ];
    let few = [Dtype::Bf16, Dtype::F16, Dtype::Int8, Dtype::Int4];
    let everywhere = designs.iter().map(|design| (design, Dtype::F32, &[1, 2, 7, 17, 32, 33, 64, 70][..]));
    for (&(design, mlp), dtype, rows) in everywhere.chain(few.map(|dtype| (&designs[0], dtype, &[1, 17][..]))) {
        let (network, by_host) = (mixture(&gpu, design, mlp, dtype), mixture(&Host, design, mlp, Dtype::F32));
        for &rows in rows {
            let what = format!("{design:?}, {dtype}, {rows} rows");
            let (got, chose) = out(&gpu, &network, rows, false);
            assert_eq!(chose, rows < 33 || rows * design.used <= 16 * design.count, "{what}");
            let (expected, chose) = out(&gpu, &network, rows, true);
            assert!(!chose, "what is kept is kept by the host");
            assert_close(&what, &got, &expected);
            if dtype == Dtype::F32 {
                assert_close(&what, &got, &out(&Host, &by_host, rows, false).0);
            }
        }
    }
}
