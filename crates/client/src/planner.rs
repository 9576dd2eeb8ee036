//! From candidates and measurements to a route. Pure: no network, no clock.

use petals_protocol::Span;
use petals_swarm::PeerId;

/// A server that could be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// Blocks it hosts.
    pub span: Span,
    /// Seconds to run the planned batch through one block there.
    pub block_seconds: f64,
    /// Seconds a request costs besides computation: round trip, transfer, the queue in front.
    pub overhead_seconds: f64,
    /// Use it only for blocks that nobody else holds.
    pub banned: bool,
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
    /// In order of the blocks, at least one.
    pub hops: Vec<Hop>,
    /// Estimated seconds for the planned batch.
    pub seconds: f64,
}

/// No candidate holds these blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no server holds block{} {}", if self.plural() { "s" } else { "" }, self.list())]
pub struct MissingBlocks {
    /// Maximal ranges of blocks without a holder.
    pub spans: Vec<Span>,
}

impl MissingBlocks {
    fn plural(&self) -> bool {
        self.spans.iter().map(|span| span.len()).sum::<usize>() > 1
    }

    fn list(&self) -> String {
        let one = |span: &Span| if span.len() == 1 { span.start().to_string() } else { span.to_string() };
        self.spans.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// The estimate of a banned server is multiplied by this: used only where there is no other way.
const BAN_FACTOR: f64 = 1e6;

/// The fastest chain over `blocks`.
///
/// Shortest path over block boundaries: an edge `i -> j` is one server running `i..j`, at its overhead plus `j - i` times
/// its time for a block. Each hop pays its overhead, so no server follows itself. Boundaries only need considering where
/// some span starts or ends, which keeps 1,000 servers cheap.
///
/// # Errors
/// [`MissingBlocks`] if some block has no holder.
pub fn plan(blocks: Span, candidates: &[Candidate]) -> Result<Route, MissingBlocks> {
    let usable: Vec<(&Candidate, Span)> =
        candidates.iter().filter_map(|c| Some((c, c.span.intersect(blocks)?))).collect();
    let missing = uncovered(blocks, usable.iter().map(|(_, span)| *span));
    if !missing.is_empty() {
        return Err(MissingBlocks { spans: missing });
    }
    let mut boundaries: Vec<u32> = usable.iter().flat_map(|(_, span)| [span.start(), span.end()]).collect();
    boundaries.sort_unstable();
    boundaries.dedup();
    let index = |block: u32| boundaries.binary_search(&block).unwrap_or_default();

    let mut best: Vec<Option<(f64, usize, Hop)>> = vec![None; boundaries.len()];
    let mut starts: Vec<Vec<usize>> = vec![Vec::new(); boundaries.len()];
    for (number, (_, span)) in usable.iter().enumerate() {
        (index(span.start())..index(span.end())).for_each(|at| starts[at].push(number));
    }
    for from in 0..boundaries.len() {
        let reached = if boundaries[from] == blocks.start() { Some(0.0) } else { best[from].map(|(cost, ..)| cost) };
        let Some(reached) = reached else { continue };
        for &number in &starts[from] {
            let (candidate, span) = usable[number];
            let factor = if candidate.banned { BAN_FACTOR } else { 1.0 };
            for to in from + 1..=index(span.end()) {
                let length = f64::from(boundaries[to] - boundaries[from]);
                let cost = reached + factor * (candidate.overhead_seconds + length * candidate.block_seconds);
                if best[to].is_none_or(|(known, ..)| cost < known)
                    && let Ok(part) = Span::new(boundaries[from], boundaries[to])
                {
                    best[to] = Some((cost, from, Hop { peer: candidate.peer, span: part }));
                }
            }
        }
    }
    let mut hops = Vec::new();
    let mut at = boundaries.len() - 1;
    let seconds = best[at].map_or(0.0, |(cost, ..)| cost);
    while let Some((_, from, hop)) = best[at] {
        hops.push(hop);
        at = from;
    }
    hops.reverse();
    Ok(Route { hops, seconds })
}

fn uncovered(blocks: Span, held: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut held: Vec<Span> = held.collect();
    held.sort_unstable();
    let mut missing = Vec::new();
    let mut covered_to = blocks.start();
    for span in held {
        missing.extend(Span::new(covered_to, span.start()));
        covered_to = covered_to.max(span.end());
    }
    missing.extend(Span::new(covered_to, blocks.end()));
    missing
}

#[cfg(test)]
mod tests;
