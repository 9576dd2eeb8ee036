//! A bootstrap node, servers and their clients, each on a host of its own, under identities that survive them.

use std::path::Path;

use anyhow::Context;
use petals_e2e::{Access, Goldens, Internet, Node, Tune};

/// Blocks of each server. Every block has at least three holders.
const SPANS: [(u32, u32); 8] = [(0, 2), (2, 4), (0, 3), (1, 3), (1, 4), (0, 1), (3, 4), (2, 4)];
/// The first servers may be killed; the others live as long as the fleet, so that what they leak can be seen.
pub(crate) const MORTAL: usize = 4;
/// The host of the bootstrap node; servers follow, then clients.
const BOOTSTRAP: usize = 0;
const CLIENTS: usize = 2;

pub(crate) struct Fleet {
    /// `None` while dead.
    pub(crate) servers: Vec<Option<Node>>,
    /// Their peer ids.
    pub(crate) peers: Vec<String>,
    pub(crate) bootstrap: Option<Node>,
    pub(crate) internet: Internet,
    goldens: Goldens,
    keys: tempfile::TempDir,
    /// Ready for `--peers`.
    known: Vec<String>,
}

impl Fleet {
    /// Nothing where there are no namespaces.
    pub(crate) fn start(goldens: Goldens) -> anyhow::Result<Option<Self>> {
        let Some(internet) = Internet::new(&vec![Access::Public; 1 + SPANS.len() + CLIENTS])? else { return Ok(None) };
        let (keys, bootstrap) = (tempfile::tempdir()?, Node::start_on(internet.host(BOOTSTRAP), &["bootstrap"])?);
        let mut known = vec![bootstrap.address.clone()];
        let mut peers = Vec::new();
        for server in 0..SPANS.len() {
            let key = key(keys.path(), server)?;
            let made = Node::run(&["keygen", "--out", &key])?;
            let peer = made.first().and_then(|event| event["peer_id"].as_str()).context("no peer id")?.to_owned();
            // Two that stay make the swarm whole again after the bootstrap node is gone.
            if (MORTAL..MORTAL + 2).contains(&server) {
                known.push(format!("/ip4/{}/tcp/31330/p2p/{peer}", internet.host(1 + server).address()));
            }
            peers.push(peer);
        }
        let bootstrap = Some(bootstrap);
        let mut fleet = Self { servers: Vec::new(), peers, bootstrap, internet, goldens, keys, known };
        for server in 0..SPANS.len() {
            let node = fleet.node(server)?;
            fleet.servers.push(Some(node));
        }
        for node in fleet.servers.iter().flatten() {
            node.event("ready")?;
        }
        Ok(Some(fleet))
    }

    fn node(&self, server: usize) -> anyhow::Result<Node> {
        let model = self.goldens.model();
        let (start, end) = SPANS[server];
        let (key, span) = (key(self.keys.path(), server)?, format!("{start}..{end}"));
        let mut arguments = vec!["serve", "--model", model.to_str().context("a path that is not UTF-8")?];
        arguments.extend(["--device", "cpu", "--blocks", &span, "--identity", &key]);
        arguments.extend(self.known.iter().flat_map(|address| ["--peers", address]));
        Node::start_on(self.internet.host(1 + server), &arguments)
    }

    /// Starts a dead server again, as the peer it was.
    pub(crate) fn restart(&mut self, server: usize) -> anyhow::Result<()> {
        self.servers[server] = Some(self.node(server)?);
        Ok(())
    }

    /// A command on a client's host.
    pub(crate) fn tune(&self, client: usize, arguments: &[&str]) -> anyhow::Result<Tune> {
        let host = self.internet.host(1 + SPANS.len() + client);
        let mut tune = Tune::on(host, arguments)?.path("--model", &self.goldens.model());
        for address in &self.known {
            tune = tune.args(&["--peers", address]);
        }
        Ok(tune)
    }

    /// Whether every block has a holder among the servers that are not in `without`.
    pub(crate) fn is_whole_without(without: impl Fn(usize) -> bool) -> bool {
        let holds = |server: usize, block: u32| (SPANS[server].0..SPANS[server].1).contains(&block);
        (0..4).all(|block| (0..SPANS.len()).any(|server| holds(server, block) && !without(server)))
    }

    /// The host of a server.
    pub(crate) fn host(server: usize) -> usize {
        1 + server
    }

    pub(crate) fn count() -> usize {
        SPANS.len()
    }
}

fn key(directory: &Path, server: usize) -> anyhow::Result<String> {
    let file = directory.join(format!("{server}.key"));
    Ok(file.to_str().context("a path that is not UTF-8")?.to_owned())
}
