//! `petals-node bench`: passes over blocks in this process, without a network.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_model::{BlockStack, Checkpoint};
use petals_protocol::Injection;

use super::events::{BenchFigures, BenchSetup, NodeEvent};
use super::model;
use super::serve::check_blocks;
use super::signals::StopSignals;
use crate::args::{BenchArgs, BenchInjection, BenchKind, BenchMode, BenchTask};
use crate::error::NodeError;
use crate::machine::division;
use crate::machine::memory::{self, Free};

mod passes;

use passes::{Lap, Passes};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: BenchArgs) -> Result<(), NodeError> {
    let mut signals = StopSignals::install()?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || measure(&args, &stopped));
    if let Some(done) = signals.unless_stopped(&mut work).await {
        return done.context("the benchmark was interrupted")?;
    }
    // What has been measured is printed before the work ends; a second signal does not wait for the pass that runs.
    stop.store(true, Ordering::Relaxed);
    match signals.unless_stopped(work).await {
        Some(done) => done.context("the benchmark was interrupted")?,
        None => std::process::exit(130),
    }
}

fn measure(args: &BenchArgs, stop: &AtomicBool) -> Result<(), NodeError> {
    let (_, checkpoint) = model::open(&args.model, &args.hub, None, args.json).map_err(model::refused)?;
    check_blocks(args.blocks, &checkpoint)?;
    check_length(args, &checkpoint)?;
    let span = args.blocks.unwrap_or_else(|| checkpoint.blocks());
    checkpoint.supply(span).map_err(anyhow::Error::from)?;
    let places = args.compute.resolve(&checkpoint).map_err(NodeError::input)?;
    let started = Instant::now();
    let free = Free::on(places.iter().map(|place| &place.device));
    let division = division::divide(&checkpoint, span, &places, &free, |_| None).context("no device was named")?;
    let blocks = checkpoint.load_division(&division, None).context("cannot load the blocks")?;
    let setup = BenchSetup {
        model: args.model.display().to_string(),
        blocks: span.to_string(),
        hidden: checkpoint.config().hidden_size,
        weight_bytes: blocks.weight_bytes(),
        device: division::words(&division),
        dtype: blocks.dtype().to_string(),
        kv_dtype: blocks.kv_dtype().to_string(),
        load_s: started.elapsed().as_secs_f64(),
    };
    NodeEvent::BenchSetup(setup).emit(args.json);
    for &kind in &args.what {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let passes = Passes::new(&checkpoint, span, args, kind);
        let laps = repeat(args, kind, &blocks, &passes, stop)?;
        for figures in figures(kind, &passes, &blocks, &laps) {
            NodeEvent::Bench(figures).emit(args.json);
        }
    }
    Ok(())
}

fn check_length(args: &BenchArgs, checkpoint: &Checkpoint) -> Result<(), NodeError> {
    let (rows, longest) =
        (args.length as usize + args.prefix_len as usize, checkpoint.config().max_position_embeddings);
    if rows > longest {
        let error = anyhow::anyhow!("--length and --prefix-len together exceed the model's {longest} positions");
        return Err(NodeError::input(error));
    }
    Ok(())
}

fn repeat(
    args: &BenchArgs,
    kind: BenchKind,
    blocks: &BlockStack,
    passes: &Passes,
    stop: &AtomicBool,
) -> Result<Vec<Lap>, NodeError> {
    let default = if kind == BenchKind::Decode { 50 } else { 7 };
    let repeat = args.repeat.unwrap_or(default) as usize;
    let (mut laps, mut shown) = (Vec::new(), Instant::now());
    for number in 0..args.warmup as usize + repeat {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let lap = passes.run(blocks).context("a pass failed")?;
        if number >= args.warmup as usize {
            laps.push(lap);
        }
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            eprintln!("{}: {} of {repeat} repetitions", passes.label(), laps.len());
        }
    }
    Ok(laps)
}

/// One line for each part of the work; none if nothing was measured.
fn figures(kind: BenchKind, passes: &Passes, blocks: &BlockStack, laps: &[Lap]) -> Vec<BenchFigures> {
    let Some(first) = laps.first() else { return Vec::new() };
    let line = |part: &'static str, time: fn(&Lap) -> Duration| {
        let mut times: Vec<Duration> = laps.iter().map(time).collect();
        times.sort();
        let median = times[times.len() / 2];
        let per_second = |amount: f64| amount / median.as_secs_f64().max(1e-9);
        BenchFigures {
            what: part,
            label: format!("{part}, {}", passes.label()),
            repeats: laps.len(),
            median_ms: median.as_secs_f64() * 1e3,
            best_ms: times[0].as_secs_f64() * 1e3,
            tokens_per_s: per_second(passes.tokens() as f64),
            weight_gb_per_s: (kind == BenchKind::Decode).then(|| per_second(blocks.weight_bytes() as f64) / 1e9),
            stash_bytes: first.stash_bytes,
            resident_bytes: memory::resident(),
        }
    };
    match kind {
        BenchKind::Forward => vec![line("forward", |lap| lap.forward)],
        BenchKind::Prompt => vec![line("prompt", |lap| lap.forward)],
        BenchKind::Decode => vec![line("decode", |lap| lap.forward)],
        BenchKind::Train => vec![
            line("forward and stash", |lap| lap.forward),
            line("backward", |lap| lap.backward),
            line("train", |lap| lap.forward + lap.backward),
        ],
    }
}

/// What blocks do to the prefix in training.
fn injection(args: &BenchArgs) -> Injection {
    match (args.mode, args.injection) {
        _ if args.prefix_len == 0 => Injection::None,
        (BenchMode::Ptune, _) => Injection::None,
        (BenchMode::DeepPtune, BenchInjection::Add) => Injection::Add,
        (BenchMode::DeepPtune, BenchInjection::Replace) => Injection::Replace,
    }
}

/// Rows that are read behind the last block; `None` for all.
fn read_rows(args: &BenchArgs, kind: BenchKind, batch: u32) -> Option<Vec<u32>> {
    match (kind, args.task) {
        (BenchKind::Forward | BenchKind::Decode, _) => None,
        (BenchKind::Train, BenchTask::CausalLm) => Some((0..batch * args.length).collect()),
        (BenchKind::Prompt, _) | (BenchKind::Train, BenchTask::SeqCls) => {
            Some((1..=batch).map(|example| example * args.length - 1).collect())
        }
    }
}
