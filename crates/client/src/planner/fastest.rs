//! Shortest path over (block, server).
//!
//! The state is how many blocks are done and which server ran the last one. Entering a server costs the way to it and its
//! queue, staying costs a block. The way through the client is a sum of one part for each of its two ends, so the best
//! server to come from is found once for all servers of a block; only announced ways are looked at pair by pair, and
//! a server announces few. That keeps 1,000 servers cheap.

use petals_protocol::Span;

use super::{Allowed, Candidate, Hop, Planner, Route};

/// From nowhere: the client.
const CLIENT: u32 = u32::MAX;

/// How a state was reached.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Seconds until the block is done.
    seconds: f64,
    /// The first block of the run that ends here, counted from the first planned one.
    from: u32,
}

/// How a run began.
#[derive(Debug, Clone, Copy)]
struct Entry {
    seconds: f64,
    /// The server in front.
    before: u32,
}

const NOT_REACHED: State = State { seconds: f64::INFINITY, from: 0 };
const NO_ENTRY: Entry = Entry { seconds: f64::INFINITY, before: CLIENT };

/// The fastest route, in which server `c` runs at most `most(c)` blocks in a row. `None` if there is none.
pub(super) fn route(planner: &Planner, blocks: Span, allowed: &Allowed, most: Option<&[u32]>) -> Option<Route> {
    let candidates = planner.candidates;
    let m = blocks.len();
    let ways = announced_ways(planner, allowed);
    let places = Places::new(candidates, blocks);
    let mut states = vec![NOT_REACHED; places.count];
    let mut entries = vec![NO_ENTRY; places.count];
    // Seconds until as many blocks are done, by the server that ran the last one.
    let mut here = vec![f64::INFINITY; candidates.len()];
    let mut ahead: Vec<f64> = Vec::new();
    // Where the unbroken range of blocks that a server may run began, and where it ends so far.
    let mut ranges = vec![(0, 0); if most.is_some() { candidates.len() } else { 0 }];
    for done in 0..m {
        let leaving = if done == 0 { [NO_ENTRY; 2] } else { two_best(candidates, &allowed[done - 1], &here) };
        ahead.clear();
        for &c in &allowed[done] {
            let candidate = &candidates[c];
            let mut entry = Entry { seconds: candidate.way(), before: CLIENT };
            if done > 0 {
                let best = if leaving[0].before == c as u32 { leaving[1] } else { leaving[0] };
                entry = Entry { seconds: best.seconds + candidate.way(), before: best.before };
                for &(before, way) in &ways[c] {
                    let seconds = here[before as usize] + way;
                    if seconds < entry.seconds {
                        entry = Entry { seconds, before };
                    }
                }
            }
            entry.seconds += candidate.queue_seconds;
            let place = places.of(c, done);
            entries[place] = entry;
            let block = candidate.block_seconds;
            states[place] = match most {
                None if here[c].is_finite() && here[c] <= entry.seconds => {
                    State { seconds: here[c] + block, from: states[place - 1].from }
                }
                None => State { seconds: entry.seconds + block, from: done as u32 },
                Some(most) => {
                    if ranges[c].1 != done {
                        ranges[c].0 = done;
                    }
                    ranges[c].1 = done + 1;
                    let starts = ranges[c].0.max((done + 1).saturating_sub(most[c] as usize))..=done;
                    let run = |from: usize| entries[places.of(c, from)].seconds + (done + 1 - from) as f64 * block;
                    let best = starts.min_by(|&a, &b| run(a).total_cmp(&run(b)));
                    best.map_or(NOT_REACHED, |from| State { seconds: run(from), from: from as u32 })
                }
            };
            ahead.push(states[place].seconds);
        }
        if done > 0 {
            allowed[done - 1].iter().for_each(|&c| here[c] = f64::INFINITY);
        }
        allowed[done].iter().zip(&ahead).for_each(|(&c, &seconds)| here[c] = seconds);
    }
    let back = |c: &usize| here[*c] + candidates[*c].way();
    let last = allowed[m - 1].iter().copied().min_by(|a, b| back(a).total_cmp(&back(b)))?;
    let seconds = back(&last);
    if !seconds.is_finite() {
        return None;
    }
    let (mut hops, mut done, mut server) = (Vec::new(), m, last);
    loop {
        let from = states[places.of(server, done - 1)].from as usize;
        let span = Span::new(blocks.start() + from as u32, blocks.start() + done as u32).ok()?;
        hops.push(Hop { peer: candidates[server].peer, span });
        if from == 0 {
            break;
        }
        (server, done) = (entries[places.of(server, from)].before as usize, from);
    }
    hops.reverse();
    Some(Route { hops, seconds })
}

/// Where something about a server and one of its blocks is kept: server by server, block by block, so that little memory is touched.
struct Places {
    /// For each server, the place of its first block less that block's number.
    bases: Vec<usize>,
    count: usize,
}

impl Places {
    fn new(candidates: &[Candidate], blocks: Span) -> Self {
        let mut count = 0usize;
        let base = |candidate: &Candidate| {
            let Some(span) = candidate.span.intersect(blocks) else { return 0 };
            // Blocks are counted from the first planned one; may wrap, as adding the block does again.
            let base = count.wrapping_sub((span.start() - blocks.start()) as usize);
            count += span.len();
            base
        };
        let bases = candidates.iter().map(base).collect();
        Self { bases, count }
    }

    /// Of a server and a block that it holds.
    fn of(&self, server: usize, block: usize) -> usize {
        self.bases[server].wrapping_add(block)
    }
}

/// For each server, those in front of it that announced the way, and its length.
fn announced_ways(planner: &Planner, allowed: &Allowed) -> Vec<Vec<(u32, f64)>> {
    let mut used = vec![false; planner.candidates.len()];
    allowed.iter().flatten().for_each(|&c| used[c] = true);
    let mut ways = vec![Vec::new(); planner.candidates.len()];
    for (number, candidate) in planner.candidates.iter().enumerate().filter(|(number, _)| used[*number]) {
        for (peer, seconds) in &candidate.next {
            if let Some(next) = planner.place(peer).filter(|&next| used[next] && next != number) {
                ways[next].push((number as u32, *seconds));
            }
        }
    }
    ways
}

/// The two servers from which the client has the rows of a finished block soonest.
fn two_best(candidates: &[Candidate], holders: &[usize], here: &[f64]) -> [Entry; 2] {
    let mut best = [NO_ENTRY; 2];
    for &c in holders {
        let entry = Entry { seconds: here[c] + candidates[c].way(), before: c as u32 };
        if entry.seconds < best[0].seconds {
            best = [entry, best[0]];
        } else if entry.seconds < best[1].seconds {
            best[1] = entry;
        }
    }
    best
}
