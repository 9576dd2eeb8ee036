//! Which blocks a node serves when nobody told it, and when it moves on to others.
//!
//! Pure: what is known of the swarm goes in, a span comes out. `mover.rs` acts on it, `examples/placement_sim.rs` plays
//! it through with a thousand servers.
//!
//! What servers say of themselves are claims. So what one of them says that it can do counts up to some times what is usual, all that are
//! found in one network count as one of those at most, and only who was found to hold a block (`holders.rs`) lets another leave it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use petals_protocol::{ServerInfo, ServerState, Span};

/// Nobody moves unless the blocks it would go to are served worse than those it would leave, by this factor. The figures
/// behind a decision are measurements, up to a minute old: without a margin servers would follow their noise to and fro.
const MARGIN: f64 = 0.8;
/// What a move must add to the throughput of the worst blocks concerned, as a part of that throughput or of the server's
/// own, whichever is less. A move costs the load of a span and a replay for some clients.
const LEAST_GAIN: f64 = 0.2;
/// How strongly the worst-served blocks outweigh others where spans are compared: throughputs count to minus this power.
const WORST_FIRST: i32 = 8;
/// Tokens per second of a server that does not say how fast it is, where no other says so either: it still is better than
/// none.
const UNKNOWN_RATE: f64 = 1.0;
const LEAST_RATE: f64 = 1e-3;
/// What a claim counts at most, and all claims of one network together: what a tenth of the networks say to exceed, which takes more than a few liars, within
/// so many medians. Nobody has measured any of it. Servers differ by more than four times, and a cap at four would waste the fast ones.
const FAST_TENTHS: usize = 9;
const LEAST_CAP: f64 = 4.0;
const MOST_CAP: f64 = 16.0;
/// In a large swarm, as much as this part of what a block has on average: so little moves nobody, whoever says it.
const SMALL_PART: f64 = 0.1;
/// Others that must hold a block before somebody leaves it for the sake of balance. One of them may be about to vanish.
const HOLDERS_WANTED: u32 = 2;
/// Where that fills a hole: a swarm of three servers has no more.
const HOLDERS_FOR_A_HOLE: u32 = 1;

/// What a server says that it offers, and whether that was found to be so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    /// The blocks that it serves, or is about to.
    pub span: Span,
    /// Tokens per second of forward that it says it does.
    pub rate: Option<f64>,
    /// Whether it has the blocks and stays.
    pub holds: bool,
    /// Those with the same one are counted together; `None` for one by itself.
    pub network: Option<IpAddr>,
}

impl Claim {
    /// What a record claims, if it is of a server that serves or is about to. One that announced a move counts where it goes to, and no longer as
    /// one that holds what it leaves.
    pub fn of(info: &ServerInfo, network: Option<IpAddr>) -> Option<Self> {
        let stays = info.moving_to.is_none();
        let claim = |holds| Self { span: info.moving_to.unwrap_or(info.span), rate: rate(info), holds, network };
        match info.state {
            ServerState::Online => Some(claim(stays)),
            ServerState::Joining => Some(claim(false)),
            ServerState::Draining if !stays => Some(claim(false)),
            _ => None,
        }
    }
}

/// How well each block of a model is served.
#[derive(Debug, Clone)]
pub struct Coverage {
    /// Tokens per second of forward, all servers together, of those that serve or are about to.
    throughput: Vec<f64>,
    /// Servers that serve the block now and are not about to leave it.
    holders: Vec<u32>,
}

/// Tokens per second that a server says it offers, if that is a number.
pub fn rate(info: &ServerInfo) -> Option<f64> {
    let rate = f64::from(info.forward_tokens_per_s?);
    rate.is_finite().then(|| rate.max(LEAST_RATE))
}

/// The network that an address of the internet is counted to: what one owner gets cheaply, 256 addresses of IPv4, or 64 bits of IPv6. Addresses of
/// local networks count by themselves: there are no strangers there.
pub fn neighbourhood(network: IpAddr) -> IpAddr {
    match network {
        IpAddr::V4(ip) if !(ip.is_private() || ip.is_loopback() || ip.is_link_local()) => {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        // Those of IPv6 come with no more than their first 64 bits.
        other => other,
    }
}

impl Coverage {
    /// Blocks that nobody serves.
    pub fn new(blocks: u32) -> Self {
        Self { throughput: vec![0.0; blocks as usize], holders: vec![0; blocks as usize] }
    }

    /// What `claims` come to for a model of `blocks` blocks, seen by a server that does `own` tokens per second itself, if it knows.
    ///
    /// One that is still loading and does not know its speed counts like the others on average, so that not everybody who comes meanwhile joins it.
    pub fn of(blocks: u32, own: Option<f64>, claims: &[Claim]) -> Self {
        let mut networks: HashMap<IpAddr, Vec<Claim>> = HashMap::new();
        let mut single = Vec::new();
        for claim in claims {
            match claim.network {
                Some(network) => networks.entry(network).or_default().push(*claim),
                None => single.push(*claim),
            }
        }
        // One voice for each network, or the one that has most ids would say what is usual.
        let voices = networks.values().filter_map(|of| median(of.iter().filter_map(|claim| claim.rate).collect()));
        let known: Vec<f64> = single.iter().filter_map(|claim| claim.rate).chain(voices).chain(own).collect();
        let others = &known[..known.len() - usize::from(own.is_some())];
        let beside = |most: f64| {
            let usual = match others.len() {
                0 => UNKNOWN_RATE.min(most),
                count => others.iter().map(|rate| rate.min(most)).sum::<f64>() / count as f64,
            };
            Self::up_to(blocks, most, usual, &single, &networks)
        };
        let most = cap(known.clone());
        let coverage = beside(most);
        let mean = coverage.throughput.iter().sum::<f64>() / f64::from(blocks.max(1));
        if SMALL_PART * mean > most { beside(SMALL_PART * mean) } else { coverage }
    }

    /// What claims come to of which each counts `most` at most, and all of one network together.
    fn up_to(blocks: u32, most: f64, usual: f64, single: &[Claim], networks: &HashMap<IpAddr, Vec<Claim>>) -> Self {
        let counted = |claim: &Claim| claim.rate.unwrap_or(usual).min(most);
        let mut coverage = Self::new(blocks);
        single.iter().for_each(|claim| coverage.add(claim.span, counted(claim), claim.holds));
        for of in networks.values() {
            let mut together = Self::new(blocks);
            of.iter().for_each(|claim| together.add(claim.span, counted(claim), claim.holds));
            let blocks = together.throughput.iter().zip(&together.holders);
            for (block, (throughput, holders)) in blocks.enumerate() {
                coverage.throughput[block] += throughput.min(most);
                coverage.holders[block] += (*holders).min(1);
            }
        }
        coverage
    }

    /// Adds a server; `holds` if it has the blocks and stays. Blocks that the model does not have are ignored.
    pub fn add(&mut self, span: Span, rate: f64, holds: bool) {
        for block in self.within(span) {
            self.throughput[block] += rate;
            self.holders[block] += u32::from(holds);
        }
    }

    /// Takes away what [`Self::add`] added.
    pub fn remove(&mut self, span: Span, rate: f64, holds: bool) {
        for block in self.within(span) {
            // Sums of rounded numbers may miss zero by a little.
            self.throughput[block] = (self.throughput[block] - rate).max(0.0);
            self.holders[block] -= u32::from(holds).min(self.holders[block]);
            if self.throughput[block] < LEAST_RATE / 2.0 {
                self.throughput[block] = 0.0;
            }
        }
    }

    fn within(&self, span: Span) -> std::ops::Range<usize> {
        let blocks = self.throughput.len();
        (span.start() as usize).min(blocks)..(span.end() as usize).min(blocks)
    }

    /// Tokens per second of the worst-served block: what the swarm as a whole can do.
    pub fn bottleneck(&self) -> f64 {
        self.throughput.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Whether every block of `span` outside of `kept` is held by `wanted` others.
    fn is_held(&self, span: Span, kept: Span, wanted: u32) -> bool {
        let held = |block: u32| self.holders.get(block as usize).is_none_or(|holders| *holders >= wanted);
        span.blocks().all(|block| kept.contains(block) || held(block))
    }

    /// Whether a server may leave `here` for `there`: others hold what it leaves, two of them unless it fills a hole. Whoever leaves others behind
    /// leaves no hole.
    pub fn may_leave(&self, here: Span, there: Span) -> bool {
        let is_hole = |block: u32| self.throughput.get(block as usize).is_some_and(|throughput| *throughput <= 0.0);
        let fills = there.blocks().any(|block| !here.contains(block) && is_hole(block));
        self.is_held(here, there, if fills { HOLDERS_FOR_A_HOLE } else { HOLDERS_WANTED })
    }

    /// The range of `count` blocks whose worst-served blocks are worst: the window whose throughputs, sorted, are
    /// lexicographically least, the first of equals (the rule of Petals' `block_selection.py`).
    pub fn worst_window(&self, count: u32) -> Option<Span> {
        let blocks = self.throughput.len() as u32;
        let count = count.min(blocks);
        let sorted = |start: u32| {
            let mut window = self.throughput[start as usize..(start + count) as usize].to_vec();
            window.sort_by(f64::total_cmp);
            window
        };
        let worst = (0..=blocks - count).map(|start| (sorted(start), start)).min_by(|(a, at), (b, bt)| {
            let order = a.iter().zip(b).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne());
            order.unwrap_or_else(|| at.cmp(bt))
        });
        let (_, start) = worst?;
        Span::new(start, start + count).ok()
    }

    /// Where a server at `here` that does `rate` tokens per second should go, if anywhere. It is not part of this
    /// coverage itself.
    ///
    /// Of all places that gain enough the one is taken after which the worst-served blocks of the whole model are served
    /// best. A place gains enough if the worst of the blocks that the move concerns, those left and those entered, are
    /// served better afterwards by a fifth, and the entered ones are served a fifth worse than those left.
    /// So one of a hundred servers of a block moves for its own sake as one of two does, and nobody ever moves if that
    /// leaves a hole.
    pub fn better(&self, here: Span, rate: f64) -> Option<Span> {
        let count = here.len() as u32;
        let last = (self.throughput.len() as u32).checked_sub(count)?;
        let scale = self.throughput.iter().sum::<f64>() / self.throughput.len() as f64 + rate;
        let spans = (0..=last).filter_map(|start| Span::new(start, start + count).ok());
        let mut best = (self.cost(here, rate, scale), None);
        let possible = |there: &Span| *there != here && self.may_leave(here, *there) && self.gains(here, *there, rate);
        for there in spans.filter(possible) {
            let cost = self.cost(there, rate, scale);
            if cost < best.0 {
                best = (cost, Some(there));
            }
        }
        best.1
    }

    fn gains(&self, here: Span, there: Span, rate: f64) -> bool {
        let worst = |span: Span, besides: Span| {
            let blocks = span.blocks().filter(|block| !besides.contains(*block));
            blocks.map(|block| self.throughput[block as usize]).fold(f64::INFINITY, f64::min)
        };
        let (left, entered) = (worst(here, there), worst(there, here));
        let before = (left + rate).min(entered);
        let after = left.min(entered + rate);
        after > before + LEAST_GAIN * before.min(rate) && entered < MARGIN * left
    }

    /// Holes, and how badly the worst blocks are served otherwise, with a server of `rate` at `span`. Less is better.
    fn cost(&self, span: Span, rate: f64, scale: f64) -> (usize, f64) {
        let with = |(block, throughput): (usize, &f64)| {
            if span.contains(block as u32) { throughput + rate } else { *throughput }
        };
        let served = self.throughput.iter().enumerate().map(with);
        served.fold((0, 0.0), |(holes, sum), throughput| {
            if throughput <= 0.0 {
                (holes + 1, sum)
            } else {
                (holes, sum + (throughput / scale).max(1e-30).powi(-WORST_FIRST))
            }
        })
    }
}

/// What a claim counts at most beside these of others.
fn cap(mut rates: Vec<f64>) -> f64 {
    let Some(usual) = median(rates.clone()) else { return f64::INFINITY };
    rates.sort_by(f64::total_cmp);
    // Never the largest one: that may be the liar's.
    let fast = (FAST_TENTHS * (rates.len() - 1) / 10).min(rates.len().saturating_sub(2));
    rates[fast].clamp(LEAST_CAP * usual, MOST_CAP * usual)
}

/// The lower one of the two in the middle, if there are two: of an honest server and a liar it is not the liar's word that counts.
fn median(mut rates: Vec<f64>) -> Option<f64> {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests;
