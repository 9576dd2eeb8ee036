//! Benchmarks that need a swarm of a certain kind: this starts one of real `petals-node` processes on this machine, and
//! times it with `petals-tune bench`.
//!
//! usage: cargo run --release --example bench -- WHAT
//!
//!   local [tiny|medium|small|DIR]...            hops, forward and every kind of training step through two servers
//!   wan [--key VALUES]...                       training over slow links: see `scripts/bench-wan`
//!   idle [BATCH]                                how much of a step two servers on a core each are idle
//!   speculation [DIR [ROUND_TRIP_MS [MBIT]]]   generation over slow links, with and without foreseen tokens
//!   memory [tiny|medium|small|DIR] [STEPS]      the servers' memory during a long run
//!   model tiny|medium|small DIR                 writes one of the random models, for other benchmarks
//!
//! The programs must have been built (`cargo build --release --workspace`). Absolute figures move from machine to machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use petals_e2e::{RandomModel, Tune};
use serde_json::Value;

mod idle;
mod local;
mod memory;
mod speculation;
mod wan;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.split_first() {
        Some((&"local", models)) => local::run(models),
        Some((&"wan", options)) => wan::run(options),
        Some((&"idle", options)) => idle::run(options),
        Some((&"memory", options)) => memory::run(options),
        Some((&"speculation", options)) => speculation::run(options),
        Some((&"model", [name, directory])) => random(name)?.write(Path::new(directory)),
        _ => bail!("which benchmark? local, wan, idle, memory, speculation, or model"),
    }
}

/// The random model of this name.
fn random(name: &str) -> anyhow::Result<RandomModel> {
    match name {
        "tiny" => Ok(RandomModel::TINY),
        "medium" => Ok(RandomModel::MEDIUM),
        "small" => Ok(RandomModel::SMALL),
        other => bail!("no random model is called {other}: tiny, medium or small"),
    }
}

/// A model's directory, made if it is one of the random ones.
struct Model {
    directory: PathBuf,
    _random: Option<tempfile::TempDir>,
}

impl Model {
    /// `tiny`, `medium`, `small`, or the directory of a checkpoint.
    fn named(name: &str) -> anyhow::Result<Self> {
        match random(name) {
            Ok(model) => Self::random(model),
            Err(_) => Ok(Self { directory: name.into(), _random: None }),
        }
    }

    fn random(model: RandomModel) -> anyhow::Result<Self> {
        let parent = tempfile::tempdir()?;
        let directory = parent.path().join("random");
        model.write(&directory)?;
        Ok(Self { directory, _random: Some(parent) })
    }

    /// Value of `config.json`.
    fn extent(&self, key: &str) -> anyhow::Result<usize> {
        let config: Value = serde_json::from_slice(&std::fs::read(self.directory.join("config.json"))?)?;
        Ok(config[key].as_u64().with_context(|| format!("config.json has no {key}"))? as usize)
    }

    /// `count` spans of the same size, the last one with the rest.
    fn spans(&self, count: usize) -> anyhow::Result<Vec<String>> {
        let blocks = self.extent("num_hidden_layers")?;
        anyhow::ensure!(count > 0 && count <= blocks, "{blocks} blocks cannot be split into {count} spans");
        let end = |number: usize| if number == count { blocks } else { number * (blocks / count) };
        Ok((0..count).map(|number| format!("{}..{}", end(number), end(number + 1))).collect())
    }

    fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Runs a benchmark to its end and returns its `bench` events.
fn results(tune: Tune) -> anyhow::Result<Vec<Value>> {
    let mut events = tune.events()?;
    events.retain(|event| event["event"] == "bench");
    Ok(events)
}

/// As [`results`], of a benchmark that has one.
fn result(tune: Tune) -> anyhow::Result<Value> {
    results(tune)?.pop().context("the benchmark printed no result")
}

/// A number of an event.
fn number(event: &Value, key: &str) -> anyhow::Result<f64> {
    event[key].as_f64().with_context(|| format!("{key} is missing in {event}"))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
