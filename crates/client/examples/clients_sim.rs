//! What many clients ask of the directory, and how good the routes are that they find by it: clients in simulated time, which ask for names and records as
//! real ones do (`servers/view/refresh.rs`), with the same [`Sample`] and the same planner. Only the network is left out.
//!
//! Usage: `cargo run --release --example clients_sim [CLIENTS] [MINUTES] [SEED]`

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use petals_client::{Candidate, EXPLORED, Listed, NAMES_AGE, PeerId, Planner, RECORDS_AGE, RouteRules, Sample, Span};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

/// Nodes of the swarm, which share what clients ask, and how many of those there are.
const NODES: f64 = 10_000.0;
const CLIENTS: f64 = 1000.0;
/// Requests of a query for the holders of a block, and of one for a record: see docs/scale.md.
const OF_NAMES: f64 = 18.0;
const OF_RECORD: f64 = 8.0;
/// Seconds between two looks, mean life of a server, and for how long a dead one is still listed.
const PERIOD: f64 = 30.0;
const LIFE: f64 = 3.0 * 3600.0;
const LISTED: f64 = 225.0;
/// Names of a block that a client takes, and records that one took before there were samples.
const MOST: usize = 1024;
/// Clients whose routes are compared.
const COMPARED: usize = 40;

/// A server, alive until `dies`.
#[derive(Debug, Clone)]
struct Server {
    candidate: Candidate,
    network: IpAddr,
    dies: f64,
}

#[derive(Debug, Default)]
struct Client {
    listed: Option<(f64, Listed)>,
    /// When each known server was last asked for its record.
    known: HashMap<PeerId, f64>,
    used: HashSet<PeerId>,
    requests: f64,
}

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let at = |place: usize, usual: u64| numbers.get(place).copied().unwrap_or(usual);
    let (clients, minutes, seed) = (at(0, 50) as usize, at(1, 60) as f64, at(2, 1));
    println!("{clients} clients for {minutes} minutes, as a part of {CLIENTS}; {NODES} nodes");
    println!(
        "servers  blocks  a client and minute: before  now   most in the first   a node and minute: before  now   records known   route over the best: mean, worst"
    );
    for (servers, blocks) in [(100, 32), (1024, 32), (10_000, 32), (1024, 80), (10_000, 80), (10_000, 126)] {
        let mut world = World::new(servers, blocks, seed);
        let mut all: Vec<Client> = (0..clients).map(|_| Client::default()).collect();
        let (mut first, mut slower) = (0.0f64, Vec::new());
        let looks = (minutes * 60.0 / PERIOD) as usize;
        for look in 0..looks {
            let now = look as f64 * PERIOD;
            world.age(now);
            for client in &mut all {
                client.look(&mut world, now);
            }
            if look == 1 {
                first = all.iter().map(|client| client.requests).fold(0.0, f64::max);
            }
        }
        let best = world.seconds(|_| true);
        for client in all.iter().take(COMPARED) {
            slower.push(world.seconds(|peer| client.known.contains_key(peer)) / best);
        }
        let per_minute = all.iter().map(|client| client.requests).sum::<f64>() / clients as f64 / minutes;
        let known = all.iter().map(|client| client.known.len()).sum::<usize>() / clients.max(1);
        let before = 60.0 / PERIOD * (OF_NAMES * f64::from(blocks) + OF_RECORD * servers.min(MOST) as f64);
        let of_node = |requests: f64| requests * CLIENTS / NODES;
        println!(
            "{servers:7} {blocks:7} {before:28.0} {per_minute:6.0} {first:15.0} {:30.0} {:7.0} {known:12} {:24.2} {:6.2}",
            of_node(before),
            of_node(per_minute),
            slower.iter().sum::<f64>() / slower.len() as f64,
            slower.iter().copied().fold(0.0, f64::max),
        );
    }
}

struct World {
    random: StdRng,
    model: Span,
    servers: HashMap<PeerId, Server>,
    /// Dead, and since when.
    dead: Vec<(PeerId, Span, f64)>,
}

impl World {
    fn new(servers: usize, blocks: u32, seed: u64) -> Self {
        let model = Span::new(0, blocks).expect("a model has blocks");
        let mut world = Self { random: StdRng::seed_from_u64(seed), model, servers: HashMap::new(), dead: Vec::new() };
        (0..servers).for_each(|_| world.add(0.0));
        world
    }

    /// As in the simulation of placement: 2 to 48 blocks, 200 to 20,000 block tokens a second; 2 to 150 ms away.
    fn add(&mut self, now: f64) {
        let random = &mut self.random;
        let mut between = |least: f64, most: f64| least * (most / least).powf(random.random::<f64>());
        let length = (between(2.0, 48.0) as u32).min(self.model.len() as u32);
        let (rate, latency) = (between(200.0, 20_000.0), between(0.002, 0.15));
        let start = random.random_range(0..=self.model.end() - length);
        let span = Span::new(start, start + length).expect("not empty");
        let dies = now - LIFE * random.random::<f64>().max(1e-9).ln();
        let candidate =
            Candidate { latency_seconds: latency / 2.0, ..Candidate::new(PeerId::random(), span, 1.0 / rate) };
        let network = IpAddr::V4(random.random::<u32>().into());
        self.servers.insert(candidate.peer, Server { candidate, network, dies });
    }

    /// Who dies is replaced.
    fn age(&mut self, now: f64) {
        let gone: Vec<PeerId> =
            self.servers.iter().filter(|(_, server)| server.dies <= now).map(|(peer, _)| *peer).collect();
        for peer in gone {
            if let Some(server) = self.servers.remove(&peer) {
                self.dead.push((peer, server.candidate.span, now));
            }
            self.add(now);
        }
        self.dead.retain(|(.., since)| now - since < LISTED);
    }

    fn list(&mut self) -> Listed {
        let mut of_block: std::collections::BTreeMap<u32, Vec<PeerId>> =
            self.model.blocks().map(|block| (block, Vec::new())).collect();
        let living = self.servers.values().map(|server| (server.candidate.peer, server.candidate.span));
        for (peer, span) in living.chain(self.dead.iter().map(|(peer, span, _)| (*peer, *span))) {
            span.blocks().for_each(|block| of_block.entry(block).or_default().push(peer));
        }
        let mut listed = Listed { complete: true, ..Listed::default() };
        for (block, peers) in of_block {
            listed
                .of_block
                .insert(block, peers.into_iter().choose_multiple(&mut self.random, MOST).into_iter().collect());
        }
        listed
    }

    /// Of the route on which a token is back soonest, among those that `may`.
    fn seconds(&self, may: impl Fn(&PeerId) -> bool) -> f64 {
        self.route(may).map_or(f64::INFINITY, |route| route.seconds)
    }

    fn route(&self, may: impl Fn(&PeerId) -> bool) -> Option<petals_client::Route> {
        let candidates: Vec<Candidate> = self
            .servers
            .values()
            .filter(|server| may(&server.candidate.peer))
            .map(|server| server.candidate.clone())
            .collect();
        Planner::new(&candidates, &RouteRules::default(), self.model).fastest(self.model).ok()
    }
}

impl Client {
    fn look(&mut self, world: &mut World, now: f64) {
        let old = |at: f64, times: u32| now - at >= f64::from(times) * PERIOD;
        let new_names = self.listed.as_ref().is_none_or(|(at, _)| old(*at, NAMES_AGE));
        if new_names {
            self.requests += OF_NAMES * world.model.len() as f64;
            self.listed = Some((now, world.list()));
        }
        let Some((_, listed)) = &self.listed else { return };
        let mut sample = Sample::new(listed, &mut world.random);
        let (mut known, mut batch) = (HashMap::new(), HashSet::new());
        for (&peer, &at) in &self.known {
            let explored = new_names && !self.used.contains(&peer) && world.random.random_ratio(1, EXPLORED);
            if !sample.lists(&peer) || explored {
                continue;
            }
            if old(at, RECORDS_AGE) {
                batch.insert(peer);
                continue;
            }
            sample.asks(peer);
            if let Some(server) = world.servers.get(&peer) {
                sample.has(peer, server.candidate.span, Some(server.network));
                known.insert(peer, at);
            }
        }
        batch.iter().for_each(|peer| sample.asks(*peer));
        loop {
            if batch.is_empty() {
                batch = sample.to_ask();
            }
            if batch.is_empty() {
                break;
            }
            self.requests += OF_RECORD * batch.len() as f64;
            for peer in std::mem::take(&mut batch) {
                if let Some(server) = world.servers.get(&peer) {
                    sample.has(peer, server.candidate.span, Some(server.network));
                    known.insert(peer, now);
                }
            }
        }
        self.known = known;
        // Planning every time takes most of the simulation, and changes little.
        if new_names {
            let route = world.route(|peer| self.known.contains_key(peer));
            self.used = route.into_iter().flat_map(|route| route.hops).map(|hop| hop.peer).collect();
        }
    }
}
