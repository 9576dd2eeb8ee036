//! `petals-node doctor`: what works on this machine, and what to do about the rest.

mod answers;
mod machine;
mod model;
mod network;
mod redact;
mod report;
mod running;

use std::path::Path;

use anyhow::Context;
use petals_hub::{ModelSource, SourceError};
use petals_model::{Checkpoint, CheckpointError, Device, Place};

use super::devices::problem;
use super::events::{Check, DeviceProblem, NodeEvent, size};
use super::model as from_hub;
use super::network::model_name;
use crate::args::DoctorArgs;
use crate::error::NodeError;
use crate::log;
use crate::machine::memory::Free;
use answers::Answers;

pub(crate) async fn run(args: DoctorArgs) -> Result<(), NodeError> {
    let report = args.report.as_deref().map(report::Report::create).transpose()?;
    let mut answers = Answers::new(args.network.json);
    let outcome = checks(&args, &mut answers).await;
    let log = log::held();
    if let Some(report) = report {
        let file = report.write(&args, &answers, &outcome, &log)?;
        answers.event(NodeEvent::DoctorReport { file });
    }
    // Who asked for the log gets it where it does not stand between the answers.
    if log::is_wanted() {
        log.iter().for_each(|line| eprintln!("{line}"));
    }
    outcome?;
    match answers.failed() {
        0 => Ok(()),
        1 => Err(NodeError::from(anyhow::anyhow!("one check failed"))),
        failed => Err(NodeError::from(anyhow::anyhow!("{failed} checks failed"))),
    }
}

async fn checks(args: &DoctorArgs, answers: &mut Answers) -> Result<(), NodeError> {
    let devices = devices(&args.compute.device, answers);
    let (source, checkpoint) = match args.model.clone() {
        Some(model) => {
            let (hub, json) = (args.hub.clone(), answers.json());
            let opened = tokio::task::spawn_blocking(move || from_hub::open(&model, &hub, None, json)).await;
            checkpoint(opened.context("opening the model was interrupted")?, answers)
        }
        None => (None, None),
    };
    let places = args.compute.on(&devices, checkpoint.as_ref()).map_err(NodeError::input)?;
    memory(&places, checkpoint.as_ref(), answers);
    machine::limits().into_iter().for_each(|check| answers.check(check));
    let place = source.as_ref().map(ModelSource::path).or(args.model.as_deref()).unwrap_or(Path::new("."));
    let to_come =
        source.as_ref().zip(checkpoint.as_ref()).map_or(0, |(source, checkpoint)| missing(source, checkpoint).1);
    answers.check(machine::disk(machine::free_disk(place).await, to_come));
    let model = checkpoint
        .as_ref()
        .and_then(|checkpoint| checkpoint.model_id(model_name(&args.network, args.model_name.as_deref())).ok());
    network::checks(args, model.zip(checkpoint.as_ref().map(Checkpoint::blocks)), answers).await
}

/// What blocks would run on. Falls back to the processor, so that the other checks say something.
fn devices(wanted: &str, answers: &mut Answers) -> Vec<Device> {
    const NAME: &str = "device";
    let devices = match Device::list(wanted) {
        Ok(devices) => devices,
        Err(error) => {
            let DeviceProblem { cause, remedy } = problem(&error);
            let remedy = format!("{remedy}; `petals-node devices` lists what is there");
            answers.check(Check::fail(NAME, cause, remedy));
            return vec![Device::cpu()];
        }
    };
    for device in &devices {
        let hardware = device.hardware().map_or_else(String::new, |name| format!(" ({name})"));
        answers.check(Check::ok(NAME, format!("{device}{hardware}")));
    }
    for (present, kind) in [("/proc/driver/nvidia", "cuda"), ("/dev/dri", "vulkan")] {
        if wanted == "auto"
            && devices == [Device::cpu()]
            && Path::new(present).exists()
            && let Err(error) = kind.parse::<Device>()
        {
            let DeviceProblem { cause, remedy } = problem(&error);
            answers.check(Check::warn("gpu", format!("there may be one that is not used: {cause}"), remedy));
        }
    }
    devices
}

/// What is found of the model, and where.
fn checkpoint(
    opened: Result<(ModelSource, Checkpoint), SourceError>,
    answers: &mut Answers,
) -> (Option<ModelSource>, Option<Checkpoint>) {
    const NAME: &str = "model";
    let checked = opened.and_then(|(source, checkpoint)| {
        checkpoint.check_span(checkpoint.blocks())?;
        Ok((source, checkpoint))
    });
    match checked {
        Ok((source, checkpoint)) => {
            let place = source.path().display();
            answers.check(Check::ok(
                NAME,
                format!("{} blocks in {place}{}", checkpoint.blocks().len(), to_come(&source, &checkpoint)),
            ));
            (Some(source), Some(checkpoint))
        }
        Err(SourceError::Checkpoint(error)) => {
            answers.check(refused(NAME, error));
            (None, None)
        }
        Err(error) => {
            // The hub's errors end with what to do.
            let error = error.to_string();
            let (detail, remedy) = error.rsplit_once(": ").unwrap_or((&error, "see --model"));
            answers.check(Check::fail(NAME, detail, remedy));
            (None, None)
        }
    }
}

/// What of a model from the hub is not in the cache, and would be fetched by whoever served all of it.
fn to_come(source: &ModelSource, checkpoint: &Checkpoint) -> String {
    match missing(source, checkpoint) {
        (0, _) => String::new(),
        (count, bytes) => {
            let files = checkpoint.all_files().len();
            format!("; {count} of its {files} files of weights are not here, {}", size(bytes))
        }
    }
}

/// How many files of weights are not here yet, and their bytes.
fn missing(source: &ModelSource, checkpoint: &Checkpoint) -> (usize, u64) {
    let Some(snapshot) = source.snapshot() else { return (0, 0) };
    let files = checkpoint.all_files();
    let missing: Vec<_> = files.iter().filter(|file| !source.path().join(file).is_file()).collect();
    (missing.len(), missing.iter().filter_map(|file| snapshot.size(file)).fold(0, u64::saturating_add))
}

/// The whole chain of causes, as `serve` says it, with what to do in its place.
fn refused(name: &'static str, error: CheckpointError) -> Check {
    let remedy = error.remedy().to_owned();
    let mut detail = NodeError::input(error).to_string();
    // Most errors end with their remedy, since elsewhere nobody asks for it.
    if let Some(cause) = detail.strip_suffix(&remedy) {
        detail = cause.trim_end_matches([':', ';', ' ']).to_owned();
    }
    Check::fail(name, detail, remedy)
}

/// What the model needs, and what of it fits into this machine's memory.
fn memory(places: &[Place], checkpoint: Option<&Checkpoint>, answers: &mut Answers) {
    let free = Free::on(places.iter().map(|place| &place.device));
    let (Some(checkpoint), Some(kv_dtype)) = (checkpoint, model::kv_dtype(places)) else {
        let room = size(free.for_weights());
        return answers.check(Check::ok("memory", format!("{room} for weights")));
    };
    let needs = model::needs(checkpoint.config(), model::fit(checkpoint, places, &free), kv_dtype);
    let check = model::memory(&needs);
    answers.event(NodeEvent::ModelNeeds(needs));
    answers.check(check);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_told_with_its_remedy() {
        let text = Check::fail("port", "nobody gets through", "open it").to_string();
        assert!(text.starts_with("FAIL  port") && text.ends_with("-> open it"), "{text}");
    }
}
