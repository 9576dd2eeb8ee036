//! Everything that a run writes down as it goes: the file of its measurements, TensorBoard's events, and what the model card says of them.

use petals_client::{StepReport, TrainingRecord};

use super::best::Best;
use super::board::Board;
use super::material::Material;
use super::metrics::Metrics;
use super::notes;
use crate::args::TrainArgs;
use crate::commands::session::SwarmLog;
use crate::error::CliError;
use crate::output::{Eval, RouteTaken, RunBegins, RunGoesOn, Samples, Step};

/// What a run writes down.
#[derive(Debug)]
pub(super) struct Journal {
    metrics: Metrics,
    board: Option<Board>,
    swarm: SwarmLog,
    /// Who ran the last steps.
    route: Option<RouteTaken>,
}

impl Journal {
    /// Opens what the run in `--out` writes, and writes its settings. Also returns which of its measurements was the best so far. What
    /// happens among the servers is in `swarm`.
    pub(super) fn open(
        args: &TrainArgs,
        record: &TrainingRecord,
        material: &Material,
        parameters: usize,
        swarm: SwarmLog,
    ) -> Result<(Self, Best), CliError> {
        let step = record.step;
        let (mut metrics, best) = Metrics::open(&args.out, step)?;
        let settings = notes::settings(args, record, material, parameters);
        if step > 0 {
            metrics.add(&RunGoesOn(&settings))?;
        } else {
            metrics.add(&RunBegins(&settings))?;
        }
        let board = args.report.tensorboard.then(|| Board::open(&args.out, step)).transpose()?;
        Ok((Self { metrics, board, swarm, route: None }, best))
    }

    /// Writes down a step and how it was made.
    pub(super) fn step(&mut self, step: &Step, report: &StepReport) -> Result<(), CliError> {
        self.happened(step.step)?;
        let route = RouteTaken::new(step.step, &report.hops);
        if !self.route.as_ref().is_some_and(|before| before.is_like(&route)) {
            self.metrics.add(&route)?;
            self.route = Some(route);
        }
        self.metrics.add(step)?;
        let Some(board) = &mut self.board else { return Ok(()) };
        let scalars = [
            ("train/loss", step.loss),
            ("train/lr", step.lr),
            ("train/grad_norm", step.grad_norm),
            ("train/tokens_per_s", step.tokens_per_s),
            ("traffic/bytes_sent", step.traffic.sent as f64),
            ("traffic/bytes_received", step.traffic.received as f64),
        ];
        board.add(step.step, &scalars)
    }

    /// Writes down a measurement on held-out data, the best one so far or not.
    pub(super) fn measured(&mut self, eval: &Eval, is_best: bool) -> Result<(), CliError> {
        self.happened(eval.step)?;
        self.metrics.add_eval(eval, is_best)?;
        let Some(board) = &mut self.board else { return Ok(()) };
        let scalars = [
            ("eval/loss", Some(eval.loss)),
            ("eval/perplexity", eval.perplexity),
            ("eval/accuracy", eval.accuracy),
            ("eval/macro_f1", eval.macro_f1),
        ];
        let given: Vec<(&str, f64)> = scalars.into_iter().filter_map(|(tag, value)| Some((tag, value?))).collect();
        board.add(eval.step, &given)
    }

    /// Writes down how held-out texts go on.
    pub(super) fn samples(&mut self, samples: &Samples) -> Result<(), CliError> {
        self.metrics.add(samples)
    }

    /// The file with what was measured.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes down what happened among the servers since the last time, as a part of step `step`.
    pub(super) fn happened(&mut self, step: u64) -> Result<(), CliError> {
        self.swarm.take().into_iter().try_for_each(|event| self.metrics.note(step, event))
    }
}
