//! What every command does before it begins: models that were given by their names on the hub become directories.

use std::path::PathBuf;

use anyhow::Context;
use petals_client::Span;
use petals_hub::{Hub, HubError, Meter, ModelSource, Settings, SourceError};

use crate::args::Command;
use crate::error::CliError;
use crate::output::Output;
use crate::terminal;

/// The models of a command. While they live nobody removes their files to make room for others.
#[derive(Debug)]
pub(crate) struct Models(#[allow(dead_code, reason = "held, not read")] Vec<ModelSource>);

/// Puts the directories of models in the place of their names. What is needed of them is fetched, and shows itself.
pub(crate) async fn find(command: &mut Command, output: Output) -> Result<Models, CliError> {
    let all = command.needs_all_weights();
    let of_client = |local| if all { Weights::All } else { Weights::OfClient(local) };
    let mut models = Vec::new();
    let Some(swarm) = command.swarm() else { return Ok(Models(models)) };
    let most = swarm.max_disk;
    let source = found(swarm.model.clone(), of_client(swarm.route.local_blocks), most, output).await?;
    swarm.model = source.path().to_owned();
    models.push(source);
    if let Some(draft) = command.draft_model() {
        let source = found(draft.clone(), Weights::All, most, output).await?;
        *draft = source.path().to_owned();
        models.push(source);
    }
    Ok(Models(models))
}

/// Which weights of a model are needed here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights {
    /// All.
    All,
    /// Embeddings, norm and head, and those of blocks that run on this machine.
    OfClient(Option<Span>),
}

pub(super) async fn found(
    model: PathBuf,
    weights: Weights,
    most: Option<u64>,
    output: Output,
) -> Result<ModelSource, CliError> {
    let find = move || -> Result<ModelSource, SourceError> {
        let source = ModelSource::find(&model, || hub(most, output))?;
        match weights {
            Weights::All => source.fetch_all()?,
            Weights::OfClient(None) => source.fetch_client()?,
            Weights::OfClient(Some(blocks)) => source.fetch_client_and(blocks)?,
        }
        Ok(source)
    };
    let found = tokio::task::spawn_blocking(find).await.context("fetching the model was interrupted")?;
    found.map_err(|error| if error.is_input() { CliError::input(error) } else { anyhow::Error::new(error).into() })
}

/// The hub, whose progress shows on stderr, or with `--json` as events.
fn hub(most: Option<u64>, output: Output) -> Result<Hub, HubError> {
    let meter = Meter::new(Some(terminal::bars().clone()));
    let hub = Hub::new(&Settings::from_environment()?)?.with_max_disk(most);
    Ok(hub.with_progress(move |progress| match output.is_json() {
        // A closed stdout is told by the command itself.
        true => drop(output.emit(progress)),
        false => meter.show(progress),
    }))
}
