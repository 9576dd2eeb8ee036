//! From what `--model` was given to a model whose weights can be asked for.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use petals_hub::{Hub, HubError, Meter, ModelSource, Nearby, Settings, SourceError};
use petals_model::Checkpoint;
use petals_protocol::Span;

use super::events::NodeEvent;
use crate::args::HubArgs;
use crate::error::NodeError;

/// Finds and opens a model. What comes from the hub shows itself on stderr, or with `json` as events.
/// Large files are asked for `nearby` first.
pub(super) fn open(
    model: &Path,
    args: &HubArgs,
    nearby: Option<Arc<dyn Nearby>>,
    json: bool,
) -> Result<(ModelSource, Checkpoint), SourceError> {
    let most = args.max_disk;
    let hub = move || -> Result<Hub, HubError> {
        let (hub, meter) = (Hub::new(&Settings::from_environment()?)?.with_max_disk(most), Meter::new(None));
        let hub = nearby.into_iter().fold(hub, Hub::with_nearby);
        Ok(hub.with_progress(move |progress| match json {
            true => NodeEvent::Download(progress.clone()).emit(json),
            false => meter.show(progress),
        }))
    };
    let source = ModelSource::find(model, hub)?;
    let checkpoint = source.checkpoint()?;
    Ok((source, checkpoint))
}

/// The same on a thread that may wait. As long as the source lives nobody removes what was fetched of it to make room.
pub(super) async fn opened(
    model: &Path,
    args: &HubArgs,
    nearby: Option<Arc<dyn Nearby>>,
    json: bool,
) -> Result<(ModelSource, Checkpoint), NodeError> {
    let (model, args) = (model.to_owned(), args.clone());
    let opened = tokio::task::spawn_blocking(move || open(&model, &args, nearby, json));
    opened.await.context("opening the model was interrupted")?.map_err(refused)
}

/// A checkpoint with the files of its blocks.
pub(super) async fn supplied(checkpoint: Checkpoint, span: Span) -> Result<Checkpoint, NodeError> {
    let supply = move || checkpoint.supply(span).map(|()| checkpoint);
    let supplied = tokio::task::spawn_blocking(supply).await.context("fetching the model was interrupted")?;
    Ok(supplied.map_err(anyhow::Error::from)?)
}

/// What went wrong, for a person.
pub(super) fn refused(error: SourceError) -> NodeError {
    if error.is_input() { NodeError::input(error) } else { anyhow::Error::from(error).into() }
}
