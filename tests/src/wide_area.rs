//! A swarm of real processes whose hosts are far from each other.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::link::{Link, LinkConfig};
use crate::programs::{Node, Tune};
use crate::relay::{Net, Relay};

/// Servers behind access links of their own, and a client behind another one.
#[derive(Debug)]
pub struct WideAreaSwarm {
    /// In the order of the spans asked for. They die before their relays do.
    pub servers: Vec<Node>,
    /// In front of the servers, in the same order.
    pub relays: Vec<Relay>,
    /// The client's access.
    pub client: Arc<Link>,
    /// The first server's address through its relay, ready for `--peers`.
    pub address: String,
    _net: Net,
}

impl WideAreaSwarm {
    /// Starts a server for each of `spans`, with more `arguments`; all hosts have the same `access`.
    ///
    /// # Errors
    /// If a server does not come up.
    pub fn start(model: &Path, spans: &[&str], access: LinkConfig, arguments: &[&str]) -> anyhow::Result<Self> {
        let client = Link::new(access);
        let net = Net::new(Some(client.clone()))?;
        let model = model.to_str().context("a path that is not UTF-8")?;
        let mut swarm = Self { servers: Vec::new(), relays: Vec::new(), client, address: String::new(), _net: net };
        for span in spans {
            let relay = swarm._net.relay(Link::new(access))?;
            let announce = relay.multiaddr();
            let mut all = vec!["serve", "--model", model, "--device", "cpu", "--blocks", span, "--announce", &announce];
            if !swarm.address.is_empty() {
                all.extend(["--peers", &swarm.address]);
            }
            all.extend(arguments);
            let node = Node::start(&all)?;
            relay.lead_to(node.socket()?);
            if swarm.address.is_empty() {
                let peer = node.address.rsplit('/').next().context("an address without a peer")?;
                swarm.address = format!("{announce}/p2p/{peer}");
            }
            swarm.servers.push(node);
            swarm.relays.push(relay);
        }
        for server in &mut swarm.servers {
            server.ready = server.event("ready")?;
        }
        Ok(swarm)
    }

    /// A `petals-tune` command against this swarm, behind the client's link.
    ///
    /// # Errors
    /// If the program is missing.
    pub fn tune(&self, subcommand: &str, model: &Path) -> anyhow::Result<Tune> {
        Ok(Tune::bare(&[subcommand, &format!("--peers={}", self.address)])?.path("--model", model))
    }
}
