//! Somebody honest on a host of its own, who trains and generates, and whose figures are compared.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::goldens::Goldens;
use crate::internet::Host;
use crate::programs::Tune;

/// An honest client of a swarm that serves a tiny model.
#[derive(Debug)]
pub struct Bystander<'a> {
    host: &'a Host,
    peers: String,
    model: PathBuf,
    first_tables: PathBuf,
    out: tempfile::TempDir,
    runs: Cell<usize>,
}

impl<'a> Bystander<'a> {
    /// On `host`, who joins through `peers`.
    ///
    /// # Errors
    /// If there is no room for what it writes.
    pub fn new(host: &'a Host, goldens: &Goldens, peers: &str) -> anyhow::Result<Self> {
        let (model, first_tables) = (goldens.model(), goldens.path("init-replace"));
        Ok(Self { host, peers: peers.to_owned(), model, first_tables, out: tempfile::tempdir()?, runs: Cell::new(0) })
    }

    /// A command that finds what earlier ones remembered, as a user's do.
    fn tune(&self, command: &str) -> anyhow::Result<Tune> {
        let cache = self.out.path().join("cache");
        let cache = cache.to_str().context("a path that is not UTF-8")?;
        let tune = Tune::on(self.host, &[command, "--peers", &self.peers])?.env("XDG_CACHE_HOME", cache);
        Ok(tune.path("--model", &self.model))
    }

    /// The command of a training run that always takes the same steps.
    ///
    /// # Errors
    /// If the program is missing.
    pub fn training(&self, steps: usize) -> anyhow::Result<Tune> {
        self.runs.set(self.runs.get() + 1);
        Ok(self
            .tune("train")?
            .args(&["--mode", "deep_ptune", "--injection", "replace", "--prefix-len", "5", "--task", "causal-lm"])
            .args(&["--batch-size", "32", "--accumulation", "4", "--lr", "0.003", "--no-shuffle"])
            .args(&["--max-length", "64", "--micro-batch-tokens", "400", "--in-flight", "3"])
            .args(&["--steps", &steps.to_string()])
            .path("--data", &Goldens::data("train-causal.jsonl"))
            .path("--init-from", &self.first_tables)
            .path("--out", &self.out.path().join(self.runs.get().to_string())))
    }

    /// Losses of a run, and the time between the ends of its first and its last step.
    ///
    /// # Errors
    /// If it fails.
    pub fn trains(&self, steps: usize) -> anyhow::Result<(Vec<f64>, Duration)> {
        let mut ends = Vec::new();
        let (losses, finished) = self.training(steps)?.watch(|event| {
            ends.extend((event["event"] == "step").then(Instant::now));
            true
        })?;
        ensure!(finished && losses.len() == steps && steps > 1, "the run failed after {} steps", losses.len());
        Ok((losses, ends[ends.len() - 1] - ends[0]))
    }

    /// Tokens of a text that is always the same, one at a time, and the time that they took.
    ///
    /// # Errors
    /// If it fails.
    pub fn generates(&self, tokens: usize) -> anyhow::Result<(Value, Duration)> {
        let tune =
            self.tune("generate")?.args(&["--prompt", "the", "--no-lookup", "--max-new-tokens", &tokens.to_string()]);
        let events = tune.events()?;
        // What is told of servers may come behind it.
        let text = events.iter().rev().find_map(|event| Some((event, event["elapsed_s"].as_f64()?)));
        let (text, elapsed) = text.with_context(|| format!("no text: {events:?}"))?;
        Ok((text["token_ids"].clone(), Duration::from_secs_f64(elapsed)))
    }
}
