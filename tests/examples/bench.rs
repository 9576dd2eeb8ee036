//! Figures of a swarm on this machine.
//!
//! usage: cargo run --release --workspace --example bench -- [--json FILE] [small|tiny|MODEL_DIRECTORY]...
//!
//! A bootstrap node and two servers with half of the blocks each, real processes over loopback TCP, and the client on the
//! same cores. Prints medians; absolute figures move from machine to machine.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_client::{
    AdamW, Example, InitRule, PassInput, PromptTables, PromptTuner, RemoteSequence, SequenceConfig, TableInit,
    TableShape, Target, TunerConfig,
};
use petals_e2e::{ProcessSwarm, RandomModel};
use petals_model::{Checkpoint, ClientModel};
use petals_protocol::Injection;
use petals_swarm::{Identity, SwarmConfig, SwarmNode};

const BATCH: usize = 4;
const LENGTH: usize = 128;
const PREFIX: usize = 16;

struct Bench {
    swarm: ProcessSwarm,
    sequence: Arc<RemoteSequence>,
    local: Arc<ClientModel>,
    blocks: usize,
    hidden: usize,
    vocab: usize,
    /// Where times go as JSON lines, besides stdout.
    json: Option<File>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let mut json = None;
    if names.first().is_some_and(|first| first == "--json") && names.len() > 1 {
        json = Some(File::create(&names[1])?);
        names.drain(..2);
    }
    if names.is_empty() {
        names = vec!["tiny".into(), "small".into()];
    }
    for name in names {
        let random = tempfile::tempdir()?;
        let directory = match name.as_str() {
            "tiny" => write(RandomModel::TINY, random.path())?,
            "small" => write(RandomModel::SMALL, random.path())?,
            directory => directory.into(),
        };
        println!("\n## {name}");
        let mut bench = Bench::start(&directory, json.take()).await?;
        bench.servers()?;
        bench.hop().await?;
        bench.forward().await?;
        for (task, labels) in [("causal-lm", None), ("seq-cls", Some(2))] {
            for (mode, injection) in
                [("ptune", Injection::None), ("deep replace", Injection::Replace), ("deep add", Injection::Add)]
            {
                bench.train(&format!("{task}, {mode}"), injection, labels).await?;
            }
        }
    }
    Ok(())
}

fn write(model: RandomModel, directory: &Path) -> anyhow::Result<PathBuf> {
    model.write(directory)?;
    Ok(directory.to_owned())
}

impl Bench {
    async fn start(directory: &Path, json: Option<File>) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(directory)?;
        let (blocks, hidden) = (checkpoint.config().num_hidden_layers, checkpoint.config().hidden_size);
        println!(
            "hidden {hidden}, {blocks} blocks, batch {BATCH} x {LENGTH} tokens, prefix {PREFIX}, f32, two servers"
        );
        let (half, started) = (blocks / 2, Instant::now());
        let swarm = ProcessSwarm::start(directory, &[&format!("0..{half}"), &format!("{half}..{blocks}")])?;
        println!("three processes started and ready: {:.2} s", started.elapsed().as_secs_f64());
        let local = Arc::new(checkpoint.load_client(petals_model::Dtype::F32)?);
        let id = checkpoint.model_id(None)?;
        let config = SwarmConfig { peers: vec![swarm.bootstrap.address.parse()?], ..SwarmConfig::client() };
        let (client, _) = SwarmNode::start(Identity::generate(), config).await?;
        client.wait_connected(Duration::from_secs(10)).await?;
        let sequence = RemoteSequence::new(client, id, checkpoint.blocks(), hidden, SequenceConfig::default());
        let vocab = checkpoint.config().vocab_size;
        Ok(Self { swarm, sequence: Arc::new(sequence), local, blocks, hidden, vocab, json })
    }

    /// Memory and start-up of the servers.
    fn servers(&self) -> anyhow::Result<()> {
        for server in &self.swarm.servers {
            let resident = resident_bytes(server.id())?;
            let ready = &server.ready;
            let weights = ready["weight_bytes"].as_u64().context("no weight_bytes")?;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            println!(
                "server {}: ready after {:.2} s; resident {:.0} MiB for {:.0} MiB of weights",
                ready["blocks"],
                ready["seconds"].as_f64().unwrap_or_default(),
                mib(resident),
                mib(weights)
            );
        }
        Ok(())
    }

    /// What hops cost besides computation: frames, checks, encryption, queues.
    async fn hop(&self) -> anyhow::Result<()> {
        let rows = (8192 / (4 * self.hidden)).max(1);
        let (mut totals, mut overheads) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let (lengths, text) = (vec![rows as u32], vec![0.01; rows * self.hidden]);
            let input = PassInput { lengths, text, read_rows: None, prompts: None };
            let started = Instant::now();
            let (_, trace) = self.sequence.forward(input, false).await?;
            totals.push(started.elapsed());
            overheads.extend(trace.timings().map(|timing| timing.elapsed.saturating_sub(timing.computed)));
        }
        println!(
            "{rows} rows (8 KiB): {:.3} ms over two hops; {:.3} ms a hop besides its computation",
            ms(median(totals)),
            ms(median(overheads))
        );
        Ok(())
    }

    async fn forward(&mut self) -> anyhow::Result<()> {
        let text = vec![0.01; BATCH * LENGTH * self.hidden];
        let mut times = Vec::new();
        let before = self.sequence.traffic();
        let repeats = 10;
        for _ in 0..repeats {
            let (lengths, text) = (vec![LENGTH as u32; BATCH], text.clone());
            let input = PassInput { lengths, text, read_rows: None, prompts: None };
            let started = Instant::now();
            self.sequence.forward(input, false).await?;
            times.push(started.elapsed());
        }
        let after = self.sequence.traffic();
        let time = median(times);
        println!(
            "forward of hidden states: {:.1} ms, {:.0} tokens/s, {} bytes up, {} bytes down",
            ms(time),
            (BATCH * LENGTH) as f64 / time.as_secs_f64(),
            (after.sent - before.sent) / repeats,
            (after.received - before.received) / repeats,
        );
        self.record("forward", time)
    }

    async fn train(&mut self, what: &str, injection: Injection, labels: Option<usize>) -> anyhow::Result<()> {
        let shape = TableShape { injection, blocks: self.blocks, prefix_len: PREFIX, hidden: self.hidden, labels };
        let init = TableInit { rule: InitRule::Normal, deep: None, std: 0.02, vocab_size: self.vocab as u32, seed: 0 };
        let tables = PromptTables::initialise(shape, &init, |ids| self.local.embed(ids))?;
        let (sequence, local) = (self.sequence.clone(), self.local.clone());
        let config = TunerConfig::default();
        let mut tuner = PromptTuner::new(sequence, local, tables, AdamW::new(&shape, 0.0), config);
        let batch: Vec<Example> = (0..BATCH).map(|row| self.example(row, labels)).collect();
        for _ in 0..2 {
            tuner.step(&batch, 1e-3).await?;
        }
        let before = self.sequence.traffic();
        let repeats = 7;
        let mut times = Vec::new();
        for _ in 0..repeats {
            times.push(tuner.step(&batch, 1e-3).await?.elapsed);
        }
        let after = self.sequence.traffic();
        let (up, down) = ((after.sent - before.sent) / repeats, (after.received - before.received) / repeats);
        let reference = petals_bytes(self.hidden, self.blocks, injection);
        let time = median(times);
        println!(
            "train {what}: {:.1} ms a step, {:.0} tokens/s, {up} bytes up, {down} down; Petals' formulas {reference}, {:.0} %",
            ms(time),
            (BATCH * LENGTH) as f64 / time.as_secs_f64(),
            100.0 * (up + down) as f64 / reference as f64,
        );
        self.record(&format!("train {what}"), time)
    }

    fn record(&mut self, what: &str, time: Duration) -> anyhow::Result<()> {
        let Some(file) = &mut self.json else { return Ok(()) };
        Ok(writeln!(file, "{}", serde_json::json!({"what": what, "ms": ms(time)}))?)
    }

    fn example(&self, row: usize, labels: Option<usize>) -> Example {
        let tokens = (0..LENGTH).map(|at| ((row * 7919 + at * 104_729 + 3) % self.vocab) as u32).collect();
        let target = labels.map_or(Target::NextToken { from: 1 }, |labels| Target::Class(row % labels));
        Example { tokens, target }
    }
}

/// Bytes of the same step by Petals' protocol at f32: per span up 1 and down 1 forward, up 2 and down 1 backward, each
/// `B (m + S) d` values, and with deep prompts three times `n B m d`.
fn petals_bytes(hidden: usize, blocks: usize, injection: Injection) -> u64 {
    let activations = 5 * 2 * BATCH * (PREFIX + LENGTH) * hidden;
    let prompts = if injection == Injection::None { 0 } else { 3 * blocks * BATCH * PREFIX * hidden };
    4 * (activations + prompts) as u64
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
