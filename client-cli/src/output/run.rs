//! What a run's file has beside its measurements: settings, and who ran the steps.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::PathBuf;

use petals_client::{HopPasses, LabelMap};
use serde::Serialize;

use super::Event;

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
    /// Micro-batches.
    passes: usize,
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
        let taken =
            |hop: &HopPasses| HopTaken { peer: hop.peer.to_string(), blocks: hop.span.to_string(), passes: hop.passes };
        Self { step, hops: hops.iter().map(taken).collect() }
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
