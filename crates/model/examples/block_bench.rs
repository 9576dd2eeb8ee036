//! Times Llama blocks (by default one: hidden 1024, MLP 2816, 16 heads) on 4 x 128 tokens behind a prefix of 16.
//!
//! usage: block_bench [--hidden N] [--mlp N] [--heads N] [--blocks N] [--portable 0|1] [DEVICE [DTYPE [REPETITIONS]]]
//!
//! Prints medians (and the best, for a busy machine) in milliseconds, and GFLOP/s counting matrix products with weights
//! and attention's own. The products with weights alone are timed between the passes, as what cannot be saved.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use burn::{Dispatch, DispatchDevice};
use petals_model::{BlockStack, Checkpoint, Device, Dtype, ForwardPass, Keep, OutputGrads};
use petals_protocol::{Injection, PassLayout, Span};

mod random;

use random::{noise, write_model};

const EXAMPLES: usize = 4;
const LENGTH: usize = 128;
const PREFIX: usize = 16;

/// The model's sizes.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    mlp: usize,
    heads: usize,
    blocks: usize,
    /// Whether to time the CPU without kernels too.
    portable: bool,
}

impl Sizes {
    /// Takes the options out of the command line; the rest is positional.
    fn take(arguments: &mut Vec<String>) -> Result<Self, Box<dyn Error>> {
        let mut take = |name: &str, default| {
            match arguments.iter().position(|argument| argument == name) {
                Some(at) if at + 1 < arguments.len() => Ok(arguments.drain(at..at + 2).next_back()),
                Some(_) => Err(format!("{name} lacks its value")),
                None => Ok(None),
            }
            .and_then(|value| value.map_or(Ok(default), |value| value.parse().map_err(|e| format!("{name}: {e}"))))
        };
        let (hidden, mlp) = (take("--hidden", 1024)?, take("--mlp", 2816)?);
        Ok(Self {
            hidden,
            mlp,
            heads: take("--heads", 16)?,
            blocks: take("--blocks", 1)?,
            portable: take("--portable", 1)? != 0,
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let sizes = Sizes::take(&mut arguments)?;
    let mut arguments = arguments.into_iter();
    let device: Device = arguments.next().unwrap_or_else(|| "cpu".to_owned()).parse()?;
    let dtype: Dtype = arguments.next().unwrap_or_else(|| "auto".to_owned()).parse()?;
    let repetitions: usize = arguments.next().unwrap_or_else(|| "15".to_owned()).parse()?;
    let dir = tempfile::tempdir()?;
    write_model(dir.path(), [sizes.hidden, sizes.mlp, sizes.heads, sizes.blocks])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    for device in [device].into_iter().chain(sizes.portable.then(Device::reference)) {
        let stack = checkpoint.load_span(Span::new(0, sizes.blocks as u32)?, &device, dtype)?;
        println!("{device} {}, {EXAMPLES} x {LENGTH} tokens, prefix {PREFIX}", stack.dtype());
        for injection in [Injection::None, Injection::Replace] {
            bench(&stack, sizes, injection, repetitions)?;
        }
    }
    Ok(())
}

fn bench(stack: &BlockStack, sizes: Sizes, injection: Injection, repetitions: usize) -> Result<(), Box<dyn Error>> {
    let layout = PassLayout {
        span: stack.span(),
        lengths: vec![LENGTH as u32; EXAMPLES],
        prefix_len: PREFIX as u32,
        injection,
        weights: Default::default(),
        read_rows: None,
    };
    let Sizes { hidden, mlp, blocks, .. } = sizes;
    let pass = || ForwardPass {
        layout: &layout,
        text: noise(1, EXAMPLES * LENGTH * hidden),
        prefix: layout.carries_prefix().then(|| noise(2, PREFIX * hidden)),
        tables: layout.has_tables().then(|| noise(3, blocks * PREFIX * hidden)),
    };
    let [mut forward, mut keeping, mut backward, mut products] = [(); 4].map(|()| Vec::new());
    let alone = Products::new(sizes);
    let mut stash_bytes = 0;
    for _ in 0..repetitions {
        let inputs = pass();
        forward.push(timed(|| stack.forward(inputs, Keep::Nothing))?.0);
        let inputs = pass();
        let (time, output) = timed(|| stack.forward(inputs, Keep::Everything))?;
        keeping.push(time);
        let stash = output.stash.ok_or("no stash")?;
        stash_bytes = stash.bytes();
        let grads = OutputGrads { text: noise(4, output.text.len()), prefix: output.prefix };
        backward.push(timed(|| stack.backward(stash, grads, true))?.0);
        products.push(timed(|| alone.run())?.0);
    }
    let work = flops(&layout, sizes) / 1e9;
    let weights = blocks * (4 * hidden * hidden + 3 * hidden * mlp);
    let products_work = 2e-9 * ((EXAMPLES * LENGTH + PREFIX) * weights) as f64;
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
fn flops(layout: &PassLayout, sizes: Sizes) -> f64 {
    let text = (EXAMPLES * LENGTH) as f64;
    let all = text + PREFIX as f64;
    let active = if layout.injection == Injection::Replace { text } else { all };
    let (d, mlp) = (sizes.hidden as f64, sizes.mlp as f64);
    let seen = text * (PREFIX as f64 + (LENGTH as f64 + 1.0) / 2.0);
    sizes.blocks as f64 * 2.0 * (all * 2.0 * d * d + active * (2.0 * d * d + 3.0 * d * mlp) + 2.0 * seen * d)
}

/// The blocks' products with weights on the CPU, `[rows, input] x [input, output]`.
struct Products {
    operands: Vec<[Tensor<Dispatch, 2>; 2]>,
    blocks: usize,
}

impl Products {
    fn new(Sizes { hidden: d, mlp, blocks, .. }: Sizes) -> Self {
        let device = DispatchDevice::Flex(Default::default());
        let random = |rows, columns| Tensor::random([rows, columns], Distribution::Default, &device);
        let shapes = [(d, d), (d, 2 * d), (d, d), (d, 2 * mlp), (mlp, d)];
        let operands = |(input, output)| [random(EXAMPLES * LENGTH + PREFIX, input), random(input, output)];
        Self { operands: shapes.map(operands).into(), blocks }
    }

    fn run(&self) -> Result<(), std::fmt::Error> {
        for [x, w] in (0..self.blocks).flat_map(|_| &self.operands) {
            drop(black_box(x.clone().matmul(w.clone())));
        }
        Ok(())
    }
}
