//! Times blocks on 4 x 128 tokens: Llama's behind a prefix of 16 (by default one: hidden 1024, MLP 2816, 16 heads), those of other
//! families without one, and a mixture of experts beside dense blocks.
//!
//! usage: block_bench [--hidden N] [--mlp N] [--heads N] [--blocks N] [--portable 0|1] [DEVICE [DTYPE [REPETITIONS]]]
//!        block_bench --family llama|bloom|falcon|mixtral [--blocks N] [DEVICE [DTYPE [REPETITIONS]]]
//!        block_bench --beside-dense mixtral [--blocks N] [DEVICE [DTYPE [REPETITIONS]]]
//!
//! The first prints medians (and the best, for a busy machine) in milliseconds, and GFLOP/s counting matrix products with weights
//! and attention's own. The products with weights alone are timed between the passes, as what cannot be saved.
//!
//! The second prints one JSON object per figure, as `scripts/petals-reference/family_block.py` does for the same blocks in torch.
//!
//! The third prints a table: what a mixture's blocks (by default 4, more than caches hold) take beside dense ones whose MLP is as wide as the
//! experts of a row together, in training passes and in steps of one and of 8 tokens. Where 8 tokens choose for themselves, they meet most
//! experts between them: a step has the work of two experts and reads the weights of many, so it stands beside dense blocks of both kinds.

use std::error::Error;
use std::hint::black_box;
use std::str::FromStr;
use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use burn::{Dispatch, DispatchDevice};
use petals_model::{
    BlockStack, CachedRows, Checkpoint, Device, Dtype, ForwardPass, Keep, KvMeter, OutputGrads, PAGE_TOKENS,
};
use petals_protocol::{Injection, PassLayout, Span};

mod random;
#[path = "random/shapes.rs"]
mod shapes;

use random::{noise, write_model};
use shapes::{Family, MIXTRAL, Shape};

const EXAMPLES: usize = 4;
const LENGTH: usize = 128;
const PREFIX: usize = 16;
/// Passes before those that count.
const WARMUP: usize = 2;
/// Tokens of a larger step.
const TOGETHER: usize = 8;
/// Blocks of a mixture and of those beside it, if nobody says.
const BLOCKS_BESIDE: usize = 4;

/// Takes an option and its value out of the command line.
fn option<T: FromStr<Err: std::fmt::Display>>(arguments: &mut Vec<String>, name: &str) -> Result<Option<T>, String> {
    let Some(at) = arguments.iter().position(|argument| argument == name) else { return Ok(None) };
    if at + 1 == arguments.len() {
        return Err(format!("{name} lacks its value"));
    }
    let value = arguments.drain(at..at + 2).next_back();
    value.map(|value| value.parse().map_err(|error| format!("{name} {value}: {error}"))).transpose()
}

/// The model's sizes.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    mlp: usize,
    heads: usize,
    blocks: usize,
}

/// What is left of the command line.
struct Run {
    device: Device,
    dtype: Dtype,
    repetitions: usize,
}

impl Run {
    fn take(arguments: Vec<String>) -> Result<Self, Box<dyn Error>> {
        if let Some(unknown) = arguments.iter().find(|argument| argument.starts_with("--")) {
            return Err(format!("{unknown} is not an option here: block_bench.rs begins with how it is used").into());
        }
        let mut arguments = arguments.into_iter();
        let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
        let (device, dtype, repetitions) = (next("cpu").parse()?, next("auto").parse()?, next("15").parse::<usize>()?);
        Ok(Self { device, dtype, repetitions: repetitions.max(1) })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let family: Option<String> = option(&mut arguments, "--family")?;
    let mixture: Option<String> = option(&mut arguments, "--beside-dense")?;
    let blocks: Option<usize> = option(&mut arguments, "--blocks")?;
    if let Some(name) = family {
        let shape = Shape { blocks: blocks.unwrap_or(1), ..Shape::named(&name)? };
        return bench_family(&name, shape, &Run::take(arguments)?);
    }
    if let Some(name) = mixture {
        if name != "mixtral" {
            return Err(format!("--beside-dense {name}: use mixtral").into());
        }
        let shape = Shape { blocks: blocks.unwrap_or(BLOCKS_BESIDE), ..MIXTRAL };
        return bench_beside_dense(shape, &Run::take(arguments)?);
    }
    let sizes = Sizes {
        hidden: option(&mut arguments, "--hidden")?.unwrap_or(1024),
        mlp: option(&mut arguments, "--mlp")?.unwrap_or(2816),
        heads: option(&mut arguments, "--heads")?.unwrap_or(16),
        blocks: blocks.unwrap_or(1),
    };
    let portable = option(&mut arguments, "--portable")?.unwrap_or(1) != 0;
    let Run { device, dtype, repetitions } = Run::take(arguments)?;
    let dir = tempfile::tempdir()?;
    write_model(dir.path(), [sizes.hidden, sizes.mlp, sizes.heads, sizes.heads, sizes.blocks])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    for device in [device].into_iter().chain(portable.then(Device::reference)) {
        let stack = checkpoint.load_span(Span::new(0, sizes.blocks as u32)?, &device, dtype)?;
        println!("{device} {}, {EXAMPLES} x {LENGTH} tokens, prefix {PREFIX}", stack.dtype());
        for injection in [Injection::None, Injection::Replace] {
            bench(&stack, sizes, injection, repetitions)?;
        }
    }
    Ok(())
}

fn bench(stack: &BlockStack, sizes: Sizes, injection: Injection, repetitions: usize) -> Result<(), Box<dyn Error>> {
    let layout = layout(stack, PREFIX, injection);
    let mut times = [(); 3].map(|()| Vec::new());
    let (mut products, alone) = (Vec::new(), Products::new(sizes));
    let mut stash_bytes = 0;
    for _ in 0..repetitions {
        let (seconds, bytes) = training(stack, &layout)?;
        times.iter_mut().zip(seconds).for_each(|(times, seconds)| times.push(seconds));
        stash_bytes = bytes;
        products.push(timed(|| alone.run())?.0);
    }
    let work = flops(&layout, sizes) / 1e9;
    let Sizes { hidden, mlp, blocks, .. } = sizes;
    let weights = blocks * (4 * hidden * hidden + 3 * hidden * mlp);
    let products_work = 2e-9 * ((EXAMPLES * LENGTH + PREFIX) * weights) as f64;
    println!("  injection {injection:?}, stash {:.1} MB", stash_bytes as f64 / 1e6);
    let lines = PASSES.into_iter().zip(times).map(|(name, times)| (name, times, work));
    for (name, times, work) in lines.chain([("products, CPU", products, products_work)]) {
        let (median, best) = median_and_best(times);
        println!("    {name:<17} {:7.2} ms {:7.1} GFLOP/s (best {:.2} ms)", median * 1e3, work / median, best * 1e3);
    }
    Ok(())
}

/// One family's blocks, as they are beside torch: all figures in a row, in the form that `scripts/petals-reference/compare.py` reads.
fn bench_family(name: &str, shape: Shape, run: &Run) -> Result<(), Box<dyn Error>> {
    let stack = shape.load(&run.device, run.dtype)?;
    let [found] = training_in_turn([&stack], run.repetitions)?;
    for (pass, median) in PASSES.into_iter().zip(found) {
        println!(r#"{{"what": "{name}: {pass}", "ms": {:.3}}}"#, median * 1e3);
    }
    Ok(())
}

fn bench_beside_dense(shape: Shape, Run { device, dtype, repetitions }: &Run) -> Result<(), Box<dyn Error>> {
    let Family::Mixtral { experts, used } = shape.family else { return Err("the blocks have no experts".into()) };
    let load = |shape: Shape| shape.load(device, *dtype);
    let unmet = (1.0 - used as f64 / experts as f64).powi(TOGETHER as i32);
    let met = (experts as f64 * (1.0 - unmet)).round() as usize;
    let [work, reading] = [used, met].map(|experts| experts * shape.mlp);
    let (mixture, as_much_work) = (load(shape)?, load(shape.dense(work))?);
    println!(
        "Mixtral's block (hidden {}, {experts} experts {} wide, {used} for each row) beside Llama's, on {device} in {}.\n\
         Medians of {repetitions} in ms for one of {} blocks; {TOGETHER} tokens that choose for themselves meet about {met} experts.\n",
        shape.hidden,
        shape.mlp,
        mixture.dtype(),
        shape.blocks
    );
    println!(
        "| what | mixture, ms | MLP of the dense block | dense, ms | mixture / dense |\n|---|---:|---:|---:|---:|"
    );
    let line = |what: &str, [mixture, dense]: [f64; 2], mlp: usize| {
        let ms = |seconds: f64| seconds * 1e3 / shape.blocks as f64;
        println!("| {what} | {:.2} | {mlp} | {:.2} | {:.2} |", ms(mixture), ms(dense), mixture / dense);
    };
    let [of_mixture, of_dense] = training_in_turn([&mixture, &as_much_work], *repetitions)?;
    for ((pass, mixture), dense) in PASSES.into_iter().zip(of_mixture).zip(of_dense) {
        line(&format!("{} rows, {pass}", EXAMPLES * LENGTH), [mixture, dense], work);
    }
    let one = decoding_in_turn([&mixture, &as_much_work], 1, false, *repetitions)?;
    line("1 token", one, work);
    let alike = decoding_in_turn([&mixture, &as_much_work], TOGETHER, true, *repetitions)?;
    line(&format!("{TOGETHER} tokens that choose alike"), alike, work);
    let as_much_reading = load(shape.dense(reading))?;
    let stacks = [&mixture, &as_much_work, &as_much_reading];
    let [own, by_work, by_reading] = decoding_in_turn(stacks, TOGETHER, false, *repetitions)?;
    let what = format!("{TOGETHER} tokens that choose for themselves");
    line(&what, [own, by_work], work);
    line(&what, [own, by_reading], reading);
    Ok(())
}

/// What [`training`] times.
const PASSES: [&str; 3] = ["forward", "forward and stash", "backward"];

fn layout(stack: &BlockStack, prefix: usize, injection: Injection) -> PassLayout {
    PassLayout {
        span: stack.span(),
        lengths: vec![LENGTH as u32; EXAMPLES],
        prefix_len: prefix as u32,
        injection,
        weights: Default::default(),
        read_rows: None,
    }
}

/// Seconds of a forward, of one that keeps what its backward needs, and of that backward, to the input; and the bytes that were kept.
fn training(stack: &BlockStack, layout: &PassLayout) -> Result<([f64; 3], u64), Box<dyn Error>> {
    let (hidden, prefix) = (stack.config().hidden_size, layout.prefix_rows());
    let pass = || ForwardPass {
        layout,
        text: noise(1, layout.tokens() * hidden),
        prefix: layout.carries_prefix().then(|| noise(2, prefix * hidden)),
        tables: layout.has_tables().then(|| noise(3, layout.span.len() * prefix * hidden)),
    };
    let inputs = pass();
    let (forward, _) = timed(|| stack.forward(inputs, Keep::Nothing))?;
    let inputs = pass();
    let (keeping, output) = timed(|| stack.forward(inputs, Keep::Everything))?;
    let stash = output.stash.ok_or("nothing was kept")?;
    let bytes = stash.bytes();
    let grads = OutputGrads { text: noise(4, output.text.len()), prefix: output.prefix };
    let (backward, _) = timed(|| stack.backward(stash, grads, true))?;
    Ok(([forward, keeping, backward], bytes))
}

/// Medians of [`training`] without a prefix for several stacks, which take turns.
fn training_in_turn<const N: usize>(
    stacks: [&BlockStack; N],
    repetitions: usize,
) -> Result<[[f64; 3]; N], Box<dyn Error>> {
    let mut times = stacks.map(|_| [(); 3].map(|()| Vec::new()));
    for number in 0..WARMUP + repetitions {
        for (stack, times) in stacks.iter().zip(&mut times) {
            let (seconds, _) = training(stack, &layout(stack, 0, Injection::None))?;
            if number >= WARMUP {
                times.iter_mut().zip(seconds).for_each(|(times, seconds)| times.push(seconds));
            }
        }
    }
    Ok(times.map(|times| times.map(|times| median_and_best(times).0)))
}

/// Medians of a step of `tokens` sequences that begin, for several stacks, which take turns. If the tokens are `alike`, they choose the same experts.
fn decoding_in_turn<const N: usize>(
    stacks: [&BlockStack; N],
    tokens: usize,
    alike: bool,
    repetitions: usize,
) -> Result<[f64; N], Box<dyn Error>> {
    let mut times = stacks.map(|_| Vec::new());
    for number in 0..WARMUP + repetitions {
        for (stack, times) in stacks.iter().zip(&mut times) {
            let (hidden, seed) = (stack.config().hidden_size, 100 + number as u32);
            let text = if alike { noise(seed, hidden).repeat(tokens) } else { noise(seed, tokens * hidden) };
            let cache = |_| stack.cache(stack.span(), PAGE_TOKENS, &KvMeter::default());
            let mut caches = (0..tokens).map(cache).collect::<Result<Vec<_>, _>>()?;
            let mut rows: Vec<_> = caches.iter_mut().map(|cache| CachedRows { cache, rows: 1, tables: None }).collect();
            let (seconds, _) = timed(|| stack.step(text, &mut rows, None))?;
            if number >= WARMUP {
                times.push(seconds);
            }
        }
    }
    Ok(times.map(|times| median_and_best(times).0))
}

fn median_and_best(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
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
