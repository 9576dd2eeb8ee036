//! Which blocks a node serves when nobody told it, and when it moves on to others.
//!
//! Pure: what is known of the swarm goes in, a span comes out. `mover.rs` acts on it, `examples/placement_sim.rs` plays
//! it through with a thousand servers.

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

/// How well each block of a model is served.
#[derive(Debug, Clone)]
pub struct Coverage {
    /// Tokens per second of forward, all servers together, of those that serve or are about to.
    throughput: Vec<f64>,
    /// Servers that serve the block now and are not about to leave it.
    holders: Vec<u32>,
}

/// Tokens per second that a server says it offers.
pub fn rate(info: &ServerInfo) -> Option<f64> {
    Some(f64::from(info.forward_tokens_per_s?).max(LEAST_RATE))
}

impl Coverage {
    /// Blocks that nobody serves.
    pub fn new(blocks: u32) -> Self {
        Self { throughput: vec![0.0; blocks as usize], holders: vec![0; blocks as usize] }
    }

    /// What `servers` offer for a model of `blocks` blocks. One that announced a move counts where it goes to, and no
    /// longer as one that holds what it leaves. One that is still loading and does not know its speed counts like the
    /// others on average, so that not everybody who comes meanwhile joins it.
    pub fn of<'a>(blocks: u32, servers: impl IntoIterator<Item = &'a ServerInfo>) -> Self {
        let servers: Vec<&ServerInfo> = servers.into_iter().collect();
        let known: Vec<f64> = servers.iter().filter_map(|info| rate(info)).collect();
        let usual = if known.is_empty() { UNKNOWN_RATE } else { known.iter().sum::<f64>() / known.len() as f64 };
        let mut coverage = Self::new(blocks);
        for info in servers {
            let stays = info.moving_to.is_none();
            let (span, rate) = (info.moving_to.unwrap_or(info.span), rate(info).unwrap_or(usual));
            match info.state {
                ServerState::Online => coverage.add(span, rate, stays),
                ServerState::Joining => coverage.add(span, rate, false),
                ServerState::Draining if !stays => coverage.add(span, rate, false),
                _ => {}
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

    /// Whether every block of `span` outside of `kept` is held by somebody else. Whoever leaves others behind leaves no
    /// hole.
    pub fn is_held(&self, span: Span, kept: Span) -> bool {
        let held = |block: u32| self.holders.get(block as usize).is_none_or(|holders| *holders > 0);
        span.blocks().all(|block| kept.contains(block) || held(block))
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
        let possible = |there: &Span| *there != here && self.is_held(here, *there) && self.gains(here, *there, rate);
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

#[cfg(test)]
mod tests;
