//! Routes for many micro-batches: what counts is the slowest stage, and how far the way is once.

use std::collections::{HashMap, HashSet};

use petals_protocol::Span;
use petals_swarm::PeerId;

use super::{Allowed, Candidate, MissingBlocks, Planner, Route, fastest};

/// Limits of the slowest stage that are tried, each a part of the one before.
const LIMITS: usize = 5;
const NEXT_LIMIT: f64 = 0.66;
/// A further route has to make the whole this much faster: it costs connections, and prompts travel to its servers too.
const WORTH_A_ROUTE: f64 = 1.15;
/// A route that would get less than this share of the micro-batches is left out.
const LEAST_SHARE: f64 = 0.1;
/// Rounds in which shares are evened out. Each brings routes that share servers closer to taking equally long.
const ROUNDS: usize = 40;

/// A route and the part of the micro-batches that should take it.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedRoute {
    /// The route.
    pub route: Route,
    /// Its share of the micro-batches; those of all routes together are 1.
    pub share: f64,
    /// Seconds that its slowest server is busy with one micro-batch.
    pub stage_seconds: f64,
}

impl Planner<'_> {
    /// At most `most` routes on which a stream of micro-batches, `depth` of them under way on each, is done soonest. The
    /// one with the largest share comes first. They have servers in common only where nobody else is left who may run a block, or who was on time.
    ///
    /// # Errors
    /// [`MissingBlocks`] if nobody may run some block.
    pub fn parallel(&self, blocks: Span, depth: usize, most: usize) -> Result<Vec<WeightedRoute>, MissingBlocks> {
        // Few servers can be one long route with short stages or several short ones; which is better shows only as a whole.
        let long = self.gathered(blocks, most, |allowed| self.steady(blocks, allowed, depth))?;
        let short = self.gathered(blocks, most, |allowed| fastest::route(self, blocks, allowed, None))?;
        let time = |routes: &[WeightedRoute]| self.rated(routes, depth).unwrap_or(f64::INFINITY);
        Ok(if time(&short) < time(&long) { short } else { long })
    }

    /// Routes that `plan` finds one after the other, each over servers that are not used yet where that is possible.
    fn gathered(
        &self,
        blocks: Span,
        most: usize,
        plan: impl Fn(&Allowed) -> Option<Route>,
    ) -> Result<Vec<WeightedRoute>, MissingBlocks> {
        let (mut used, mut routes): (HashSet<PeerId>, Vec<Route>) = (HashSet::new(), Vec::new());
        let mut shares: Vec<f64> = Vec::new();
        while routes.len() < most.max(1) {
            let allowed = self.allowed(blocks, &used)?;
            let Some(route) = plan(&allowed) else { break };
            if routes.iter().any(|known| known.hops == route.hops) {
                break;
            }
            used.extend(route.hops.iter().map(|hop| hop.peer));
            let before = self.throughput(&routes, &shares);
            routes.push(route);
            let (with_it, share) = (self.even(&routes), routes.len() - 1);
            let worth_it = self.throughput(&routes, &with_it) >= WORTH_A_ROUTE * before;
            if share > 0 && !(worth_it && with_it.iter().all(|share| *share >= LEAST_SHARE)) {
                routes.pop();
                break;
            }
            shares = with_it;
        }
        let mut weighted: Vec<WeightedRoute> = routes
            .into_iter()
            .zip(shares)
            .map(|(route, share)| WeightedRoute { stage_seconds: self.slowest(&route), route, share })
            .collect();
        weighted.sort_by(|a, b| b.share.total_cmp(&a.share));
        Ok(weighted)
    }

    /// Seconds in which `depth` micro-batches are done on these routes, by today's estimates. `None` if one of them is no
    /// longer possible, or leads through a banned server.
    pub(crate) fn rated(&self, routes: &[WeightedRoute], depth: usize) -> Option<f64> {
        let mut farthest = 0.0f64;
        for WeightedRoute { route, .. } in routes {
            farthest = farthest.max(self.seconds(&route.hops)?);
            if route.hops.iter().any(|hop| self.candidate(hop.peer).is_none_or(|candidate| candidate.banned)) {
                return None;
            }
        }
        let (bare, shares): (Vec<Route>, Vec<f64>) = routes.iter().map(|r| (r.route.clone(), r.share)).unzip();
        let rate = self.throughput(&bare, &shares);
        (!routes.is_empty()).then(|| farthest + depth.saturating_sub(1) as f64 / rate)
    }

    /// One route on which `depth` micro-batches are done soonest: the first goes all the way, and the slowest stage has
    /// each of the others in turn.
    fn steady(&self, blocks: Span, allowed: &Allowed, depth: usize) -> Option<Route> {
        let whole = |route: &Route| route.seconds + depth.saturating_sub(1) as f64 * self.slowest(route);
        let mut best = fastest::route(self, blocks, allowed, None)?;
        let mut limit = self.slowest(&best);
        for _ in 0..LIMITS {
            limit *= NEXT_LIMIT;
            let most: Vec<u32> = self.candidates.iter().map(|candidate| within(candidate, limit)).collect();
            let Some(route) = fastest::route(self, blocks, allowed, Some(&most)) else { break };
            if whole(&route) < whole(&best) {
                best = route;
            }
        }
        Some(best)
    }

    /// What one micro-batch on `route` keeps each of its servers busy for.
    fn stages(&self, route: &Route) -> HashMap<PeerId, f64> {
        let mut stages = HashMap::new();
        for hop in &route.hops {
            let Some(candidate) = self.candidate(hop.peer) else { continue };
            let computing = hop.span.len() as f64 * candidate.stage_seconds();
            // Its link works beside it: the slower of the two counts.
            *stages.entry(hop.peer).or_insert(0.0) += computing.max(candidate.transfer_seconds);
        }
        stages
    }

    pub(super) fn slowest(&self, route: &Route) -> f64 {
        self.stages(route).into_values().fold(0.0, f64::max)
    }

    /// Micro-batches per second over all routes: the server that is busiest with its shares says how many.
    fn throughput(&self, routes: &[Route], shares: &[f64]) -> f64 {
        let busiest = self.busy(routes, shares).into_values().fold(0.0, f64::max);
        if routes.is_empty() { 0.0 } else { 1.0 / busiest.max(f64::MIN_POSITIVE) }
    }

    /// Seconds that each server is busy for one micro-batch on average.
    fn busy(&self, routes: &[Route], shares: &[f64]) -> HashMap<PeerId, f64> {
        let mut busy = HashMap::new();
        for (route, share) in routes.iter().zip(shares) {
            self.stages(route).into_iter().for_each(|(peer, stage)| *busy.entry(peer).or_insert(0.0) += share * stage);
        }
        busy
    }

    /// Shares with which no server is busier than it must be: routes whose busiest server is busier than others' give up
    /// some of theirs.
    fn even(&self, routes: &[Route]) -> Vec<f64> {
        let normal = |shares: Vec<f64>| {
            let sum: f64 = shares.iter().sum();
            shares.into_iter().map(|share| share / sum).collect::<Vec<f64>>()
        };
        let slowest = |route: &Route| 1.0 / self.slowest(route).max(f64::MIN_POSITIVE);
        let mut shares = normal(routes.iter().map(slowest).collect());
        let mut best = (self.throughput(routes, &shares), shares.clone());
        for _ in 0..if routes.len() > 1 { ROUNDS } else { 0 } {
            let busy = self.busy(routes, &shares);
            let of = |route: &Route| {
                let busiest = route.hops.iter().filter_map(|hop| busy.get(&hop.peer)).copied().fold(0.0, f64::max);
                busiest.max(f64::MIN_POSITIVE).sqrt()
            };
            shares = normal(routes.iter().zip(&shares).map(|(route, share)| share / of(route)).collect());
            let throughput = self.throughput(routes, &shares);
            if throughput > best.0 {
                best = (throughput, shares.clone());
            }
        }
        best.1
    }
}

/// Blocks in a row that a server gets done within `limit`.
fn within(candidate: &Candidate, limit: f64) -> u32 {
    let block = candidate.stage_seconds();
    // A hair more, so that the route that set the limit keeps to it.
    if block > 0.0 { (limit * (1.0 + 1e-9) / block).min(f64::from(u32::MAX)) as u32 } else { u32::MAX }
}
