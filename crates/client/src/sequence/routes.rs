//! Which route the next pass takes: planned anew when something changed, and kept while another promises little more.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use petals_protocol::Span;
use petals_swarm::PeerId;

use super::{RelayMode, RemoteSequence, SwarmEvent};
use crate::lock::lock;
use crate::planner::{Candidate, Exclusion, Hop, MissingBlocks, Planner, Punctuality, Route, WeightedRoute};
use crate::servers::peers::PassSize;

/// Estimates change with every answer; routes are not planned anew for them more often than this.
const MAX_AGE: Duration = Duration::from_secs(2);
/// What another route has to promise before it is taken: estimates are noisy, and a change costs connections, prompts that
/// travel again, and what was learnt of the old one's pace.
const WORTH_A_CHANGE: f64 = 0.8;
/// Micro-batches that are under way on a route.
const DEPTH: usize = 8;

/// What a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// One pass whose result is waited for.
    Soonest,
    /// One of many micro-batches.
    Steady,
}

impl Purpose {
    /// Passes that are under way at a time.
    fn depth(self) -> usize {
        match self {
            Self::Soonest => 1,
            Self::Steady => DEPTH,
        }
    }
}

/// The routes in use.
#[derive(Debug, Default)]
pub(super) struct Routes(Mutex<HashMap<Purpose, InUse>>);

#[derive(Debug)]
struct InUse {
    /// The view's when this was planned.
    version: u64,
    planned: Instant,
    pass: PassSize,
    relay: RelayMode,
    routes: Vec<WeightedRoute>,
    /// By route: its share of what was sent so far, less what was sent there.
    owed: Vec<f64>,
}

impl InUse {
    /// Whether there is nothing new to plan with.
    fn is_fresh(&self, version: u64, pass: PassSize, relay: RelayMode) -> bool {
        let similar = self.pass.rows <= 2 * pass.rows && pass.rows <= 2 * self.pass.rows;
        self.version == version && self.relay == relay && similar && self.planned.elapsed() < MAX_AGE
    }

    /// The route that is owed most.
    fn next(&mut self) -> Option<Vec<Hop>> {
        self.owed.iter_mut().zip(&self.routes).for_each(|(owed, route)| *owed += route.share);
        let (most, _) = self.owed.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        self.owed[most] -= 1.0;
        Some(self.routes[most].route.hops.clone())
    }
}

impl RemoteSequence {
    /// Who could run what, as planning `pass` sees it.
    pub(super) fn candidates(
        &self,
        pass: PassSize,
        relay: RelayMode,
        without: &HashSet<PeerId>,
        why: Exclusion,
    ) -> Vec<Candidate> {
        let mut candidates = self.view.candidates(pass, relay == RelayMode::Chain, without, why);
        if self.config.trials == 0 {
            // Who was asked first would be the only choice for good.
            candidates.iter_mut().for_each(|candidate| candidate.punctuality = Punctuality::Unknown);
        }
        if relay == RelayMode::Chain && self.relays.any_avoided() {
            for candidate in &mut candidates {
                candidate.next.retain(|peer, _| self.relays.may(candidate.peer, *peer));
            }
        }
        candidates
    }

    /// The way for the next whole pass.
    pub(super) fn next_route(
        &self,
        purpose: Purpose,
        pass: PassSize,
        relay: RelayMode,
    ) -> Result<Vec<Hop>, MissingBlocks> {
        let version = self.view.version();
        if let Some(hops) = lock(&self.routes.0)
            .get_mut(&purpose)
            .filter(|used| used.is_fresh(version, pass, relay))
            .and_then(InUse::next)
        {
            return Ok(hops);
        }
        if let Some(peers) = self.view.other_weights() {
            self.tell(SwarmEvent::OtherWeights { peers });
        }
        let candidates = self.candidates(pass, relay, &HashSet::new(), Exclusion::Rejected);
        let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
        let routes = plan(&planner, purpose, self.served, self.config.routes)?;
        let mut in_use = lock(&self.routes.0);
        let (routes, owed) = match in_use.remove(&purpose) {
            Some(old) if old.relay == relay => keep(&planner, old, routes, purpose.depth()),
            _ => (routes.clone(), vec![0.0; routes.len()]),
        };
        let mut used = InUse { version, planned: Instant::now(), pass, relay, routes, owed };
        let hops = used.next().unwrap_or_default();
        in_use.insert(purpose, used);
        Ok(hops)
    }

    /// The share of micro-batches that take the most used route.
    pub(crate) fn largest_share(&self) -> f64 {
        lock(&self.routes.0).get(&Purpose::Steady).and_then(|used| Some(used.routes.first()?.share)).unwrap_or(1.0)
    }
}

/// Routes for a purpose.
pub(super) fn plan(
    planner: &Planner,
    purpose: Purpose,
    blocks: Span,
    most: usize,
) -> Result<Vec<WeightedRoute>, MissingBlocks> {
    match purpose {
        Purpose::Soonest => {
            let route: Route = planner.fastest(blocks)?;
            Ok(vec![WeightedRoute { stage_seconds: route.seconds, route, share: 1.0 }])
        }
        Purpose::Steady => planner.parallel(blocks, purpose.depth(), most),
    }
}

/// The old routes, unless some of them cannot be used any more or the new ones are much better.
fn keep(planner: &Planner, old: InUse, new: Vec<WeightedRoute>, depth: usize) -> (Vec<WeightedRoute>, Vec<f64>) {
    let hops = |routes: &[WeightedRoute]| routes.iter().map(|r| r.route.hops.clone()).collect::<Vec<_>>();
    let worth_it = match (planner.rated(&old.routes, depth), planner.rated(&new, depth)) {
        (Some(old), Some(new)) => new < WORTH_A_CHANGE * old,
        _ => true,
    };
    if worth_it || hops(&old.routes) == hops(&new) {
        let owed = if hops(&old.routes) == hops(&new) { old.owed } else { vec![0.0; new.len()] };
        return (new, owed);
    }
    (old.routes, old.owed)
}
