//! Times steps of one token through Llama blocks (by default twelve: hidden 1024, MLP 2816, 16 heads) beside the memory bandwidth
//! measured in between.
//!
//! usage: decode_bench [OPTIONS] [DTYPE[/KEYS AND VALUES] [HIDDEN MLP HEADS BLOCKS]]     for example int8/f16
//!   --device DEVICE     where; the bandwidth is that of the processor's memory, and is left out elsewhere
//!   --key-heads N       by default as many as heads
//!   --sequences N,...   with --kept N,...: every number of sequences with every number of tokens that each has in the cache already
//!   --json              one object per line, for scripts/gpu-check
//!
//! A step reads every weight and all that is kept once, so bandwidth bounds it while sequences are few. Prints medians for several batches and lengths of
//! what is in the cache already.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use petals_model::{BlockStack, CachedRows, Checkpoint, Device, Dtype, KvCache, KvDtype, KvMeter, PAGE_TOKENS};
use petals_protocol::Span;
use rayon::prelude::*;

mod random;

const REPETITIONS: usize = 25;
/// Steps before those that count.
const WARMUP: usize = 3;
/// Rows with which caches are filled at a time.
const PIECE: usize = 1024;
/// Sequences, and tokens that each has in the cache, if nobody says.
const CASES: [(usize, usize); 7] = [(1, 0), (1, 512), (1, 2048), (2, 80), (4, 80), (8, 80), (16, 80)];

/// What the command line asks for.
struct Run {
    device: Device,
    dtype: Dtype,
    kv: KvDtype,
    /// Hidden size, the MLP's width, query heads, key heads, blocks.
    sizes: [usize; 5],
    cases: Vec<(usize, usize)>,
    json: bool,
}

impl Run {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut device, mut key_heads, mut json) = (Device::cpu(), None::<usize>, false);
        let (mut sequences, mut kept, mut positional) = (vec![1], Vec::new(), Vec::new());
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} lacks its value"));
            match argument.as_str() {
                "--device" => device = value()?.parse()?,
                "--key-heads" => key_heads = Some(value()?.parse()?),
                "--sequences" => sequences = numbers(&value()?)?,
                "--kept" => kept = numbers(&value()?)?,
                "--json" => json = true,
                _ if argument.starts_with("--") => return Err(format!("{argument} is not an option here").into()),
                _ => positional.push(argument),
            }
        }
        let mut positional = positional.into_iter();
        let dtypes = positional.next().unwrap_or_else(|| "f32".to_owned());
        let (dtype, kv) = dtypes.split_once('/').unwrap_or((&dtypes, "auto"));
        let mut sizes = [1024usize, 2816, 16, 12];
        for (size, argument) in sizes.iter_mut().zip(positional) {
            *size = argument.parse()?;
        }
        let [hidden, mlp, heads, blocks] = sizes;
        let cases = sequences.iter().flat_map(|&batch| kept.iter().map(move |&kept| (batch, kept))).collect();
        Ok(Self {
            device,
            dtype: dtype.parse()?,
            kv: kv.parse()?,
            sizes: [hidden, mlp, heads, key_heads.unwrap_or(heads), blocks],
            cases: if kept.is_empty() { CASES.to_vec() } else { cases },
            json,
        })
    }
}

fn numbers(text: &str) -> Result<Vec<usize>, std::num::ParseIntError> {
    text.split(',').map(str::parse).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let Run { device, dtype, kv, sizes, cases, json } = Run::parse(std::env::args().skip(1))?;
    let [hidden, .., blocks] = sizes;
    let dir = tempfile::tempdir()?;
    random::write_model(dir.path(), sizes)?;
    let span = Span::new(0, u32::try_from(blocks)?)?;
    let stack = Checkpoint::open(dir.path())?.load_span(span, &device, dtype)?.with_kv_dtype(kv)?;
    let weights = stack.weight_bytes() as f64;
    if !json {
        println!(
            "{blocks} blocks, hidden {hidden}, {}, {:.0} MB of weights, keys and values in {}, on {device}",
            stack.dtype(),
            weights / 1e6,
            stack.kv_dtype()
        );
    }
    // What other devices have is not measured from here.
    let memory = if device == Device::cpu() { vec![1.0f32; 1 << 27] } else { Vec::new() };
    for (batch, kept) in cases {
        let mut caches = (0..batch).map(|_| filled(&stack, kept, hidden)).collect::<Result<Vec<_>, _>>()?;
        let (mut steps, mut reads) = (Vec::new(), Vec::new());
        for number in 0..WARMUP + REPETITIONS {
            let text = random::noise(1, batch * hidden);
            let mut rows: Vec<_> = caches.iter_mut().map(|cache| CachedRows { cache, rows: 1, tables: None }).collect();
            let start = Instant::now();
            black_box(stack.step(text, &mut rows, None)?);
            let seconds = start.elapsed().as_secs_f64();
            caches.iter_mut().for_each(|cache| cache.truncate(kept));
            if number < WARMUP {
                continue;
            }
            steps.push(seconds);
            if !memory.is_empty() {
                let start = Instant::now();
                black_box(read(&memory));
                reads.push((memory.len() * 4) as f64 / start.elapsed().as_secs_f64());
            }
        }
        let page = stack.kv_page_bytes(stack.span()) as f64;
        let bytes = weights + (batch * kept) as f64 * page / PAGE_TOKENS as f64;
        let step = median(steps);
        if json {
            println!(
                r#"{{"sequences": {batch}, "kept": {kept}, "ms": {:.4}, "bytes": {bytes:.0}, "gb_per_s": {:.2}}}"#,
                step * 1e3,
                bytes / step / 1e9
            );
            continue;
        }
        let mut line = format!(
            "  batch {batch:2}, {kept:4} kept: {:7.2} ms, {:7.1} tokens/s, weights and cache at {:5.1} GB/s",
            step * 1e3,
            batch as f64 / step,
            bytes / step / 1e9
        );
        if !reads.is_empty() {
            let bandwidth = median(reads);
            line += &format!(" of {:5.1}: {:3.0} %", bandwidth / 1e9, 100.0 * bytes / step / bandwidth);
        }
        println!("{line}");
    }
    Ok(())
}

/// A sequence of `kept` tokens, in memory of its own: devices read what several share once.
fn filled(stack: &BlockStack, kept: usize, hidden: usize) -> Result<KvCache, Box<dyn Error>> {
    let mut cache = stack.cache(stack.span(), kept + PAGE_TOKENS, &KvMeter::default())?;
    for first in (0..kept).step_by(PIECE) {
        let rows = PIECE.min(kept - first);
        let text = random::noise(2 + first as u32, rows * hidden);
        stack.step(text, &mut [CachedRows { cache: &mut cache, rows, tables: None }], Some(&[0]))?;
    }
    Ok(cache)
}

/// Reads memory with every thread as fast as it goes.
fn read(memory: &[f32]) -> f32 {
    memory
        .par_chunks(1 << 16)
        .map(|chunk| {
            let mut sums = [0.0f32; 64];
            for part in chunk.as_chunks::<64>().0 {
                sums.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
            }
            sums.iter().sum::<f32>()
        })
        .sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
