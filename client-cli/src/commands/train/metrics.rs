//! What a run measured, beside its adapter: one JSON object a line, events as `--json` prints them, with the step that they belong to and
//! the time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use petals_client::write_atomically;
use serde::Serialize;
use serde_json::Value;

use super::best::Best;
use crate::error::CliError;
use crate::output::{Eval, Event, Output};

/// Name of the file in a run's directory.
pub(crate) const FILE: &str = "metrics.jsonl";

/// The open file.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
    /// The last measurement on held-out data.
    pub(super) last: Option<Value>,
    /// The best one.
    pub(super) best: Option<Value>,
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a, E> {
    event: &'a str,
    #[serde(flatten)]
    body: &'a E,
    /// Seconds since 1970.
    time: f64,
}

impl Metrics {
    /// Opens the file of the run in `out`, which has made `step` steps. What it has of later steps was not saved, and is left out. Also
    /// returns which of its measurements on held-out data was the best.
    pub(super) fn open(out: &Path, step: u64) -> Result<(Self, Best), CliError> {
        let path = out.join(FILE);
        let failed = |error: io::Error| anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
        fs::create_dir_all(out).map_err(failed)?;
        let (mut kept, mut best) = (String::new(), Best::default());
        let (mut last_measured, mut best_measured) = (None, None);
        if step > 0 {
            let text = match fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                text => text.map_err(failed)?,
            };
            // A line that was not written to its end, or that somebody else wrote, is nobody's.
            for (line, value) in text.lines().filter_map(|line| Some((line, serde_json::from_str::<Value>(line).ok()?)))
            {
                let Some(made) = value["step"].as_u64().filter(|made| *made <= step) else { continue };
                kept += line;
                kept.push('\n');
                if let Some(loss) = value["loss"].as_f64().filter(|_| value["event"] == Eval::NAME) {
                    if best.see(made, loss) {
                        best_measured = Some(value.clone());
                    }
                    last_measured = Some(value);
                }
            }
        }
        // Whoever is killed here has the old file or the new one.
        write_atomically(&path, kept.as_bytes()).map_err(anyhow::Error::from)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        Ok((Self { path, file, last: last_measured, best: best_measured }, best))
    }

    /// Adds an event.
    pub(super) fn add<E: Event>(&mut self, event: &E) -> Result<(), CliError> {
        self.write(E::NAME, event)
    }

    /// Adds a measurement on held-out data, the best one so far or not.
    pub(super) fn add_eval(&mut self, eval: &Eval, is_best: bool) -> Result<(), CliError> {
        let value = Output::tagged(eval).map_err(anyhow::Error::from)?;
        if is_best {
            self.best = Some(value.clone());
        }
        self.last = Some(value);
        self.add(eval)
    }

    /// Adds what happened among the servers while step `step` was made.
    pub(super) fn note(&mut self, step: u64, happened: Value) -> Result<(), CliError> {
        let Value::Object(mut fields) = happened else { return Ok(()) };
        let Some(Value::String(event)) = fields.remove("event") else { return Ok(()) };
        fields.insert("step".to_owned(), step.into());
        self.write(&event, &fields)
    }

    fn write<E: Serialize>(&mut self, event: &str, body: &E) -> Result<(), CliError> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let line = serde_json::to_string(&Line { event, body, time }).map_err(anyhow::Error::from)?;
        // One write, so that a line is there or not, or at worst the last one is cut.
        let written = self.file.write_all((line + "\n").as_bytes());
        Ok(written.with_context(|| format!("cannot write {}", self.path.display()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(step: u64, loss: f64) -> Eval {
        Eval { step, loss, perplexity: None, accuracy: None, macro_f1: None, confusion: None }
    }

    #[test]
    fn a_resumed_run_goes_on_behind_what_was_saved() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("run");
        let read = || fs::read_to_string(out.join(FILE)).unwrap();
        let (mut first, best) = Metrics::open(&out, 0).unwrap();
        assert_eq!(best, Best::default());
        for (step, loss) in [(2, 0.5), (4, 0.25), (6, 0.75), (8, 0.125)] {
            first.add_eval(&eval(step, loss), false).unwrap();
        }
        fs::write(out.join(FILE), read() + "{\"event\":\"step\",\"st").unwrap();
        let (mut second, best) = Metrics::open(&out, 6).unwrap();
        assert_eq!((best.step(), best.in_vain()), (Some(4), 1));
        let step = |measured: &Option<Value>| measured.as_ref().and_then(|measured| measured["step"].as_u64());
        assert_eq!((step(&second.best), step(&second.last)), (Some(4), Some(6)));
        second.add(&eval(8, 1.0)).unwrap();
        let lines: Vec<Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<_> = lines.iter().map(|line| (line["step"].as_u64(), line["loss"].as_f64())).collect();
        assert_eq!(steps, [(Some(2), Some(0.5)), (Some(4), Some(0.25)), (Some(6), Some(0.75)), (Some(8), Some(1.0))]);
        drop(Metrics::open(&out, 0).unwrap());
        assert_eq!(read(), "", "a new run begins anew");
    }

    #[test]
    fn what_happened_among_the_servers_has_the_step_and_the_time_and_is_forgotten_with_it() {
        let root = tempfile::tempdir().unwrap();
        let (mut metrics, _) = Metrics::open(root.path(), 0).unwrap();
        let failed = serde_json::json!({"event": "hop_failed", "peer": "p", "blocks": "0..4", "reason": "lost"});
        for step in [3, 5] {
            metrics.note(step, failed.clone()).unwrap();
        }
        let lines = || -> Vec<Value> {
            let text = fs::read_to_string(root.path().join(FILE)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let first = lines().first().cloned().unwrap();
        assert_eq!((&first["event"], &first["step"], &first["peer"]), (&"hop_failed".into(), &3.into(), &"p".into()));
        assert!(first["time"].as_f64() > Some(1e9), "{first}");
        drop(Metrics::open(root.path(), 4).unwrap());
        assert_eq!(lines(), [first]);
    }
}
