//! Two clients train while servers are killed, stopped, cut off and lose packets, and the bootstrap node is gone for good.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{Goldens, ProcessSwarm, Tune, assert_curves_close};
use serde_json::Value;

use crate::faults::{Kind, Storm};
use crate::fleet::{Fleet, MORTAL};

/// A storm has time for everything if the clients are under way for so long.
const STORM: Duration = Duration::from_secs(40);
/// As many steps as that takes on a slow machine; fast ones take more of them.
const LEAST_STEPS: usize = 400;
/// A killed hop's work is done elsewhere within this, on a machine that has time for it. Printed, not asserted: two loaded
/// cores run eleven nodes here.
const RECOVERY: Duration = Duration::from_secs(2);
/// Longer than this is no fault of the machine.
const WORST_RECOVERY: Duration = Duration::from_secs(10);

/// The two runs. What a step computes does not depend on what the swarm is like: micro-batches are cut alike.
fn training(tune: Tune, goldens: &Goldens, client: usize, steps: usize, out: &std::path::Path) -> Tune {
    let (injection, task, data, relay) =
        [("replace", "causal-lm", "causal", "chain"), ("add", "seq-cls", "cls", "star")][client];
    tune.args(&["--mode", "deep_ptune", "--injection", injection, "--prefix-len", "5", "--task", task])
        .args(&["--steps", &steps.to_string(), "--batch-size", "32", "--accumulation", "4", "--lr", "0.003"])
        .args(&["--no-shuffle", "--max-length", "64", "--micro-batch-tokens", "400", "--in-flight", "3"])
        .args(&["--relay", relay, "--give-up-after", "3m"])
        .path("--data", &Goldens::data(&format!("train-{data}.jsonl")))
        .path("--init-from", &goldens.path(&format!("init-{injection}")))
        .path("--out", &out.join(format!("client{client}")))
}

/// What a client told, and when.
type Told = Vec<(Instant, Value)>;

fn losses(told: &Told) -> Vec<f64> {
    steps(told).filter_map(|(_, event)| event["loss"].as_f64()).collect()
}

fn steps(told: &Told) -> impl Iterator<Item = &(Instant, Value)> {
    told.iter().filter(|(_, event)| event["event"] == "step")
}

#[test]
fn training_through_a_storm_loses_nothing() -> anyhow::Result<()> {
    let seed = std::env::var("PETALS_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4);
    eprintln!("storm: PETALS_CHAOS_SEED={seed}");
    let directory = tempfile::tempdir()?;
    let goldens = Goldens::load("llama-gqa")?;
    let Some(mut fleet) = Fleet::start(Goldens::load("llama-gqa")?)? else { return Ok(()) };
    let calm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    let steps_taken =
        steps_of_a_storm(training(calm.tune("train")?, &goldens, 0, 40, &directory.path().join("first")))?;
    let expected = [0, 1].map(|client| {
        let out = directory.path().join("calm");
        training(calm.tune("train")?, &goldens, client, steps_taken, &out).losses()
    });
    drop(calm);

    let runs = [0, 1].map(|client| {
        let out = directory.path().join("storm");
        Ok::<_, anyhow::Error>(training(fleet.tune(client, &["train"])?, &goldens, client, steps_taken, &out))
    });
    let running = AtomicUsize::new(runs.len());
    let started = Instant::now();
    let (told, storm, samples) = std::thread::scope(|scope| {
        let clients = runs.map(|run| {
            scope.spawn(|| {
                let mut told = Told::new();
                let ended = run.and_then(|run| {
                    run.watch(|event| {
                        told.push((Instant::now(), event.clone()));
                        true
                    })
                });
                running.fetch_sub(1, Ordering::Relaxed);
                let (_, finished) = ended?;
                anyhow::ensure!(finished, "a client failed: {:?}", told.last());
                Ok(told)
            })
        });
        let weather = weather(&mut fleet, seed, &running);
        let told = clients.map(|client| client.join().map_err(|_| anyhow::anyhow!("a client's thread panicked"))?);
        let (storm, samples) = weather?;
        Ok::<_, anyhow::Error>((told, storm, samples))
    })?;

    for (client, (told, expected)) in told.into_iter().zip(expected).enumerate() {
        let (told, expected) = (told?, expected?);
        let numbers: Vec<u64> = steps(&told).filter_map(|(_, event)| event["step"].as_u64()).collect();
        assert!(numbers.iter().copied().eq(1..=steps_taken as u64), "client {client}: every step once, in order");
        assert_curves_close(&format!("client {client}"), &losses(&told), &expected, 1e-5);
        report(client, &told, started);
        check_recoveries(client, &told, &storm, &fleet.peers)?;
    }
    let count = |kind: Kind| storm.happened.iter().filter(|&&happened| happened == kind).count();
    let kinds = [Kind::Kill, Kind::Stop, Kind::Loss, Kind::Cut, Kind::NoBootstrap];
    eprintln!("storm: {:?} in {:.0?}", kinds.map(|kind| (kind, count(kind))), started.elapsed());
    assert!(kinds.iter().all(|&kind| count(kind) > 0), "not everything happened: {:?}", storm.happened);
    assert_flat(&samples)
}

/// How many steps two clients at once take in [`STORM`], judged by a short run of one of them.
fn steps_of_a_storm(short: Tune) -> anyhow::Result<usize> {
    let mut ends = Vec::new();
    let (losses, finished) = short.watch(|event| {
        ends.extend((event["event"] == "step").then(Instant::now));
        true
    })?;
    anyhow::ensure!(finished && losses.len() > 1, "the short run failed");
    let took = ends[ends.len() - 1] - ends[0];
    let alone = took.as_secs_f64() / (ends.len() - 1) as f64;
    Ok(((STORM.as_secs_f64() / (2.0 * alone)) as usize).max(LEAST_STEPS))
}

/// The storm, for as long as clients run. Memory and descriptors of the servers that live throughout are sampled.
fn weather(fleet: &mut Fleet, seed: u64, running: &AtomicUsize) -> anyhow::Result<(Storm, Vec<Vec<Sample>>)> {
    let (mut storm, mut samples) = (Storm::new(seed), Vec::new());
    let mut next_sample = Instant::now();
    while running.load(Ordering::Relaxed) > 0 {
        storm.tick(fleet)?;
        if Instant::now() >= next_sample {
            next_sample = Instant::now() + Duration::from_millis(500);
            samples.push(Sample::of_all(fleet)?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    storm.calm(fleet)?;
    Ok((storm, samples))
}

fn report(client: usize, told: &Told, started: Instant) {
    let failures = told.iter().filter(|(_, event)| event["event"] == "hop_failed").count();
    let relays = told.iter().filter(|(_, event)| event["event"] == "relay_failed").count();
    let mut gaps: Vec<Duration> =
        steps(told).zip(steps(told).skip(1)).map(|((before, _), (after, _))| *after - *before).collect();
    gaps.sort_unstable();
    let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    let took = told.last().map_or(Duration::ZERO, |(end, _)| *end - started);
    eprintln!(
        "storm: client {client}: {took:.1?}, median step {median:.1?}, longest {longest:.1?}, \
         {failures} hops and {relays} relays failed"
    );
}

/// Of kills that hit a hop in use: the time from the kill to the end of the step that it interrupted.
fn check_recoveries(client: usize, told: &Told, storm: &Storm, peers: &[String]) -> anyhow::Result<()> {
    let mut recoveries = Vec::new();
    for &(at, server) in &storm.kills {
        let soon = |when: Instant| when >= at && when < at + RECOVERY;
        let noticed = told.iter().any(|(when, event)| {
            let failed = event["event"] == "hop_failed" || event["event"] == "relay_failed";
            failed && soon(*when) && event["peer"] == peers[server].as_str()
        });
        let next = steps(told).find(|(when, _)| *when > at);
        if let Some((next, _)) = next.filter(|_| noticed) {
            recoveries.push(*next - at);
        }
    }
    let quick = recoveries.iter().filter(|took| **took <= RECOVERY).count();
    eprintln!(
        "storm: client {client} went on after kills within {recoveries:.2?}, {quick} of them within {RECOVERY:?}"
    );
    assert!(recoveries.iter().all(|took| *took <= WORST_RECOVERY), "client {client}: {recoveries:?}");
    Ok(())
}

/// What a server holds at one time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    bytes: u64,
    descriptors: usize,
}

impl Sample {
    fn of_all(fleet: &Fleet) -> anyhow::Result<Vec<Self>> {
        let survivors = fleet.servers.iter().skip(MORTAL);
        let of = |node: &Option<petals_e2e::Node>| {
            let node = node.as_ref().context("a server is gone that nobody killed")?;
            Ok(Self { bytes: node.resident_bytes()?, descriptors: node.descriptors()? })
        };
        survivors.map(of).collect()
    }
}

/// Nothing grows after the first half.
fn assert_flat(samples: &[Vec<Sample>]) -> anyhow::Result<()> {
    let (_, rest) = samples.split_at(samples.len() / 3);
    let (middle, end) = rest.split_at(rest.len() / 2);
    let servers = samples.first().context("no samples")?.len();
    for server in 0..servers {
        let largest = |part: &[Vec<Sample>], of: fn(&Sample) -> u64| {
            part.iter().filter_map(|all| all.get(server)).map(of).max().unwrap_or_default()
        };
        let bytes = [middle, end].map(|part| largest(part, |sample| sample.bytes));
        let descriptors = [middle, end].map(|part| largest(part, |sample| sample.descriptors as u64));
        let mib = bytes.map(|bytes| bytes >> 20);
        eprintln!("storm: server {}: {mib:?} MiB, {descriptors:?} descriptors at most", MORTAL + server);
        assert!(bytes[1] <= bytes[0] + bytes[0] / 10 + (8 << 20), "the memory of a server grows: {mib:?} MiB");
        assert!(descriptors[1] <= descriptors[0] + 8, "the descriptors of a server grow: {descriptors:?}");
    }
    Ok(())
}
