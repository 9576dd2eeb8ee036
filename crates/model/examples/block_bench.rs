//! Times one Llama block (hidden 1024, MLP 2816, 16 heads) on 4 x 128 tokens behind a prefix of 16.
//!
//! usage: block_bench [DEVICE [DTYPE [REPETITIONS]]]
//!
//! Prints medians (and the best, for a busy machine) in milliseconds, and GFLOP/s counting matrix products with weights
//! and attention's own. The products with weights alone are timed between the passes, as what cannot be saved.

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use burn::{Dispatch, DispatchDevice};
use petals_model::{BlockStack, Checkpoint, Device, Dtype, ForwardPass, OutputGrads};
use petals_protocol::{Injection, PassLayout, Span};
use safetensors::tensor::{Dtype as FileDtype, TensorView};

const D: usize = 1024;
const MLP: usize = 2816;
const HEADS: usize = 16;
const EXAMPLES: usize = 4;
const LENGTH: usize = 128;
const PREFIX: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device: Device = arguments.next().unwrap_or_else(|| "cpu".to_owned()).parse()?;
    let dtype: Dtype = arguments.next().unwrap_or_else(|| "auto".to_owned()).parse()?;
    let repetitions: usize = arguments.next().unwrap_or_else(|| "15".to_owned()).parse()?;
    let dir = tempfile::tempdir()?;
    write_model(dir.path())?;
    let checkpoint = Checkpoint::open(dir.path())?;
    for device in [device, Device::cpu_without_kernels()] {
        let stack = checkpoint.load_span(Span::new(0, 1)?, &device, dtype)?;
        println!("{device} {}, {EXAMPLES} x {LENGTH} tokens, prefix {PREFIX}", stack.dtype());
        for injection in [Injection::None, Injection::Replace] {
            bench(&stack, injection, repetitions)?;
        }
    }
    Ok(())
}

fn bench(stack: &BlockStack, injection: Injection, repetitions: usize) -> Result<(), Box<dyn Error>> {
    let layout = PassLayout {
        span: stack.span(),
        lengths: vec![LENGTH as u32; EXAMPLES],
        prefix_len: PREFIX as u32,
        injection,
        read_rows: None,
    };
    let pass = || ForwardPass {
        layout: &layout,
        text: noise(1, EXAMPLES * LENGTH * D),
        prefix: layout.carries_prefix().then(|| noise(2, PREFIX * D)),
        prompts: layout.has_prompts().then(|| noise(3, PREFIX * D)),
    };
    let [mut forward, mut keeping, mut backward, mut products] = [(); 4].map(|()| Vec::new());
    let alone = Products::new();
    let mut stash_bytes = 0;
    for _ in 0..repetitions {
        let inputs = pass();
        forward.push(timed(|| stack.forward(inputs, false))?.0);
        let inputs = pass();
        let (time, output) = timed(|| stack.forward(inputs, true))?;
        keeping.push(time);
        let stash = output.stash.ok_or("no stash")?;
        stash_bytes = stash.bytes();
        let grads = OutputGrads { text: noise(4, output.text.len()), prefix: output.prefix };
        backward.push(timed(|| stack.backward(stash, grads, true))?.0);
        products.push(timed(|| alone.run())?.0);
    }
    let work = flops(&layout) / 1e9;
    let products_work = 2e-9 * ((EXAMPLES * LENGTH + PREFIX) * (4 * D * D + 3 * D * MLP)) as f64;
    println!("  injection {injection:?}, stash {:.1} MB", stash_bytes as f64 / 1e6);
    let lines = [
        ("forward", forward, work),
        ("forward + stash", keeping, work),
        ("backward", backward, work),
        ("products, CPU", products, products_work),
    ];
    for (name, mut times, work) in lines {
        times.sort_by(f64::total_cmp);
        let (median, best) = (times[times.len() / 2], times[0]);
        println!("    {name:<16} {:7.2} ms {:7.1} GFLOP/s (best {:.2} ms)", median * 1e3, work / median, best * 1e3);
    }
    Ok(())
}

fn timed<T, E: Error + 'static>(run: impl FnOnce() -> Result<T, E>) -> Result<(f64, T), Box<dyn Error>> {
    let start = Instant::now();
    let result = black_box(run()?);
    Ok((start.elapsed().as_secs_f64(), result))
}

/// Of a forward; a backward to the input has as many (what it recomputes of the attention is not counted).
fn flops(layout: &PassLayout) -> f64 {
    let text = (EXAMPLES * LENGTH) as f64;
    let all = text + PREFIX as f64;
    let active = if layout.injection == Injection::Replace { text } else { all };
    let (d, mlp) = (D as f64, MLP as f64);
    let seen = text * (PREFIX as f64 + (LENGTH as f64 + 1.0) / 2.0);
    2.0 * (all * 2.0 * d * d + active * (2.0 * d * d + 3.0 * d * mlp) + 2.0 * seen * d)
}

/// The block's products with weights on the CPU, `[rows, input] x [input, output]`.
struct Products(Vec<[Tensor<Dispatch, 2>; 2]>);

impl Products {
    fn new() -> Self {
        let device = DispatchDevice::Flex(Default::default());
        let random = |rows, columns| Tensor::random([rows, columns], Distribution::Default, &device);
        let shapes = [(D, D), (D, 2 * D), (D, D), (D, 2 * MLP), (MLP, D)];
        Self(shapes.map(|(input, output)| [random(EXAMPLES * LENGTH + PREFIX, input), random(input, output)]).into())
    }

    fn run(&self) -> Result<(), std::fmt::Error> {
        self.0.iter().for_each(|[x, w]| drop(black_box(x.clone().matmul(w.clone()))));
        Ok(())
    }
}

fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A checkpoint with one random block.
fn write_model(dir: &Path) -> Result<(), Box<dyn Error>> {
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 8, "hidden_size": {D}, "intermediate_size": {MLP},
        "num_hidden_layers": 1, "num_attention_heads": {HEADS}, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}}"#
    );
    std::fs::write(dir.join("config.json"), config)?;
    let shapes = [
        ("input_layernorm", vec![D]),
        ("post_attention_layernorm", vec![D]),
        ("self_attn.q_proj", vec![D, D]),
        ("self_attn.k_proj", vec![D, D]),
        ("self_attn.v_proj", vec![D, D]),
        ("self_attn.o_proj", vec![D, D]),
        ("mlp.gate_proj", vec![MLP, D]),
        ("mlp.up_proj", vec![MLP, D]),
        ("mlp.down_proj", vec![D, MLP]),
    ];
    let mut data = BTreeMap::new();
    for (seed, (name, shape)) in shapes.into_iter().enumerate() {
        let scale = if shape.len() == 1 { 1.0 } else { 0.03 };
        let values = noise(seed as u32, shape.iter().product());
        let bytes: Vec<u8> = values.iter().flat_map(|v| (v * scale).to_le_bytes()).collect();
        data.insert(format!("model.layers.0.{name}.weight"), (shape, bytes));
    }
    let mut views = Vec::new();
    for (name, (shape, bytes)) in &data {
        views.push((name, TensorView::new(FileDtype::F32, shape.clone(), bytes)?));
    }
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(())
}
