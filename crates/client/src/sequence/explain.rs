//! Why the route is what it is.

use std::time::{Duration, Instant};

use petals_protocol::{ServerState, Span};
use petals_swarm::PeerId;

use super::routes::{self, Purpose};
use super::{RelayMode, RemoteSequence, SequenceError};
use crate::planner::{Candidate, Exclusion, Hop, HopCost, MissingBlocks, Planner, RouteRules, WeightedRoute};
use crate::servers::peers::CostEstimate;

/// Servers whose best route is computed for comparison; each costs a plan.
const COMPARED: usize = 256;

/// What planning a pass considered and chose.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// Every server known, by its first block.
    pub servers: Vec<ExplainedServer>,
    /// The route of one pass.
    pub route: Result<ExplainedRoute, MissingBlocks>,
    /// The routes of a training step's micro-batches, the one with the largest share first. Empty without a route.
    pub training: Vec<WeightedRoute>,
}

/// A route and where its time is expected to go.
#[derive(Debug, Clone)]
pub struct ExplainedRoute {
    /// In order of the blocks, each with its cost.
    pub hops: Vec<(Hop, HopCost)>,
    /// From the client to the client, the way back included.
    pub seconds: f64,
}

/// A server that was considered.
#[derive(Debug, Clone)]
pub struct ExplainedServer {
    /// Who.
    pub peer: PeerId,
    /// Blocks it hosts.
    pub span: Span,
    /// What the pass is expected to cost there; nothing for one that is not online.
    pub cost: Option<CostEstimate>,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a server in planning.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// It runs these blocks.
    Chosen(Vec<Span>),
    /// It may not run any block.
    Excluded(Exclusion),
    /// It failed not long ago.
    Banned {
        /// What is left of the ban.
        left: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// It does not serve now, or not passes of this size.
    Unavailable(ServerState),
    /// With it the pass would take longer.
    Slower {
        /// How long, if it ran everything it hosts; `None` if there is no such route.
        seconds: Option<f64>,
    },
}

impl RemoteSequence {
    /// What planning a pass of `rows` rows considers and chooses now.
    ///
    /// # Errors
    /// [`SequenceError::Lookup`].
    pub async fn explain(&self, rows: usize) -> Result<Explanation, SequenceError> {
        self.view.refresh(Duration::ZERO).await?;
        let (pass, rules) = (self.pass_size(rows), &self.config.rules);
        let direct = self.config.relay == RelayMode::Chain;
        let considered = self.view.considered(pass, direct, &|_| None);
        let candidates: Vec<Candidate> = considered.iter().map(|c| c.candidate.clone()).collect();
        let planner = Planner::new(&candidates, rules, self.blocks);
        let mut route = planner.fastest(self.served);
        if let Err(missing) = &mut route {
            missing.note = self.view.missing_note(missing).await;
        }
        let hops = route.as_ref().map_or(&[][..], |route| &route.hops);
        let mut compared = 0;
        let mut verdict = |candidate: &Candidate| {
            let runs = hops.iter().filter(|hop| hop.peer == candidate.peer);
            let runs: Vec<Span> = runs.map(|hop| hop.span).collect();
            if !runs.is_empty() {
                return Verdict::Chosen(runs);
            }
            if let Some(why) = planner.excluded_everywhere(candidate) {
                return Verdict::Excluded(why);
            }
            if let Some((left, failures)) = self.view.peers().ban(candidate.peer, Instant::now()) {
                return Verdict::Banned { left, failures };
            }
            compared += 1;
            let seconds = (compared <= COMPARED).then(|| with(&candidates, rules, self.blocks, candidate)).flatten();
            Verdict::Slower { seconds }
        };
        let mut servers: Vec<ExplainedServer> = considered
            .iter()
            .map(|c| {
                let Candidate { peer, span, .. } = c.candidate;
                ExplainedServer { peer, span, cost: Some(c.cost), verdict: verdict(&c.candidate) }
            })
            .collect();
        for (peer, info) in self.view.servers() {
            if !servers.iter().any(|server| server.peer == peer) {
                let verdict = Verdict::Unavailable(info.state);
                servers.push(ExplainedServer { peer, span: info.span, cost: None, verdict });
            }
        }
        servers.sort_by_key(|server| (server.span, server.peer));
        let explained = route.map(|route| {
            let costs = planner.costs(&route.hops).unwrap_or_default();
            ExplainedRoute { hops: route.hops.into_iter().zip(costs).collect(), seconds: route.seconds }
        });
        let training = routes::plan(&planner, Purpose::Steady, self.served, self.config.routes).unwrap_or_default();
        Ok(Explanation { servers, route: explained, training })
    }
}

/// The time of the best route in which `candidate` runs everything it hosts.
fn with(candidates: &[Candidate], rules: &RouteRules, model: Span, candidate: &Candidate) -> Option<f64> {
    let span = candidate.span.intersect(model)?;
    let mut rules = rules.clone();
    rules.pins.push((span, candidate.peer));
    Some(Planner::new(candidates, &rules, model).fastest(model).ok()?.seconds)
}
