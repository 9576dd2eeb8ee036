//! What a run's file has beside its measurements: settings, and who ran the steps.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::PathBuf;

use petals_client::{HopPasses, LabelMap};
use serde::Serialize;

use super::Event;

/// A change of a hop's share that makes a route another one.
const NOTICED: f64 = 0.1;

/// A run and its settings, as it begins or goes on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunSettings {
    /// Steps made before.
    pub(crate) step: u64,
    /// Steps of the whole run.
    pub(crate) total_steps: u64,
    /// Model id.
    pub(crate) model: String,
    /// Trained values.
    pub(crate) parameters: usize,
    /// Flags with their values.
    pub(crate) settings: BTreeMap<String, String>,
    /// Training data.
    pub(crate) data: DataFile,
    /// Held-out data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval: Option<DataFile>,
    /// Classes, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<LabelMap>,
    /// Version of this program.
    pub(crate) version: &'static str,
}

/// A data file of a run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DataFile {
    /// Its name.
    pub(crate) file: String,
    /// Examples that are used.
    pub(crate) examples: usize,
}

/// A run begins.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunBegins<'a>(pub(crate) &'a RunSettings);

/// A run goes on behind what was saved, with these settings.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RunGoesOn<'a>(pub(crate) &'a RunSettings);

/// Who ran a step, from there on until it changes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RouteTaken {
    /// The first step that went this way.
    step: u64,
    /// In the order of the blocks.
    hops: Vec<HopTaken>,
}

/// A server's part in a step.
#[derive(Debug, Clone, Serialize)]
struct HopTaken {
    peer: String,
    /// Blocks, `A..B`.
    blocks: String,
    /// Of the micro-batches through these blocks, the part that went there, 0 to 1.
    share: f64,
}

/// A page about runs was written.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReportWritten {
    /// The page.
    pub(crate) out: PathBuf,
    /// Runs on it.
    pub(crate) runs: usize,
}

impl RouteTaken {
    /// The route of step `step`.
    pub(crate) fn new(step: u64, hops: &[HopPasses]) -> Self {
        let taken = |hop: &HopPasses| {
            let first = hop.span.start();
            let beside = hops.iter().filter(|other| other.span.start() <= first && first < other.span.end());
            let all: usize = beside.map(|hop| hop.passes).sum();
            let share = hop.passes as f64 / all.max(1) as f64;
            HopTaken { peer: hop.peer.to_string(), blocks: hop.span.to_string(), share }
        };
        Self { step, hops: hops.iter().map(taken).collect() }
    }

    /// Whether the other one is hardly another way.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let like = |(a, b): (&HopTaken, &HopTaken)| {
            (&a.peer, &a.blocks) == (&b.peer, &b.blocks) && (a.share - b.share).abs() < NOTICED
        };
        self.hops.len() == other.hops.len() && self.hops.iter().zip(&other.hops).all(like)
    }
}

impl Event for RunBegins<'_> {
    const NAME: &'static str = "run";
}

impl Event for RunGoesOn<'_> {
    const NAME: &'static str = "resumed";
}

impl Event for RouteTaken {
    const NAME: &'static str = "route";
}

impl Event for ReportWritten {
    const NAME: &'static str = "report";
}

impl Display for ReportWritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a page of {} runs is in {}", self.runs, self.out.display())
    }
}

impl Display for RunSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run of {} steps on {}", self.total_steps, self.model)
    }
}

impl Display for RunBegins<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Display for RunGoesOn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, behind step {}", self.0, self.0.step)
    }
}

impl Display for RouteTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} through", self.step)?;
        self.hops.iter().try_for_each(|hop| write!(f, " {} via {}", hop.blocks, super::short(&hop.peer)))
    }
}

#[cfg(test)]
mod tests {
    use petals_client::{PeerId, Span};

    use super::*;

    #[test]
    fn routes_have_shares_and_are_alike_whatever_the_number_of_micro_batches() {
        let peers = [PeerId::random(), PeerId::random(), PeerId::random()];
        let route = |passes: [usize; 3]| {
            let spans = [(0, 2), (0, 4), (2, 4)].map(|(start, end)| Span::new(start, end).unwrap());
            let hops = peers.iter().zip(spans).zip(passes).filter(|(_, passes)| *passes > 0);
            let hops: Vec<HopPasses> = hops.map(|((&peer, span), passes)| HopPasses { peer, span, passes }).collect();
            RouteTaken::new(7, &hops)
        };
        let shares = |route: &RouteTaken| route.hops.iter().map(|hop| hop.share).collect::<Vec<_>>();
        let first = route([3, 1, 3]);
        assert_eq!(shares(&first), [0.75, 0.25, 0.75]);
        assert!(first.is_like(&route([6, 2, 6])) && first.is_like(&route([20, 7, 20])));
        assert!(!first.is_like(&route([1, 1, 1])) && !first.is_like(&route([3, 0, 3])));
    }
}
