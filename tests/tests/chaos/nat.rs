//! Two servers and a client behind routers of their own, and one node that everybody reaches.

use std::time::{Duration, Instant};

use anyhow::Context;
use petals_e2e::{Access, Goldens, Internet, Node, ProcessSwarm, Tune, assert_curves_close};
use serde_json::Value;

/// Until probes have failed, a relay has given a place, and the record with it is found.
const RESERVATION: Duration = Duration::from_secs(120);
const STEPS: usize = 200;
/// Steps at the end over which the way of the bytes is judged.
const LAST: usize = 50;
const RELAY: usize = 0;
const CLIENT: usize = 3;

struct Homes {
    /// They end before their hosts do.
    nodes: Vec<Node>,
    goldens: Goldens,
    internet: Internet,
}

/// Bytes that the relay's access carried, and bytes that the client says crossed its streams.
#[derive(Debug, Clone, Copy)]
struct Bytes {
    relay: u64,
    client: u64,
}

impl Homes {
    /// Servers of both halves of the model behind routers of this kind, and a client behind an ordinary one.
    fn start(servers: Access) -> anyhow::Result<Option<Self>> {
        let accesses = [Access::Public, servers, servers, Access::Nat];
        let Some(internet) = Internet::new(&accesses)? else { return Ok(None) };
        let goldens = Goldens::load("llama-gqa")?;
        let quic = |host: usize| format!("/ip4/{}/udp/31330/quic-v1", internet.host(host).address());
        let common = ["--no-mdns", "--no-upnp", "--listen"];
        let mut nodes =
            vec![Node::start_on(internet.host(RELAY), &[&["bootstrap"], &common[..], &[&quic(RELAY)]].concat())?];
        let member = nodes[0].address.clone();
        for (host, span) in [(1, "0..2"), (2, "2..4")] {
            let (model, quic) = (goldens.model(), quic(host));
            let model = model.to_str().context("a path that is not UTF-8")?;
            let serve = ["serve", "--model", model, "--device", "cpu", "--blocks", span, "--peers", &member];
            nodes.push(Node::start_on(internet.host(host), &[&serve[..], &common[..], &[&quic]].concat())?);
        }
        nodes[1..].iter().try_for_each(|node| node.event("ready").map(drop))?;
        Ok(Some(Self { nodes, goldens, internet }))
    }

    fn tune(&self, arguments: &[&str]) -> anyhow::Result<Tune> {
        let member = self.nodes.first().context("no bootstrap node")?.address.clone();
        let tune = Tune::on(self.internet.host(CLIENT), arguments)?.path("--model", &self.goldens.model());
        Ok(tune.args(&["--peers", &member]))
    }

    /// Waits until both servers say that they are reached through a relay.
    fn wait_for_reservations(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + RESERVATION;
        loop {
            let output = self.tune(&["route", "--json"])?.output()?;
            let stdout = String::from_utf8(output.stdout)?;
            let events = stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let relayed = events.filter(|event| event["event"] == "server" && event["relayed"] == true).count();
            if relayed == 2 {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "no reservations: {stdout}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Trains; the losses, the bytes in all, and those of the last steps.
    fn train(&self, out: &std::path::Path) -> anyhow::Result<(Vec<f64>, Bytes, Bytes)> {
        let tune = training(self.tune(&["train"])?, &self.goldens, out);
        let start = self.internet.bytes(RELAY)?;
        let (mut client, mut late) = (0, Err(anyhow::anyhow!("too few steps")));
        let (losses, finished) = tune.watch(|event| {
            if event["event"] != "step" {
                return true;
            }
            client += ["sent", "received"].iter().filter_map(|name| event[*name].as_u64()).sum::<u64>();
            if event["step"] == STEPS - LAST {
                late = self.internet.bytes(RELAY).map(|relay| Bytes { relay, client });
            }
            true
        })?;
        anyhow::ensure!(finished, "training failed");
        let (end, late) = (self.internet.bytes(RELAY)?, late?);
        let last = Bytes { relay: end - late.relay, client: client - late.client };
        Ok((losses, Bytes { relay: end - start, client }, last))
    }
}

fn training(tune: Tune, goldens: &Goldens, out: &std::path::Path) -> Tune {
    tune.args(&["--mode", "deep_ptune", "--injection", "replace", "--prefix-len", "5", "--task", "causal-lm"])
        .args(&["--steps", &STEPS.to_string(), "--batch-size", "32", "--accumulation", "4", "--lr", "0.003"])
        .args(&["--no-shuffle", "--max-length", "64", "--micro-batch-tokens", "400", "--in-flight", "3"])
        .args(&["--request-timeout", "20s"])
        .path("--data", &Goldens::data("train-causal.jsonl"))
        .path("--init-from", &goldens.path("init-replace"))
        .path("--out", out)
}

fn expected(goldens: &Goldens, out: &std::path::Path) -> anyhow::Result<Vec<f64>> {
    let calm = ProcessSwarm::start(&goldens.model(), &["0..4"])?;
    training(calm.tune("train")?, goldens, out).losses()
}

#[test]
fn behind_ordinary_routers_they_begin_through_a_relay_and_go_on_directly() -> anyhow::Result<()> {
    let Some(homes) = Homes::start(Access::Nat)? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    homes.wait_for_reservations()?;
    let (losses, all, last) = homes.train(&directory.path().join("nat"))?;
    eprintln!("nat: {all:?} in all, {last:?} in the last {LAST} steps");
    let expected = expected(&homes.goldens, &directory.path().join("calm"))?;
    assert_curves_close("through and past a relay", &losses, &expected, 1e-5);
    // Pings and the directory go on.
    assert!(last.relay < last.client / 10, "the relay still carries activations: {last:?}");
    Ok(())
}

#[test]
fn behind_symmetric_routers_everything_goes_through_the_relay() -> anyhow::Result<()> {
    let Some(homes) = Homes::start(Access::SymmetricNat)? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    homes.wait_for_reservations()?;
    let (losses, all, last) = homes.train(&directory.path().join("symmetric"))?;
    eprintln!("nat: {all:?} in all, {last:?} in the last {LAST} steps, symmetric");
    let expected = expected(&homes.goldens, &directory.path().join("calm"))?;
    assert_curves_close("through a relay", &losses, &expected, 1e-5);
    assert!(last.relay > last.client, "the relay carries every byte in and out again: {last:?}");
    Ok(())
}
