//! The servers, and what somebody honest gets of them.

use std::time::Duration;

use anyhow::{Context, ensure};
use petals_e2e::{Bystander, Goldens, Host, Node, Target};
use serde_json::Value;

/// Blocks of the two servers.
const SPANS: [&str; 2] = ["0..2", "2..4"];
/// Memory of each server: so little that the attackers can ask for all of it.
const MEMORY: [&str; 4] = ["--request-bytes", "64M", "--kv-bytes", "32M"];
/// Width of the tiny model.
const HIDDEN: usize = 32;
/// Steps of a run, and tokens of a text.
const STEPS: usize = 100;
const TOKENS: usize = 100;
/// Losses that differ by no more are the same: threads add in another order.
const TOLERANCE: f64 = 1e-5;
/// The clock of processor time, in ticks a second.
const TICKS: f64 = 100.0;

/// Two servers, of which the first knows the second.
pub(crate) struct Chain(Vec<Node>);

/// What servers hold together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    pub(crate) bytes: u64,
    pub(crate) descriptors: usize,
}

impl Chain {
    pub(crate) fn start(hosts: [&Host; 2], goldens: &Goldens) -> anyhow::Result<Self> {
        let model = goldens.model();
        let model = model.to_str().context("a path that is not UTF-8")?;
        let mut nodes: Vec<Node> = Vec::new();
        for (host, span) in hosts.into_iter().zip(SPANS) {
            let serve = ["serve", "--model", model, "--device", "cpu", "--no-mdns", "--no-upnp", "--blocks", span];
            let mut arguments = [&serve[..], &MEMORY].concat();
            let member = nodes.first().map(|node| node.address.clone());
            if let Some(member) = &member {
                arguments.extend(["--peers", member]);
            }
            nodes.push(Node::start_on(host, &arguments)?);
        }
        for node in &mut nodes {
            node.ready = node.event("ready")?;
        }
        Ok(Self(nodes))
    }

    pub(crate) fn bystander<'a>(&self, host: &'a Host, goldens: &Goldens) -> anyhow::Result<Bystander<'a>> {
        Bystander::new(host, goldens, self.member())
    }

    pub(crate) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let of = |(node, span): (&Node, &str)| {
            let model = node.ready["model"].as_str().context("no model")?.parse()?;
            Ok(Target { address: node.address.clone(), model, span: span.parse()?, hidden: HIDDEN })
        };
        self.0.iter().zip(SPANS).map(of).collect()
    }

    pub(crate) fn holds(&self) -> anyhow::Result<Held> {
        let mut held = Held { bytes: 0, descriptors: 0 };
        for node in &self.0 {
            held.bytes += node.resident_bytes()?;
            held.descriptors += node.descriptors()?;
        }
        Ok(held)
    }

    /// Where to join.
    pub(crate) fn member(&self) -> &str {
        &self.0[0].address
    }

    /// What both servers have had of the processors so far, in seconds.
    pub(crate) fn processor_time(&self) -> anyhow::Result<f64> {
        let of = |node: &Node| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.id()))?;
            let behind_name = stat.rsplit_once(')').context("no name")?.1;
            let mut fields = behind_name.split_whitespace().skip(11).map(str::parse::<f64>);
            let (Some(user), Some(system)) = (fields.next(), fields.next()) else { anyhow::bail!("no times") };
            Ok((user? + system?) / TICKS)
        };
        self.0.iter().map(of).sum()
    }
}

/// What a training run and a text took, and what they were.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) losses: Vec<f64>,
    pub(crate) tokens: Value,
    pub(crate) training: Duration,
    pub(crate) text: Duration,
}

impl Taken {
    pub(crate) fn of(client: &Bystander<'_>) -> anyhow::Result<Self> {
        let (losses, training) = client.trains(STEPS)?;
        let (tokens, text) = client.generates(TOKENS)?;
        Ok(Self { losses, tokens, training, text })
    }

    /// Fails if it is not the same.
    pub(crate) fn is_as(&self, expected: &Self) -> anyhow::Result<()> {
        let close = |(got, expected): (&f64, &f64)| (got - expected).abs() <= TOLERANCE * expected.abs();
        ensure!(self.losses.iter().zip(&expected.losses).all(close), "other losses");
        ensure!(self.tokens == expected.tokens, "other tokens");
        Ok(())
    }
}
