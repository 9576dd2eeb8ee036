//! Times steps of one token through Llama blocks (by default twelve: hidden 1024, MLP 2816, 16 heads) beside the memory bandwidth
//! measured in between.
//!
//! usage: decode_bench [DTYPE[/KEYS AND VALUES] [HIDDEN MLP HEADS BLOCKS]]     for example int8/f16
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

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dtypes = arguments.next().unwrap_or_else(|| "f32".to_owned());
    let (dtype, kv) = dtypes.split_once('/').unwrap_or((&dtypes, "auto"));
    let (dtype, kv): (Dtype, KvDtype) = (dtype.parse()?, kv.parse()?);
    let mut sizes = [1024, 2816, 16, 12];
    for (size, argument) in sizes.iter_mut().zip(arguments) {
        *size = argument.parse()?;
    }
    let [hidden, _, _, blocks] = sizes;
    let dir = tempfile::tempdir()?;
    random::write_model(dir.path(), sizes)?;
    let span = Span::new(0, u32::try_from(blocks)?)?;
    let stack = Checkpoint::open(dir.path())?.load_span(span, &Device::cpu(), dtype)?.with_kv_dtype(kv)?;
    let weights = stack.weight_bytes() as f64;
    println!(
        "{blocks} blocks, hidden {hidden}, {}, {:.0} MB of weights, keys and values in {}",
        stack.dtype(),
        weights / 1e6,
        stack.kv_dtype()
    );
    let memory = vec![1.0f32; 1 << 27];
    for (batch, kept) in [(1, 0), (1, 512), (1, 2048), (2, 80), (4, 80), (8, 80), (16, 80)] {
        let mut caches = caches(&stack, batch, kept, hidden)?;
        let (mut steps, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..REPETITIONS {
            let text = random::noise(1, batch * hidden);
            let mut rows: Vec<_> = caches.iter_mut().map(|cache| CachedRows { cache, rows: 1, tables: None }).collect();
            let start = Instant::now();
            black_box(stack.step(text, &mut rows, None)?);
            steps.push(start.elapsed().as_secs_f64());
            caches.iter_mut().for_each(|cache| cache.truncate(kept));
            let start = Instant::now();
            black_box(read(&memory));
            reads.push((memory.len() * 4) as f64 / start.elapsed().as_secs_f64());
        }
        let page = stack.kv_page_bytes(stack.span()) as f64;
        let bytes = weights + (batch * kept) as f64 * page / PAGE_TOKENS as f64;
        let (step, bandwidth) = (median(steps), median(reads));
        println!(
            "  batch {batch:2}, {kept:4} kept: {:7.2} ms, {:7.1} tokens/s, weights and cache at {:5.1} GB/s of {:5.1}: {:3.0} %",
            step * 1e3,
            batch as f64 / step,
            bytes / step / 1e9,
            bandwidth / 1e9,
            100.0 * bytes / step / bandwidth
        );
    }
    Ok(())
}

/// Sequences of `kept` tokens.
fn caches(stack: &BlockStack, batch: usize, kept: usize, hidden: usize) -> Result<Vec<KvCache>, Box<dyn Error>> {
    let mut cache = stack.cache(stack.span(), 4096, &KvMeter::default())?;
    if kept > 0 {
        stack.step(
            random::noise(2, kept * hidden),
            &mut [CachedRows { cache: &mut cache, rows: kept, tables: None }],
            Some(&[0]),
        )?;
    }
    Ok(vec![cache; batch])
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
