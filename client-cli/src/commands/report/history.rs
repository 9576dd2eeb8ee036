//! What a run wrote down, read again: every kind of line that `metrics.jsonl` has, those of earlier versions included.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::lanes::{Lane, Lanes};
use super::thinned::thinned;
use crate::commands::train::metrics;
use crate::error::CliError;

/// Largest file that is read.
const MOST_BYTES: u64 = 1 << 30;
/// Most steps of a run; a larger number is none.
const MOST_STEPS: u64 = 1 << 50;
/// Most points of a series of events.
const POINTS: usize = 1500;
/// Events among the servers that are listed; all of them are counted.
const LISTED: usize = 200;
/// What goes wrong among servers, by the names of its events.
const FAILURES: [&str; 6] = ["hop_failed", "relay_failed", "outpaced", "untrue_result", "disagreement", "waiting"];
/// What a step has, by the names of its fields.
pub(super) const FIGURES: [&str; 6] = ["loss", "lr", "tokens_per_s", "grad_norm", "sent", "received"];

/// A run's history.
#[derive(Debug, Default, Serialize)]
pub(super) struct History {
    /// The run's settings, and what else it wrote when it began; null for runs that did not yet.
    began: Value,
    /// Steps behind which it was gone on with.
    resumed: Vec<u64>,
    /// Steps made.
    last_step: u64,
    /// Steps that a point of the charts is the mean of.
    thinned: usize,
    /// Points by figure, each its step and its value.
    figures: BTreeMap<&'static str, Vec<(f64, f64)>>,
    /// Bytes sent and received in all.
    bytes: (f64, f64),
    /// Measurements on held-out data, without their confusions.
    evals: Vec<Map<String, Value>>,
    /// The last confusion.
    confusion: Value,
    /// The last continuations.
    samples: Value,
    /// By kind, the steps of all events among the servers with how many there were up to there.
    failures: BTreeMap<String, Vec<(u64, u64)>>,
    /// The last of these events.
    failed: Vec<Value>,
    /// Who ran the steps.
    lanes: Vec<Lane>,
    /// Servers for which there is no room.
    more_lanes: usize,
    /// First and last second in which it wrote, as far as it says.
    time: Option<(f64, f64)>,
    /// Lines that were nothing known.
    unknown: usize,
}

/// While it is being read.
#[derive(Default)]
struct Reader {
    history: History,
    steps: Vec<[f64; 1 + FIGURES.len()]>,
    routes: Vec<Value>,
}

impl History {
    /// Reads the history of the run in `directory`.
    ///
    /// # Errors
    /// [`CliError::Usage`], if there is none.
    pub(super) fn read(directory: &Path) -> Result<Self, CliError> {
        let path = directory.join(metrics::FILE);
        let refused = |why: String| CliError::Usage(format!("{}: {why}", directory.display()));
        if !directory.exists() {
            return Err(refused("there is no such directory".to_owned()));
        }
        if !directory.is_dir() {
            return Err(refused(
                "is a file; `report` takes the directory of a run, which `train` had as --out".to_owned(),
            ));
        }
        if !path.is_file() {
            let why = format!("has no {}: is it a directory that `train` had as --out?", metrics::FILE);
            return Err(refused(why));
        }
        let cannot = |error: std::io::Error| refused(format!("{} cannot be read: {error}", metrics::FILE));
        let file = File::open(&path).map_err(cannot)?;
        if file.metadata().map_err(cannot)?.len() > MOST_BYTES {
            return Err(refused(format!("{} has more than 1 GiB, which is more than a page can show", metrics::FILE)));
        }
        let mut reader = Reader::default();
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(cannot)?;
            if !line.trim_ascii().is_empty() {
                reader.line(&line);
            }
        }
        if reader.steps.is_empty() && reader.history.evals.is_empty() {
            return Err(refused(format!("{} has no step yet: there is nothing to show", metrics::FILE)));
        }
        Ok(reader.finish())
    }
}

impl Reader {
    /// A line, or a part of one, or anything else.
    fn line(&mut self, line: &[u8]) {
        let known = match serde_json::from_slice(line) {
            Ok(Value::Object(fields)) => self.event(fields),
            _ => None,
        };
        self.history.unknown += usize::from(known.is_none());
    }

    fn event(&mut self, mut fields: Map<String, Value>) -> Option<()> {
        let event = fields.get("event")?.as_str()?.to_owned();
        let step = fields.get("step")?.as_u64().filter(|step| *step <= MOST_STEPS)?;
        if let Some(time) = fields.get("time").and_then(Value::as_f64) {
            let (first, last) = self.history.time.unwrap_or((time, time));
            self.history.time = Some((first.min(time), last.max(time)));
        }
        let history = &mut self.history;
        match event.as_str() {
            "step" => {
                let mut point = [step as f64; 1 + FIGURES.len()];
                for (value, name) in point.iter_mut().skip(1).zip(FIGURES) {
                    *value = fields.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
                }
                history.last_step = history.last_step.max(step);
                self.steps.push(point);
            }
            "eval" => {
                history.confusion = fields.remove("confusion").unwrap_or_default();
                history.last_step = history.last_step.max(step);
                history.evals.push(fields);
            }
            "samples" => history.samples = Value::Object(fields),
            "run" => history.began = Value::Object(fields),
            "resumed" => {
                history.resumed.push(step);
                // The last word on what may change, and all there is of runs that began without writing it down.
                history.began = Value::Object(fields);
            }
            "route" => self.routes.push(Value::Object(fields)),
            kind if FAILURES.contains(&kind) => {
                let of_kind = history.failures.entry(kind.to_owned()).or_default();
                match of_kind.last_mut() {
                    Some((last, count)) if *last == step => *count += 1,
                    last => {
                        let count = last.map_or(0, |(_, count)| *count) + 1;
                        of_kind.push((step, count));
                    }
                }
                history.failed.push(Value::Object(fields));
                if history.failed.len() > 2 * LISTED {
                    history.failed.drain(..LISTED);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn finish(self) -> History {
        let Self { mut history, steps, routes } = self;
        history.failed.drain(..history.failed.len().saturating_sub(LISTED));
        let total = |column: usize| steps.iter().map(|step| step[column]).filter(|value| value.is_finite()).sum();
        history.bytes = (total(5), total(6));
        spaced(&mut history.evals);
        history.failures.values_mut().for_each(spaced);
        let (points, every) = thinned(&steps);
        history.thinned = every;
        for (at, name) in FIGURES.into_iter().enumerate() {
            let series = points.iter().map(|point| (point[0], point[at + 1]));
            history.figures.insert(name, series.filter(|(_, value)| value.is_finite()).collect());
        }
        let first = steps.first().map_or(0, |step| step[0] as u64);
        let lanes = Lanes::new(first, history.last_step);
        (history.lanes, history.more_lanes) = lanes.of(&routes, history.last_step);
        history
    }
}

/// Leaves as many of a series as a chart can show, the last one among them.
fn spaced<T>(series: &mut Vec<T>) {
    let (count, every) = (series.len(), series.len().div_ceil(POINTS).max(1));
    let mut at = 0;
    series.retain(|_| {
        at += 1;
        at == count || at.is_multiple_of(every)
    });
}
