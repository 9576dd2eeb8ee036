//! From candidates and measurements to routes. Pure: no network, no clock.
//!
//! A route's time is the sum of the client's way to the first server, what each server takes (the queue in front and its
//! blocks), the ways between servers, and the way back. Where two servers pass rows on to each other and one has announced
//! how far the other is, that way counts; otherwise it is taken to lead through the client, which it does if need be.

use std::collections::{HashMap, HashSet};

use petals_protocol::Span;
use petals_swarm::PeerId;

mod choices;
mod fastest;
mod missing;
mod parallel;
mod rules;

pub(crate) use choices::Choices;
pub use choices::Punctuality;
pub use missing::{Excluded, MissingBlocks};
pub use parallel::WeightedRoute;
pub use rules::{Exclusion, PinError, RouteRules};

/// A server that could be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// Blocks it hosts.
    pub span: Span,
    /// Seconds to run the planned batch through one block there.
    pub block_seconds: f64,
    /// Seconds that a request waits there for others.
    pub queue_seconds: f64,
    /// Requests of others that its time is shared with.
    pub load: f64,
    /// Seconds of one way between the client and it, without the transfer.
    pub latency_seconds: f64,
    /// Seconds that the planned batch occupies its link, one way.
    pub transfer_seconds: f64,
    /// Seconds of one way, transfer included, to servers that it passes rows on to.
    pub next: HashMap<PeerId, f64>,
    /// It failed not long ago: used only for blocks that nobody else may run.
    pub banned: bool,
    /// Whether it was as quick as it says.
    pub punctuality: Punctuality,
    /// Not to be used for this, whatever else is there.
    pub excluded: Option<Exclusion>,
}

impl Candidate {
    /// A server at no distance, without load: what tests and examples begin with.
    pub fn new(peer: PeerId, span: Span, block_seconds: f64) -> Self {
        Self {
            peer,
            span,
            block_seconds,
            queue_seconds: 0.0,
            load: 0.0,
            latency_seconds: 0.0,
            transfer_seconds: 0.0,
            next: HashMap::new(),
            banned: false,
            punctuality: Punctuality::Unknown,
            excluded: None,
        }
    }

    /// One way between the client and it.
    fn way(&self) -> f64 {
        self.latency_seconds + self.transfer_seconds
    }

    /// Seconds that a block of a stream of micro-batches keeps it busy: its time is shared with others.
    fn stage_seconds(&self) -> f64 {
        (1.0 + self.load) * self.block_seconds
    }
}

/// Part of a route: one server and the blocks it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hop {
    /// Who.
    pub peer: PeerId,
    /// What it runs; possibly only a part of what it hosts.
    pub span: Span,
}

/// Hops that cover every block of a range once, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// In order of the blocks, at least one. No two in a row are of one server.
    pub hops: Vec<Hop>,
    /// Estimated seconds for the planned batch, from the client to the client.
    pub seconds: f64,
}

/// Where the time of one hop of a route is expected to go, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HopCost {
    /// The way to it, from the client or the server in front.
    pub way: f64,
    /// Waiting for others.
    pub queue: f64,
    /// Its blocks.
    pub compute: f64,
}

impl HopCost {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.way + self.queue + self.compute
    }
}

/// Everything a plan depends on.
#[derive(Debug)]
pub struct Planner<'a> {
    candidates: &'a [Candidate],
    rules: &'a RouteRules,
    /// Every block of the model: its first and last one are where trust counts.
    model: Span,
    /// Places of candidates, by a part of their ids: hashing the whole of each takes most of a plan's time.
    index: HashMap<u64, usize>,
}

/// Candidates that may run each block, by their place in the list.
type Allowed = Vec<Vec<usize>>;

impl<'a> Planner<'a> {
    /// Plans routes for blocks of `model` over `candidates`, one for each peer.
    pub fn new(candidates: &'a [Candidate], rules: &'a RouteRules, model: Span) -> Self {
        let index =
            candidates.iter().enumerate().map(|(number, candidate)| (end_of(&candidate.peer), number)).collect();
        Self { candidates, rules, model, index }
    }

    /// The route on which one batch is back soonest.
    ///
    /// # Errors
    /// [`MissingBlocks`] if nobody may run some block.
    pub fn fastest(&self, blocks: Span) -> Result<Route, MissingBlocks> {
        let allowed = self.allowed(blocks, &HashSet::new())?;
        Ok(fastest::route(self, blocks, &allowed, None).expect("every block has somebody who may run it"))
    }

    /// The time of a route, as [`Self::fastest`] counts it. `None` if it has hops that are no candidates, that do not hold
    /// their blocks, or that may not run them.
    pub fn seconds(&self, hops: &[Hop]) -> Option<f64> {
        let costs = self.costs(hops)?;
        let last = self.candidate(hops.last()?.peer)?;
        Some(costs.iter().map(HopCost::seconds).sum::<f64>() + last.way())
    }

    /// What each hop of a route costs. `None` as under [`Self::seconds`].
    pub fn costs(&self, hops: &[Hop]) -> Option<Vec<HopCost>> {
        let mut costs = Vec::with_capacity(hops.len());
        let mut in_front: Option<&Candidate> = None;
        for hop in hops {
            let candidate = self.candidate(hop.peer).filter(|candidate| candidate.span.covers(hop.span))?;
            if hop.span.blocks().any(|block| self.exclusion(candidate, block).is_some()) {
                return None;
            }
            costs.push(HopCost {
                way: in_front.map_or_else(|| candidate.way(), |in_front| between(in_front, candidate)),
                queue: candidate.queue_seconds,
                compute: hop.span.len() as f64 * candidate.block_seconds,
            });
            in_front = Some(candidate);
        }
        Some(costs)
    }

    fn candidate(&self, peer: PeerId) -> Option<&'a Candidate> {
        self.place(&peer).map(|number| &self.candidates[number])
    }

    /// A candidate's place in the list.
    fn place(&self, peer: &PeerId) -> Option<usize> {
        let number = *self.index.get(&end_of(peer))?;
        if self.candidates[number].peer == *peer {
            return Some(number);
        }
        // Two ids that end alike.
        self.candidates.iter().position(|candidate| candidate.peer == *peer)
    }

    /// Why a holder of a block may not run it.
    fn exclusion(&self, candidate: &Candidate, block: u32) -> Option<Exclusion> {
        candidate.excluded.or_else(|| self.rules.exclusion(candidate.peer, block, self.model))
    }

    /// Why a candidate may not run any block that it holds, if that is so.
    pub(crate) fn excluded_everywhere(&self, candidate: &Candidate) -> Option<Exclusion> {
        let mut blocks = candidate.span.intersect(self.model)?.blocks();
        let first = self.exclusion(candidate, blocks.next()?)?;
        blocks.all(|block| self.exclusion(candidate, block).is_some()).then_some(first)
    }

    /// Who may run which block. Whoever is banned counts only where nobody else is left, and so do those in `avoided`. Who only says that it is quick
    /// does not count where somebody was on time.
    fn allowed(&self, blocks: Span, avoided: &HashSet<PeerId>) -> Result<Allowed, MissingBlocks> {
        let usable: Vec<(usize, Span)> = self
            .candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| {
                candidate.excluded.is_none() && self.rules.peer_exclusion(candidate.peer).is_none()
            })
            .filter_map(|(number, candidate)| Some((number, candidate.span.intersect(blocks)?)))
            .collect();
        let mut allowed: Allowed = vec![Vec::new(); blocks.len()];
        let on_time = self.on_time(&usable, blocks);
        // Who is there whatever happened, and how good the best of them is.
        let mut best = vec![u8::MAX; blocks.len()];
        for &(number, span) in &usable {
            let candidate = &self.candidates[number];
            let rank = 2 * u8::from(candidate.banned) + u8::from(avoided.contains(&candidate.peer));
            for block in span.blocks() {
                let at = (block - blocks.start()) as usize;
                let unknown = on_time[at] && candidate.punctuality == Punctuality::Unknown;
                if unknown || rank > best[at] || self.rules.block_exclusion(candidate.peer, block, self.model).is_some()
                {
                    continue;
                }
                if rank < best[at] {
                    best[at] = rank;
                    allowed[at].clear();
                }
                allowed[at].push(number);
            }
        }
        if allowed.iter().all(|holders| !holders.is_empty()) {
            return Ok(allowed);
        }
        let nobody = blocks.blocks().filter(|block| allowed[(block - blocks.start()) as usize].is_empty());
        Err(MissingBlocks::new(nobody, |block| {
            let holders = self.candidates.iter().filter(move |candidate| candidate.span.contains(block));
            holders.filter_map(move |holder| Some((holder.peer, self.exclusion(holder, block)?)))
        }))
    }
}

/// The last bytes of an id, which are a part of a key or of its hash.
fn end_of(peer: &PeerId) -> u64 {
    let digest = peer.as_ref().digest();
    digest.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The way from one server to the next: as announced, or through the client if that is shorter or nothing was.
fn between(one: &Candidate, other: &Candidate) -> f64 {
    let through_client = one.way() + other.way();
    one.next.get(&other.peer).map_or(through_client, |direct| direct.min(through_client))
}

#[cfg(test)]
mod tests;
