//! What others are told of a run: its settings for the file of its measurements, and what its model card says.

use std::path::Path;

use petals_client::{CardData, CardDetails, CardScore, TrainingRecord};
use serde_json::Value;

use super::material::Material;
use crate::args::{Select, TrainArgs};
use crate::data::Dataset;
use crate::output::{DataFile, RunSettings};

/// The figures of a measurement: their name in JSON, the hub's, and the one for people.
const SCORES: [(&str, &str, &str); 4] = [
    ("accuracy", "accuracy", "Accuracy"),
    ("macro_f1", "f1", "Macro-F1"),
    ("perplexity", "perplexity", "Perplexity"),
    ("loss", "loss", "Loss"),
];

/// A run's settings.
pub(super) fn settings(
    args: &TrainArgs,
    record: &TrainingRecord,
    material: &Material,
    parameters: usize,
) -> RunSettings {
    let data_file = |path: &Path, data: &Dataset| DataFile { file: name(path), examples: data.examples.len() };
    let mut settings = record.settings.clone();
    let digest = settings.remove("--data").unwrap_or_default();
    let mut add = |flag: &str, value: String| settings.insert(flag.to_owned(), value);
    add("--data", format!("{} ({digest})", name(&args.data)));
    add("--wire-dtype", args.swarm.wire_dtype.to_string());
    add("--relay", args.swarm.relay.to_string());
    add("--verify", args.swarm.route.verify.to_string());
    add("--select", if args.report.select == Select::Best { "best" } else { "last" }.to_owned());
    add("steps", record.total_steps.to_string());
    for (flag, path) in [("--eval", &args.eval), ("--init-from", &args.start.init_from)] {
        if let Some(path) = path {
            add(flag, name(path));
        }
    }
    RunSettings {
        step: record.step,
        total_steps: record.total_steps,
        model: record.model.to_string(),
        parameters,
        settings,
        data: data_file(&args.data, &material.data),
        eval: args.eval.as_deref().zip(material.eval.as_ref()).map(|(path, data)| data_file(path, data)),
        labels: record.labels.clone(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// What the model card says beside what the adapter knows; `measured` is the measurement of its tables, or one before.
pub(super) fn card(
    args: &TrainArgs,
    record: &TrainingRecord,
    material: &Material,
    measured: Option<&Value>,
) -> CardDetails {
    let data = |path: &Path, data: &Dataset| CardData { file: name(path), examples: data.examples.len() };
    let mut settings = record.settings.clone();
    settings.remove("--data");
    let score = |(field, metric, name): (&str, &'static str, &'static str)| {
        let value = measured?.get(field)?.as_f64()?;
        Some(CardScore { metric, name, value })
    };
    CardDetails {
        data: Some(data(&args.data, &material.data)),
        held_out: args.eval.as_deref().zip(material.eval.as_ref()).map(|(path, held_out)| data(path, held_out)),
        settings,
        scores: SCORES.into_iter().filter_map(score).collect(),
        measured_at: measured.and_then(|measured| measured.get("step")?.as_u64()).unwrap_or_default(),
    }
}

/// The name of a file, without the folders of this machine.
fn name(path: &Path) -> String {
    if path == Path::new("-") {
        return "standard input".to_owned();
    }
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
