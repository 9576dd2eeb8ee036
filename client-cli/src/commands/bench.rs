//! `petals-tune bench`.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::Error;
use petals_client::{Benchmark, BenchmarkError, Injection, ModelFiles, Repetition, ServerWork, WeightChange, Workload};
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System};

use super::{session, stop::StopSignal};
use crate::args::{BenchArgs, BenchKind};
use crate::error::CliError;
use crate::output::{BenchRepetition, BenchResult, BenchServer, BenchSetup, Output};
use crate::progress::Repetitions;

/// Bytes of a request that stands for a small one.
const SMALL_REQUEST: usize = 8192;

/// One line of results: what is repeated, and how often.
struct Job {
    kind: BenchKind,
    /// Rows of a hop's request.
    rows: usize,
    label: String,
    workload: Workload,
    repeat: usize,
}

pub(crate) async fn run(args: BenchArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let longest = files.config.max_position_embeddings;
    if args.length + args.training.prefix_len > longest {
        let message = format!("--length and --prefix-len together exceed the model's {longest} positions");
        return Err(CliError::Usage(message));
    }
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    output.emit(&BenchSetup {
        model: files.adapted.id.to_string(),
        blocks: files.config.num_hidden_layers,
        hidden: files.config.hidden_size,
        wire_dtype: args.swarm.wire_dtype.to_string(),
    })?;
    let mut stopped = pin!(StopSignal::install()?.received());
    for job in jobs(&args, &files)? {
        let mut benchmark = Benchmark::new(&files, sequence.clone(), job.workload.clone());
        let mut done = Vec::new();
        let interrupted = tokio::select! {
            finished = job.repeat(&mut benchmark, args.warmup, output, &mut done) => finished.map(|()| false)?,
            () = &mut stopped => true,
        };
        if !done.is_empty() {
            output.emit(&job.result(&done))?;
        }
        if interrupted {
            tracing::warn!("interrupted after {} of {} repetitions of {}", done.len(), job.repeat, job.label);
            break;
        }
    }
    swarm.shutdown().await;
    Ok(())
}

fn jobs(args: &BenchArgs, files: &ModelFiles) -> Result<Vec<Job>, CliError> {
    let row = 4 * files.config.hidden_size;
    let mut jobs = Vec::new();
    for &kind in &args.what {
        let workload = args.workload(kind, &files.adapted.projections).map_err(CliError::Usage)?;
        let sizes = format!("{} x {}", workload.batch, workload.length);
        let mut add =
            |rows, label| jobs.push(Job { kind, rows, label, workload: workload.clone(), repeat: args.repeat(kind) });
        match kind {
            BenchKind::Forward => add(0, format!("forward, {sizes}")),
            BenchKind::Train => {
                let Workload { task, method, .. } = &workload;
                let mode = method.mode().to_string();
                let mode = match method.injection {
                    Injection::Add => mode.replace("deep_ptune", "deep add"),
                    Injection::Replace => mode.replace("deep_ptune", "deep replace"),
                    _ => mode,
                };
                let size = match (method.prefix_len, method.weights) {
                    (0, WeightChange::LowRank { rank, .. }) => format!(" {rank}"),
                    (0, _) => String::new(),
                    (rows, _) => format!(" {rows}"),
                };
                add(0, format!("train {task}, {mode}{size}, {sizes}"));
            }
            BenchKind::Decode => add(0, format!("decode, {} at a time", workload.batch)),
            BenchKind::Hop => {
                for rows in [1, (SMALL_REQUEST / row).max(1)] {
                    add(rows, format!("hop besides its computation, {} bytes", rows * row));
                }
            }
        }
    }
    jobs.dedup_by(|a, b| a.label == b.label);
    Ok(jobs)
}

impl Job {
    async fn repeat(
        &self,
        benchmark: &mut Benchmark,
        warmup: usize,
        output: Output,
        done: &mut Vec<Repetition>,
    ) -> Result<(), CliError> {
        let mut progress = Repetitions::new(output, &self.label, self.repeat);
        for _ in 0..warmup {
            self.once(benchmark).await.map_err(Error::from)?;
        }
        while done.len() < self.repeat {
            let repetition = self.once(benchmark).await.map_err(Error::from)?;
            let ms = ms(repetition.elapsed);
            done.push(repetition);
            progress.show(done.len(), ms);
            if output.is_json() {
                output.emit(&BenchRepetition { what: self.kind.name(), number: done.len(), ms })?;
            }
        }
        Ok(())
    }

    async fn once(&self, benchmark: &mut Benchmark) -> Result<Repetition, BenchmarkError> {
        match self.kind {
            BenchKind::Forward => benchmark.forward().await,
            BenchKind::Train => benchmark.train().await,
            BenchKind::Decode => benchmark.decode().await,
            BenchKind::Hop => benchmark.hop(self.rows).await,
        }
    }

    /// Figures of at least one repetition.
    fn result(&self, done: &[Repetition]) -> BenchResult {
        let is_hop = self.kind == BenchKind::Hop;
        let mut times: Vec<Duration> = if is_hop {
            let hops = done.iter().flat_map(|repetition| &repetition.hops);
            hops.map(|hop| hop.elapsed.saturating_sub(hop.computed)).collect()
        } else {
            done.iter().map(|repetition| repetition.elapsed).collect()
        };
        times.sort();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let best = times.first().copied().unwrap_or_default();
        let mean = |count: fn(&Repetition) -> u64| done.iter().map(count).sum::<u64>() as f64 / done.len() as f64;
        let elapsed: Duration = done.iter().map(|repetition| repetition.elapsed).sum();
        let servers = servers(done);
        let busy = servers.iter().map(|server| server.computed_ms).sum::<f64>() / servers.len() as f64;
        BenchResult {
            what: self.kind.name(),
            label: self.label.clone(),
            repeats: done.len(),
            median_ms: ms(median),
            best_ms: ms(best),
            tokens_per_s: done.first().filter(|_| !is_hop).map(|r| r.tokens as f64 / median.as_secs_f64().max(1e-9)),
            sent_bytes: mean(|repetition| repetition.traffic.sent),
            received_bytes: mean(|repetition| repetition.traffic.received),
            requests: mean(|repetition| repetition.traffic.requests),
            block_forwards: mean(|repetition| repetition.traffic.block_forwards),
            block_backwards: mean(|repetition| repetition.traffic.block_backwards),
            idle: (!servers.is_empty() && !is_hop).then(|| 1.0 - busy / (ms(elapsed) / done.len() as f64).max(1e-9)),
            servers,
            resident_bytes: resident_bytes(),
        }
    }
}

fn servers(done: &[Repetition]) -> Vec<BenchServer> {
    let mut sums: BTreeMap<String, ServerWork> = BTreeMap::new();
    for (peer, work) in done.iter().flat_map(|repetition| &repetition.servers) {
        let sum = sums.entry(peer.to_string()).or_default();
        sum.passes += work.passes;
        sum.computed += work.computed;
        sum.queued += work.queued;
    }
    let count = done.len() as f64;
    let server = |(peer, work): (String, ServerWork)| BenchServer {
        peer,
        passes: work.passes as f64 / count,
        computed_ms: ms(work.computed) / count,
        queued_ms: ms(work.queued) / count,
    };
    sums.into_iter().map(server).collect()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Resident memory of this process; `None` where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let (id, mut system) = (sysinfo::get_current_pid().ok()?, System::new());
    let memory = ProcessRefreshKind::nothing().without_tasks().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), false, memory);
    system.process(id).map(Process::memory).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_client::{HopTiming, Method, Task, TunerConfig};

    fn job(kind: BenchKind) -> Job {
        let passes = TunerConfig::default();
        let method = Method { injection: Injection::None, prefix_len: 1, weights: WeightChange::None, scale: 1.0 };
        let workload = Workload { batch: 1, length: 2, method, task: Task::CausalLm, passes };
        Job { kind, rows: 1, label: String::new(), workload, repeat: 3 }
    }

    fn repetition(ms: u64) -> Repetition {
        let elapsed = Duration::from_millis(ms);
        let computed = elapsed / 4;
        let hops = vec![HopTiming { elapsed, computed, queued: Duration::ZERO }];
        Repetition { elapsed, tokens: 100, hops, ..Repetition::default() }
    }

    #[test]
    fn the_median_counts_and_hops_are_timed_without_their_computation() {
        let done = [40, 10, 20].map(repetition);
        let forward = job(BenchKind::Forward).result(&done);
        assert_eq!((forward.median_ms, forward.best_ms, forward.repeats), (20.0, 10.0, 3));
        assert_eq!((forward.tokens_per_s, forward.idle), (Some(5000.0), None));
        let hop = job(BenchKind::Hop).result(&done);
        assert_eq!((hop.median_ms, hop.best_ms, hop.tokens_per_s), (15.0, 7.5, None));
    }
}
