//! Who ran the steps, as lanes of a chart: one for each server and its blocks, with the share of the micro-batches that went there.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Columns of the chart.
const COLUMNS: u64 = 160;
/// Most lanes; those that did most.
const MOST: usize = 40;

/// A server's part in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Lane {
    peer: String,
    /// First block, and the one behind the last.
    blocks: (u64, u64),
    /// First step, last step, and the share of the micro-batches that went through these blocks in between; only where there were any.
    parts: Vec<(u64, u64, f64)>,
}

/// How steps are put into columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes {
    first: u64,
    /// Steps of a column.
    width: u64,
}

/// The hops of a route: server, blocks, share of the micro-batches.
type Hops = Vec<(String, (u64, u64), f64)>;

impl Lanes {
    /// Columns for the steps `first..=last`.
    pub(super) fn new(first: u64, last: u64) -> Self {
        let steps = last.saturating_sub(first).saturating_add(1);
        Self { first, width: steps.div_ceil(COLUMNS).max(1) }
    }

    /// The lanes of routes, each of which holds until the next one, and how many more there are for which there is no room.
    pub(super) fn of(self, routes: &[Value], last: u64) -> (Vec<Lane>, usize) {
        let mut shares: BTreeMap<((u64, u64), String), BTreeMap<u64, f64>> = BTreeMap::new();
        for (at, route) in routes.iter().enumerate() {
            let Some((begin, hops)) = route_of(route) else { continue };
            let next = routes.get(at + 1).and_then(|next| next.get("step")?.as_u64()).unwrap_or(last.saturating_add(1));
            let (begin, end) = (begin.max(self.first), next.min(last.saturating_add(1)));
            for (peer, blocks, share) in hops {
                self.spread(begin, end, share, shares.entry((blocks, peer)).or_default());
            }
        }
        let mut lanes: Vec<Lane> = Vec::new();
        for ((blocks, peer), columns) in shares {
            let part = |(column, steps): (u64, f64)| {
                let from = self.first + column * self.width;
                let to = (from + self.width - 1).min(last);
                (from, to, steps / (to - from + 1) as f64)
            };
            lanes.push(Lane { peer, blocks, parts: joined(columns.into_iter().map(part)) });
        }
        let more = lanes.len().saturating_sub(MOST);
        if more > 0 {
            lanes.sort_by(|a, b| b.work().total_cmp(&a.work()));
            lanes.truncate(MOST);
            lanes.sort_by(|a, b| (a.blocks, &a.peer).cmp(&(b.blocks, &b.peer)));
        }
        (lanes, more)
    }

    /// Adds a share of the steps `begin..end` to their columns.
    fn spread(self, begin: u64, end: u64, share: f64, columns: &mut BTreeMap<u64, f64>) {
        let mut at = begin;
        while at < end {
            let column = (at - self.first) / self.width;
            let until = (self.first + (column + 1) * self.width).min(end);
            *columns.entry(column).or_default() += (until - at) as f64 * share;
            at = until;
        }
    }
}

impl Lane {
    fn work(&self) -> f64 {
        self.parts.iter().map(|(from, to, share)| (to - from + 1) as f64 * share).sum()
    }
}

/// Neighbouring parts with the same share as one.
fn joined(parts: impl Iterator<Item = (u64, u64, f64)>) -> Vec<(u64, u64, f64)> {
    let mut joined: Vec<(u64, u64, f64)> = Vec::new();
    for (from, to, share) in parts {
        match joined.last_mut() {
            Some((_, end, before)) if *end + 1 == from && (*before - share).abs() < 1e-9 => *end = to,
            _ => joined.push((from, to, share)),
        }
    }
    joined
}

fn route_of(route: &Value) -> Option<(u64, Hops)> {
    let hop = |hop: &Value| {
        let (start, end) = hop.get("blocks")?.as_str()?.split_once("..")?;
        let blocks = (start.parse().ok()?, end.parse().ok()?);
        Some((hop.get("peer")?.as_str()?.to_owned(), blocks, hop.get("share")?.as_f64()?.clamp(0.0, 1.0)))
    };
    let hops = route.get("hops")?.as_array()?.iter().filter_map(hop).collect();
    Some((route.get("step")?.as_u64()?, hops))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hop(peer: &str, blocks: &str, share: f64) -> Value {
        json!({"peer": peer, "blocks": blocks, "share": share})
    }

    #[test]
    fn a_lane_has_the_share_of_the_micro_batches_that_went_through_its_blocks() {
        let routes = [
            json!({"step": 1, "hops": [hop("a", "0..2", 0.75), hop("b", "0..4", 0.25), hop("c", "2..4", 0.75)]}),
            json!({"step": 4, "hops": [hop("a", "0..2", 1.0), hop("c", "2..4", 1.0)]}),
            json!({"step": "?"}),
        ];
        let (lanes, more) = Lanes::new(1, 5).of(&routes, 5);
        let lane =
            |peer: &str, blocks, parts: &[(u64, u64, f64)]| Lane { peer: peer.into(), blocks, parts: parts.to_vec() };
        let both = [(1, 3, 0.75), (4, 5, 1.0)];
        assert_eq!(lanes, [lane("a", (0, 2), &both), lane("b", (0, 4), &[(1, 3, 0.25)]), lane("c", (2, 4), &both)]);
        assert_eq!(more, 0);
    }

    #[test]
    fn many_steps_share_a_column_and_of_many_servers_those_stay_that_did_most() {
        let routes =
            [json!({"step": 1, "hops": [hop("a", "0..4", 1.0)]}), json!({"step": 3, "hops": [hop("b", "0..4", 1.0)]})];
        let (lanes, _) = Lanes::new(1, 640).of(&routes, 640);
        assert_eq!(lanes[0].parts, [(1, 4, 0.5)]);
        assert_eq!(lanes[1].parts, [(1, 4, 0.5), (5, 640, 1.0)]);
        let (lanes, _) = Lanes::new(1, 641).of(&routes[1..], 641);
        assert_eq!(lanes[0].parts, [(1, 5, 0.6), (6, 641, 1.0)], "the last column has one step alone");
        let hops: Vec<Value> = (0..50).map(|at| hop(&format!("{at:02}"), "0..4", f64::from(at + 1) / 50.0)).collect();
        let (lanes, more) = Lanes::new(1, 2).of(&[json!({"step": 1, "hops": hops})], 2);
        assert_eq!((lanes.len(), more, lanes[0].peer.as_str()), (40, 10, "10"));
    }
}
