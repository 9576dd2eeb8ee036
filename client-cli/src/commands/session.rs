//! What every command does first: open the model, join the swarm, show what goes wrong there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use petals_client::{
    Adapter, JoinError, KnownWeights, LocalBlocks, ModelFiles, RemoteSequence, SequenceConfig, SwarmEvent, SwarmHandle,
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::waits::Waits;
use crate::args::{NetworkArgs, SwarmArgs};
use crate::error::CliError;
use crate::output::{
    Disagreement, Event, HopFailed, OtherWeights, Outpaced, Output, RelayFailed, UntrueResult, Verified, Waiting,
};

/// Events that may wait to be printed; later ones are dropped.
const EVENTS: usize = 256;
/// Events that a [`SwarmLog`] keeps; later ones are dropped until somebody takes them.
const KEPT: usize = 1024;

/// What happened among the servers, for whoever writes it down.
#[derive(Debug, Clone, Default)]
pub(super) struct SwarmLog(Arc<Mutex<Vec<Value>>>);

impl SwarmLog {
    /// What happened since the last time, as scripts read it.
    pub(super) fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note<E: Event>(&self, event: &E) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < KEPT {
            events.extend(Output::tagged(event));
        }
    }
}

/// Opens the client's part of the model.
pub(super) fn open(args: &SwarmArgs) -> Result<ModelFiles, CliError> {
    let invited = args.network.join.as_ref().and_then(|invitation| invitation.model.as_ref());
    let name = args.model_name.as_deref().or_else(|| Some(invited?.name()));
    let files = ModelFiles::open(&args.model, name, args.dtype).map_err(CliError::input)?;
    match invited.filter(|invited| **invited != files.adapted.id) {
        Some(invited) => Err(CliError::Usage(format!(
            "the invitation is to {invited}, and --model is {}: get the files of that model, or leave out --join",
            files.adapted.id
        ))),
        None => Ok(files),
    }
}

/// Loads an adapter for the model.
pub(super) fn adapter(files: &ModelFiles, directory: &Path) -> Result<Adapter, CliError> {
    Adapter::load(directory, &files.adapted).map_err(CliError::input)
}

/// Joins the swarm. Failures of servers and waits are printed while passes go on.
pub(super) async fn connect(
    files: &ModelFiles,
    args: &SwarmArgs,
    output: Output,
) -> Result<(Arc<RemoteSequence>, SwarmHandle), CliError> {
    connect_noting(files, args, output, None).await
}

/// As [`connect`]; what is printed is noted in `log` as well.
pub(super) async fn connect_noting(
    files: &ModelFiles,
    args: &SwarmArgs,
    output: Output,
    log: Option<SwarmLog>,
) -> Result<(Arc<RemoteSequence>, SwarmHandle), CliError> {
    let weights = |path: &PathBuf| KnownWeights::load(path, &files.adapted.id, files.blocks);
    let local = |span| LocalBlocks::open(&args.model, span, args.dtype).map(Arc::new).map_err(CliError::input);
    let config = SequenceConfig {
        reputation: petals_settings::cache_dir().map(|cache| cache.join("reputation")),
        local: args.route.local_blocks.map(local).transpose()?,
        server_dtypes: args.route.server_dtype.iter().map(ToString::to_string).collect(),
        weights: args.route.weights.as_ref().map(weights).transpose().map_err(CliError::input)?,
        request_timeout: args.request_timeout,
        give_up_after: args.give_up_after,
        wire_dtype: args.wire_dtype,
        relay: args.relay,
        rules: args.route.rules(),
        routes: args.route.routes,
        hedge_after: args.route.hedge_after,
        verify: args.route.verify,
        ..SequenceConfig::default()
    };
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(report(receiver, Reporter { output, log, waits: Waits::default() }));
    let joined = files.connect(&args.network.network(), config, sender).await;
    let (sequence, swarm) = joined.map_err(not_joined)?;
    Ok((Arc::new(sequence), swarm))
}

/// Joins the swarm without a model.
pub(super) async fn join(args: &NetworkArgs, output: Output) -> Result<SwarmHandle, CliError> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    tokio::spawn(report(receiver, Reporter { output, log: None, waits: Waits::default() }));
    petals_client::join(&args.network(), None, &sender).await.map_err(not_joined)
}

fn not_joined(error: JoinError) -> CliError {
    match error {
        JoinError::Address(_) | JoinError::SwarmKey(_) | JoinError::Identity(_) => CliError::input(error),
        _ => CliError::from(anyhow::Error::new(error)),
    }
}

/// Says what verification found, if there was any.
pub(super) fn verified(sequence: &RemoteSequence, args: &SwarmArgs, output: Output) -> Result<(), CliError> {
    if args.route.verify > 0.0 { output.emit(&Verified(sequence.verification())) } else { Ok(()) }
}

/// Prints what happens among the servers, and notes it.
struct Reporter {
    output: Output,
    log: Option<SwarmLog>,
    waits: Waits,
}

impl Reporter {
    fn tell<E: Event>(&self, event: &E) -> Result<(), CliError> {
        if let Some(log) = &self.log {
            log.note(event);
        }
        self.output.emit(event)
    }

    /// Tells of a wait, unless that was said just now.
    fn wait(&mut self, reason: String, retry: Duration, left: Duration) -> Result<(), CliError> {
        if !self.waits.is_worth_telling(&reason, Instant::now()) {
            return Ok(());
        }
        self.tell(&Waiting { reason, retry_in_s: retry.as_secs_f64(), left_s: left.as_secs_f64() })
    }
}

async fn report(mut events: mpsc::Receiver<SwarmEvent>, mut reporter: Reporter) {
    while let Some(event) = events.recv().await {
        let printed = match event {
            SwarmEvent::HopFailed { peer, span, reason } => {
                reporter.tell(&HopFailed { peer: peer.to_string(), blocks: span.to_string(), reason })
            }
            SwarmEvent::RelayFailed { peer, span, reason } => {
                reporter.tell(&RelayFailed { peer: peer.to_string(), blocks: span.to_string(), reason })
            }
            SwarmEvent::Outpaced { peer, span, by, after } => reporter.tell(&Outpaced {
                peer: peer.to_string(),
                blocks: span.to_string(),
                by: by.to_string(),
                after_s: after.as_secs_f64(),
            }),
            SwarmEvent::UntrueResult { peer, span, reason, certain } => {
                reporter.tell(&UntrueResult { peer: peer.to_string(), blocks: span.to_string(), reason, certain })
            }
            SwarmEvent::Disagreement { peer, other, span, reason } => reporter.tell(&Disagreement {
                peer: peer.to_string(),
                other: other.to_string(),
                blocks: span.to_string(),
                reason,
            }),
            SwarmEvent::OtherWeights { peers } => {
                reporter.tell(&OtherWeights { peers: peers.iter().map(ToString::to_string).collect() })
            }
            SwarmEvent::BlocksMissing { missing, wait, patience_left } => {
                reporter.wait(missing.to_string(), wait, patience_left)
            }
            SwarmEvent::Alone { reason, patience_left } => reporter.wait(reason, Duration::ZERO, patience_left),
            _ => Ok(()),
        };
        if printed.is_err() {
            return;
        }
    }
}
