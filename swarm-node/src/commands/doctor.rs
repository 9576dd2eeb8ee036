//! `petals-node doctor`: what works on this machine, and what to do about the rest.

mod model;
mod network;
mod running;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use petals_hub::{ModelSource, SourceError};
use petals_model::{Checkpoint, CheckpointError, Device, Dtype, KvDtype};

use super::events::{Check, CheckStatus, NodeEvent, size};
use super::model as from_hub;
use super::network::model_name;
use crate::args::DoctorArgs;
use crate::error::NodeError;
use crate::machine::memory::Free;

/// Open files that a busy server needs: connections, and the shards of a checkpoint.
const WANTED_FILES: u64 = 4096;
/// Fewer than these do not last for a handful of clients.
const LEAST_FILES: u64 = 256;
/// Free space that a download in parts, logs and keys need.
const WANTED_DISK: u64 = 1 << 30;

pub(crate) async fn run(args: DoctorArgs) -> Result<(), NodeError> {
    let json = args.network.json;
    let mut failed = 0;
    let mut tell = |check: Check| {
        failed += usize::from(check.status == CheckStatus::Fail);
        NodeEvent::Check(check).emit(json);
    };
    let device = device(&args.compute.device, &mut tell);
    let (source, checkpoint) = match args.model.clone() {
        Some(model) => {
            let hub = args.hub.clone();
            let opened = tokio::task::spawn_blocking(move || from_hub::open(&model, &hub, None, json)).await;
            checkpoint(opened.context("opening the model was interrupted")?, &mut tell)
        }
        None => (None, None),
    };
    let (dtype, kv_dtype) = args.compute.on(&device, checkpoint.as_ref()).map_err(NodeError::input)?;
    memory((&device, dtype, kv_dtype), checkpoint.as_ref(), json, &mut tell);
    tell(open_files(std::fs::read_to_string("/proc/self/limits").ok().as_deref()));
    if let Some(path) = source.as_ref().map(ModelSource::path).or(args.model.as_deref()) {
        tell(disk(free_disk(path).await));
    }
    let model = checkpoint
        .as_ref()
        .and_then(|checkpoint| checkpoint.model_id(model_name(&args.network, args.model_name.as_deref())).ok());
    for check in network::checks(&args, model.zip(checkpoint.as_ref().map(Checkpoint::blocks))).await? {
        tell(check);
    }
    match failed {
        0 => Ok(()),
        1 => Err(NodeError::from(anyhow::anyhow!("one check failed"))),
        failed => Err(NodeError::from(anyhow::anyhow!("{failed} checks failed"))),
    }
}

/// What blocks would run on. Falls back to the processor, so that the other checks say something.
fn device(wanted: &str, tell: &mut impl FnMut(Check)) -> Device {
    const NAME: &str = "device";
    const REMEDY: &str = "install NVIDIA's driver and the CUDA run-time compiler (libnvrtc), or a Vulkan driver (Debian: \
                          mesa-vulkan-drivers), use a build with `--features petals-node/cuda` or `petals-node/vulkan`, or serve \
                          with --device cpu";
    match wanted.parse::<Device>() {
        Ok(device) => {
            let hardware = device.hardware().map_or_else(String::new, |name| format!(" ({name})"));
            tell(Check::ok(NAME, format!("{device}{hardware}")));
            for (present, kind) in [("/proc/driver/nvidia", "cuda"), ("/dev/dri", "vulkan")] {
                if wanted == "auto"
                    && device == Device::cpu()
                    && Path::new(present).exists()
                    && let Err(error) = kind.parse::<Device>()
                {
                    tell(Check::warn("gpu", format!("there may be one that is not used: {error}"), REMEDY));
                }
            }
            device
        }
        Err(error) => {
            tell(Check::fail(NAME, error.to_string(), REMEDY));
            Device::cpu()
        }
    }
}

/// What is found of the model, and where.
fn checkpoint(
    opened: Result<(ModelSource, Checkpoint), SourceError>,
    tell: &mut impl FnMut(Check),
) -> (Option<ModelSource>, Option<Checkpoint>) {
    const NAME: &str = "model";
    let checked = opened.and_then(|(source, checkpoint)| {
        checkpoint.check_span(checkpoint.blocks())?;
        Ok((source, checkpoint))
    });
    match checked {
        Ok((source, checkpoint)) => {
            let place = source.path().display();
            tell(Check::ok(
                NAME,
                format!("{} blocks in {place}{}", checkpoint.blocks().len(), to_come(&source, &checkpoint)),
            ));
            (Some(source), Some(checkpoint))
        }
        Err(SourceError::Checkpoint(error)) => {
            tell(refused(NAME, error));
            (None, None)
        }
        Err(error) => {
            // The hub's errors end with what to do.
            let error = error.to_string();
            let (detail, remedy) = error.rsplit_once(": ").unwrap_or((&error, "see --model"));
            tell(Check::fail(NAME, detail, remedy));
            (None, None)
        }
    }
}

/// What of a model from the hub is not in the cache, and would be fetched by whoever served all of it.
fn to_come(source: &ModelSource, checkpoint: &Checkpoint) -> String {
    let Some(snapshot) = source.snapshot() else { return String::new() };
    let files = checkpoint.all_files();
    let missing: Vec<_> = files.iter().filter(|file| !source.path().join(file).is_file()).collect();
    let bytes = missing.iter().filter_map(|file| snapshot.size(file)).fold(0, u64::saturating_add);
    match missing.len() {
        0 => String::new(),
        count => format!("; {count} of its {} files of weights are not here, {}", files.len(), size(bytes)),
    }
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
fn memory(
    (device, dtype, kv_dtype): (&Device, Dtype, KvDtype),
    checkpoint: Option<&Checkpoint>,
    json: bool,
    tell: &mut impl FnMut(Check),
) {
    let Some(checkpoint) = checkpoint else {
        return tell(Check::ok("memory", format!("{} for weights", size(Free::on(device).for_weights()))));
    };
    let needs = model::needs(checkpoint.config(), model::fit(checkpoint, device, dtype, kv_dtype), kv_dtype);
    let check = model::memory(&needs);
    NodeEvent::ModelNeeds(needs).emit(json);
    tell(check);
}

fn open_files(limits: Option<&str>) -> Check {
    const NAME: &str = "open files";
    const REMEDY: &str =
        "raise the limit before starting the node, for example `ulimit -n 65536` or LimitNOFILE= of systemd";
    let line = limits.and_then(|text| text.lines().find_map(|line| line.strip_prefix("Max open files")));
    let Some(limit) = line.and_then(|line| line.split_whitespace().next()) else {
        return Check::warn(NAME, "the limit cannot be read here", format!("a server wants {WANTED_FILES}"));
    };
    match limit.parse::<u64>() {
        Ok(limit) if limit < LEAST_FILES => Check::fail(NAME, format!("at most {limit}"), REMEDY),
        Ok(limit) if limit < WANTED_FILES => Check::warn(NAME, format!("at most {limit}"), REMEDY),
        _ => Check::ok(NAME, format!("at most {limit}")),
    }
}

/// What `df` says is free where the model lies, in bytes.
async fn free_disk(path: &Path) -> Option<u64> {
    let df = tokio::process::Command::new("df").arg("-Pk").arg(path).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(5), df).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kib: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn disk(free: Option<u64>) -> Check {
    const NAME: &str = "disk";
    match free {
        None => Check::warn(NAME, "what is free cannot be told here", "see that a few GiB are"),
        Some(free) if free < WANTED_DISK => {
            Check::warn(NAME, format!("{} MiB free", free >> 20), "free some space: logs and measurements are written")
        }
        Some(free) => Check::ok(NAME, format!("{} GiB free", free >> 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_open_files_are_read_and_judged() {
        let status = |soft: &str| open_files(Some(&format!("Max open files            {soft}  999999  files"))).status;
        assert_eq!(status("100"), CheckStatus::Fail);
        assert_eq!(status("1024"), CheckStatus::Warn);
        assert_eq!(status("65536"), CheckStatus::Ok);
        assert_eq!(status("unlimited"), CheckStatus::Ok);
        assert_eq!(open_files(None).status, CheckStatus::Warn);
    }

    #[test]
    fn a_check_is_told_with_its_remedy() {
        let text = Check::fail("port", "nobody gets through", "open it").to_string();
        assert!(text.starts_with("FAIL  port") && text.ends_with("-> open it"), "{text}");
        assert_eq!(disk(Some(1)).status, CheckStatus::Warn);
    }
}
