//! Which of the servers that are listed are asked what they are.
//!
//! A record costs some requests of the directory, and a client that asked everybody would ask most of all that is asked in a large swarm. So it asks
//! until each block has enough servers that may be used. They are drawn at random, and those of one network count as one: ids are free, so a
//! list may have any number of one hand's among a few honest ones.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use petals_protocol::Span;
use petals_swarm::{Listed, PeerId};
use rand::Rng;
use rand::seq::SliceRandom;

/// Holders of a block in different networks that are enough to choose among. One in sixteen is, in the mean, among the best twelfth.
pub const ENOUGH: usize = 16;
/// How many times the usual age of a view names may have.
pub const NAMES_AGE: u32 = 4;
/// The same for records, which servers write anew every minute.
pub const RECORDS_AGE: u32 = 2;
/// Of known servers that are not in use, one in so many makes room for another one when there are new names.
pub const EXPLORED: u32 = 4;
/// Most servers that are asked at a time: what a flood of made-up entries may cost.
const MOST: usize = 1024;

/// A sample in the making.
#[derive(Debug)]
pub struct Sample {
    enough: usize,
    /// Who was not asked, in the order of the draw.
    left: BTreeMap<u32, Vec<PeerId>>,
    /// Under which blocks somebody is listed.
    blocks: HashMap<PeerId, Vec<u32>>,
    found: BTreeMap<u32, Found>,
    asked: HashSet<PeerId>,
}

/// Usable holders of a block.
#[derive(Debug, Default)]
struct Found {
    networks: HashSet<IpAddr>,
    /// Of this machine.
    here: usize,
}

impl Found {
    fn count(&self) -> usize {
        self.networks.len() + self.here
    }
}

impl Sample {
    /// Draws among those that are listed, for [`ENOUGH`] holders of each block.
    pub fn new(listed: &Listed, random: &mut impl Rng) -> Self {
        let mut blocks: HashMap<PeerId, Vec<u32>> = HashMap::new();
        let mut left = BTreeMap::new();
        for (&block, peers) in &listed.of_block {
            // Whatever order a set has is no draw.
            let mut peers: Vec<PeerId> = peers.iter().copied().collect();
            peers.sort_unstable();
            peers.shuffle(random);
            peers.iter().for_each(|peer| blocks.entry(*peer).or_default().push(block));
            left.insert(block, peers);
        }
        let found = left.keys().map(|block| (*block, Found::default())).collect();
        Self { enough: ENOUGH, left, blocks, found, asked: HashSet::new() }
    }

    /// Whether somebody is listed under any block.
    pub fn lists(&self, peer: &PeerId) -> bool {
        self.blocks.contains_key(peer)
    }

    /// A server holds these blocks and may be used. It need not be asked any more.
    pub fn has(&mut self, peer: PeerId, span: Span, network: Option<IpAddr>) {
        self.asked.insert(peer);
        for (_, found) in self.found.range_mut(span.start()..span.end()) {
            match network {
                Some(network) => {
                    found.networks.insert(network);
                }
                None => found.here += 1,
            }
        }
    }

    /// Somebody is asked, or need not be.
    pub fn asks(&mut self, peer: PeerId) {
        self.asked.insert(peer);
    }

    /// Who is to be asked next; nobody if there are enough, or if there are no others.
    pub fn to_ask(&mut self) -> HashSet<PeerId> {
        let mut next = HashSet::new();
        // What those that are being asked will make of each block, if all of them are what they are listed as.
        let mut hoped: HashMap<u32, usize> = HashMap::new();
        for (block, left) in &mut self.left {
            let known = self.found.get(block).map_or(0, Found::count);
            while known + hoped.get(block).copied().unwrap_or_default() < self.enough && self.asked.len() < MOST {
                let Some(peer) = left.pop() else { break };
                if !self.asked.insert(peer) {
                    continue;
                }
                next.insert(peer);
                let of_peer = self.blocks.get(&peer).into_iter().flatten();
                of_peer.for_each(|block| *hoped.entry(*block).or_default() += 1);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn span(start: u32, end: u32) -> Span {
        Span::new(start, end).unwrap()
    }

    fn listed(servers: &[(PeerId, Span)]) -> Listed {
        let mut listed = Listed { complete: true, ..Listed::default() };
        for (peer, span) in servers {
            for block in span.blocks() {
                listed.of_block.entry(block).or_default().insert(*peer);
            }
        }
        listed
    }

    fn network(number: u32) -> Option<IpAddr> {
        Some(IpAddr::V4((0x0a00_0000 + number).into()))
    }

    /// Asks until nobody is to be asked any more; how many were.
    fn ask(sample: &mut Sample, answer: impl Fn(PeerId) -> Option<(Span, Option<IpAddr>)>) -> usize {
        let mut asked = 0;
        loop {
            let next = sample.to_ask();
            if next.is_empty() {
                return asked;
            }
            asked += next.len();
            for peer in next {
                if let Some((span, network)) = answer(peer) {
                    sample.has(peer, span, network);
                }
            }
        }
    }

    #[test]
    fn a_small_swarm_is_asked_whole_and_a_large_one_in_part() {
        let mut random = StdRng::seed_from_u64(1);
        for (servers, most) in [(10, 10), (1000, 150)] {
            let all: Vec<(PeerId, Span)> = (0..servers).map(|n| (PeerId::random(), span(n % 25, n % 25 + 8))).collect();
            let places: HashMap<PeerId, (Span, Option<IpAddr>)> =
                all.iter().enumerate().map(|(n, (peer, span))| (*peer, (*span, network(n as u32)))).collect();
            let mut sample = Sample::new(&listed(&all), &mut random);
            let asked = ask(&mut sample, |peer| places.get(&peer).copied());
            assert!(asked <= most && asked >= 10.min(most), "{asked} of {servers}");
            let fewest = sample.found.values().map(Found::count).min();
            assert!(servers < 100 || fewest >= Some(ENOUGH), "{fewest:?}");
        }
    }

    #[test]
    fn names_without_records_and_ids_of_one_network_do_not_crowd_out_the_others() {
        let mut random = StdRng::seed_from_u64(2);
        let all: Vec<(PeerId, Span)> = (0..900).map(|_| (PeerId::random(), span(0, 4))).collect();
        let honest: HashSet<PeerId> = all.iter().take(20).map(|(peer, _)| *peer).collect();
        // The others have no records, or such of one network; a sample of a fixed size would have none of the honest, or one.
        for false_one in [None, Some((span(0, 4), network(7)))] {
            let mut sample = Sample::new(&listed(&all), &mut random);
            ask(&mut sample, |peer| {
                let number = all.iter().position(|(other, _)| *other == peer)?;
                if honest.contains(&peer) { Some((span(0, 4), network(100 + number as u32))) } else { false_one }
            });
            let found = sample.found[&0].count();
            assert!(found >= ENOUGH, "{found}");
        }
    }

    #[test]
    fn who_is_known_is_not_asked_and_counts() {
        let mut random = StdRng::seed_from_u64(3);
        let all: Vec<(PeerId, Span)> = (0..100).map(|_| (PeerId::random(), span(0, 2))).collect();
        let mut sample = Sample::new(&listed(&all), &mut random);
        for (number, (peer, span)) in all.iter().take(ENOUGH - 1).enumerate() {
            sample.has(*peer, *span, network(number as u32));
        }
        let next = sample.to_ask();
        assert!(next.len() == 1 && all[ENOUGH - 1..].iter().any(|(peer, _)| next.contains(peer)));
        assert!(sample.lists(&all[0].0) && !sample.lists(&PeerId::random()));
    }

    #[test]
    fn a_flood_of_entries_costs_no_more_than_the_bound() {
        let mut random = StdRng::seed_from_u64(4);
        let all: Vec<(PeerId, Span)> = (0..2000).map(|n| (PeerId::random(), span(n % 2, n % 2 + 1))).collect();
        let mut sample = Sample::new(&listed(&all), &mut random);
        assert_eq!(ask(&mut sample, |_| None), MOST);
    }
}
