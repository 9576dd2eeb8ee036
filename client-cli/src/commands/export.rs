//! `petals-tune export`.

use std::path::Path;

use anyhow::Error;
use petals_client::{Adapter, Injection, LogitsError, ModelFiles, RemoteModel, Task, WeightChange, merge};

use super::stop::StopSignal;
use super::{out, session};
use crate::args::{ExportArgs, ExportTo};
use crate::error::CliError;
use crate::output::{Exported, Merged, Output};

pub(crate) async fn run(args: ExportArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let adapter = session::adapter(&files, &args.adapter)?;
    if let Some(directory) = args.merge_lora {
        let model = args.swarm.model;
        out::check_writable("--merge-lora", &directory)?;
        if adapter.tables.score().is_some() {
            tracing::warn!(
                "a checkpoint of a language model has no place for a classifier's head: it stays in the adapter"
            );
        }
        let (projections, into) = (files.adapted.projections.clone(), directory.clone());
        // Not async: nothing else is going on, and Ctrl-C may end it at any time, as what is there until then is no model.
        let merged = tokio::task::spawn_blocking(move || merge(&adapter.tables, &projections, &model, &into)).await;
        let matrices = merged.map_err(Error::from)?.map_err(CliError::input)?;
        return output.emit(&Merged { out: directory, matrices });
    }
    let (Some(ExportTo::Prefix), Some(directory)) = (args.to, args.out.clone()) else {
        return Err(CliError::Usage("--to prefix --out DIR or --merge-lora DIR is needed".to_owned()));
    };
    check(&adapter, &args.adapter, &directory)?;
    out::check_writable("--out", &directory)?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let model = RemoteModel::new(sequence.clone(), files.local.clone());
    let stop = StopSignal::install()?;
    let exported = tokio::select! {
        exported = save(&model, &files, adapter, &directory) => exported,
        () = stop.received() => Err(anyhow::anyhow!("interrupted; nothing was written")),
    };
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    let rows = exported?;
    output.emit(&Exported { out: directory, rows })
}

/// Checks that there is something to turn into keys and values, and a place for it.
fn check(adapter: &Adapter, from: &Path, to: &Path) -> Result<(), CliError> {
    let shape = adapter.tables.shape();
    if shape.prefix_len == 0 || shape.injection == Injection::KeysValues {
        let mode = shape.mode();
        let message = format!("--to prefix is for prompts, and the adapter in {} is of {mode}", from.display());
        return Err(CliError::Usage(message));
    }
    let same = |path: &Path| path.canonicalize().ok();
    if same(to).is_some() && same(to) == same(from) {
        let message = "--out is the adapter's own directory: what it has would be lost, give another one".to_owned();
        return Err(CliError::Usage(message));
    }
    if shape.weights != WeightChange::None {
        tracing::warn!("PEFT has no kind for a prefix together with changed weights: the new adapter runs here alone");
    }
    if adapter.manifest.task == Task::SeqCls {
        tracing::warn!("PEFT runs no prefix of keys and values for classification: the new adapter runs here alone");
    }
    Ok(())
}

/// Asks for the keys and values and saves them; returns how many rows they have.
async fn save(model: &RemoteModel, files: &ModelFiles, adapter: Adapter, to: &Path) -> anyhow::Result<usize> {
    let Adapter { manifest, tables } = adapter;
    let prefix = model.as_prefix(&tables).await.map_err(|error: LogitsError| Error::from(error))?;
    let rows = prefix.shape().prefix_len;
    let exported = Adapter::new(&files.adapted, prefix, manifest.labels, manifest.text, manifest.step);
    exported.save(to, &files.adapted)?;
    Ok(rows)
}
