//! What a step will take, before the first one was made.

use std::time::Duration;

use super::{Pacer, PromptTuner};
use crate::planner::WeightedRoute;
use crate::sequence::SequenceError;
use crate::servers::peers::Source;

/// What a step is expected to take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepEstimate {
    /// From its start to updated tables, without what this machine computes itself.
    pub elapsed: Duration,
    /// Where the servers' speed is known from: measured here, or, of one of them at least, announced.
    pub source: Source,
}

impl PromptTuner {
    /// What a step of `tokens` tokens is expected to take over the routes that are planned now; nothing if some block has no server, or one
    /// of whose speed nothing is known.
    ///
    /// # Errors
    /// [`SequenceError::Lookup`].
    pub async fn estimate(&self, tokens: usize) -> Result<Option<StepEstimate>, SequenceError> {
        let pace = self.config.pace(Pacer::default().pace(tokens));
        let part = pace.micro_batch_tokens.clamp(1, tokens.max(1));
        let prefix = self.tables.shape().prefix_len;
        let explained = self.sequence.explain(part + prefix).await?;
        let hops = explained.training.iter().flat_map(|weighted| &weighted.route.hops);
        let source_of = |peer| {
            let server = explained.servers.iter().find(|server| server.peer == peer);
            server.and_then(|server| server.cost).map_or(Source::Assumed, |cost| cost.block_seconds.source)
        };
        let sources: Vec<Source> = hops.map(|hop| source_of(hop.peer)).collect();
        if sources.is_empty() || sources.contains(&Source::Assumed) {
            return Ok(None);
        }
        let source = if sources.contains(&Source::Announced) { Source::Announced } else { Source::Measured };
        let seconds = seconds(&explained.training, tokens.div_ceil(part));
        Ok(Duration::try_from_secs_f64(seconds).ok().map(|elapsed| StepEstimate { elapsed, source }))
    }
}

/// Seconds of a step of `parts` micro-batches, which are dealt out to these routes. The first one goes all the way, behind it one comes each
/// time that the slowest server is done. A backward takes about as long as a forward: what it needs is kept, and it has as many products.
fn seconds(routes: &[WeightedRoute], parts: usize) -> f64 {
    let one = |weighted: &WeightedRoute| {
        let parts = (parts as f64 * weighted.share).max(1.0);
        2.0 * (weighted.route.seconds + (parts - 1.0) * weighted.stage_seconds)
    };
    routes.iter().map(one).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::Route;

    fn route(seconds: f64, share: f64, stage_seconds: f64) -> WeightedRoute {
        WeightedRoute { route: Route { hops: Vec::new(), seconds }, share, stage_seconds }
    }

    #[test]
    fn micro_batches_follow_each_other_through_the_slowest_server() {
        assert_eq!(seconds(&[route(1.0, 1.0, 0.25)], 1), 2.0);
        assert_eq!(seconds(&[route(1.0, 1.0, 0.25)], 5), 4.0);
        assert_eq!(seconds(&[route(1.0, 0.5, 0.25), route(1.0, 0.5, 0.5)], 6), 4.0, "the slower of two routes");
    }
}
