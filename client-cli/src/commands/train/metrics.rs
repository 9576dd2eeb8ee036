//! What a run measured, beside its adapter: one JSON object a line, the events `step` and `eval` as `--json` prints them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::best::Best;
use crate::error::CliError;
use crate::output::{Eval, Event, Output};

/// Name of the file in a run's directory.
const FILE: &str = "metrics.jsonl";

/// The open file.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file of the run in `out`, which has made `step` steps. What it has of later steps was not saved, and is left out. Also
    /// returns which of its measurements on held-out data was the best.
    pub(super) fn open(out: &Path, step: u64) -> Result<(Self, Best), CliError> {
        let path = out.join(FILE);
        let failed = |error: io::Error| anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
        fs::create_dir_all(out).map_err(failed)?;
        let (mut kept, mut best) = (String::new(), Best::default());
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
                    best.see(made, loss);
                }
            }
        }
        // Whoever is killed here has the old file or the new one.
        let fresh = path.with_extension("jsonl.new");
        fs::write(&fresh, kept).and_then(|()| fs::rename(&fresh, &path)).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        Ok((Self { path, file }, best))
    }

    /// Adds an event.
    pub(super) fn add<E: Event>(&mut self, event: &E) -> Result<(), CliError> {
        let line = Output::new(true).line(event).map_err(anyhow::Error::from)?;
        let written = writeln!(self.file, "{line}");
        Ok(written.with_context(|| format!("cannot write {}", self.path.display()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(step: u64, loss: f64) -> Eval {
        Eval { step, loss, accuracy: None }
    }

    #[test]
    fn a_resumed_run_goes_on_behind_what_was_saved() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("run");
        let read = || fs::read_to_string(out.join(FILE)).unwrap();
        let (mut first, best) = Metrics::open(&out, 0).unwrap();
        assert_eq!(best, Best::default());
        for (step, loss) in [(2, 0.5), (4, 0.25), (6, 0.75), (8, 0.125)] {
            first.add(&eval(step, loss)).unwrap();
        }
        fs::write(out.join(FILE), read() + "{\"event\":\"step\",\"st").unwrap();
        let (mut second, best) = Metrics::open(&out, 6).unwrap();
        assert_eq!((best.step(), best.in_vain()), (Some(4), 1));
        second.add(&eval(8, 1.0)).unwrap();
        let lines: Vec<Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps: Vec<_> = lines.iter().map(|line| (line["step"].as_u64(), line["loss"].as_f64())).collect();
        assert_eq!(steps, [(Some(2), Some(0.5)), (Some(4), Some(0.25)), (Some(6), Some(0.75)), (Some(8), Some(1.0))]);
        drop(Metrics::open(&out, 0).unwrap());
        assert_eq!(read(), "", "a new run begins anew");
    }
}
