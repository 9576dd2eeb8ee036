//! `petals-tune status`.

use std::time::Duration;

use anyhow::Error;
use petals_client::{ModelStatus, SwarmHandle, SwarmStatus, swarm_status};

use super::session;
use super::stop::StopSignal;
use crate::args::StatusArgs;
use crate::error::CliError;
use crate::output::{Holders, Output, Server, Status, StatusModel};
use crate::terminal;

/// A swarm that was just joined may not have told everything yet; an empty answer is asked for again so often.
const ATTEMPTS: u32 = 3;
/// Time between these.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: StatusArgs, output: Output) -> Result<(), CliError> {
    let swarm = session::join(&args.network, output).await?;
    let shown = show(&args, &swarm, output).await;
    swarm.shutdown().await;
    shown
}

async fn show(args: &StatusArgs, swarm: &SwarmHandle, output: Output) -> Result<(), CliError> {
    let mut first = swarm_status(swarm, args.name.as_deref()).await;
    for _ in 1..ATTEMPTS {
        if first.as_ref().is_ok_and(|status| !status.models.is_empty()) {
            break;
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
        first = swarm_status(swarm, args.name.as_deref()).await;
    }
    let first = first.map_err(Error::from)?;
    let Some(period) = args.watch else { return output.emit(&status(first)) };
    let mut stopped = std::pin::pin!(StopSignal::install()?.received());
    let mut next = Ok(first);
    loop {
        if !output.is_json() {
            terminal::clear();
        }
        match next {
            Ok(now) => output.emit(&status(now))?,
            // Whoever watches wants to see how it goes on.
            Err(error) => tracing::warn!(%error, "the swarm cannot be asked now"),
        }
        tokio::select! {
            () = &mut stopped => return Ok(()),
            () = tokio::time::sleep(period) => {}
        }
        next = tokio::select! {
            () = &mut stopped => return Ok(()),
            next = swarm_status(swarm, args.name.as_deref()) => next,
        };
    }
}

fn status(status: SwarmStatus) -> Status {
    Status { connected: status.connected, models: status.models.iter().map(model).collect() }
}

fn model(status: &ModelStatus) -> StatusModel {
    let servers = status.servers.iter().map(|(peer, info)| Server::new(peer, info.clone())).collect();
    let holders = status.holders.iter();
    StatusModel {
        model: status.model.to_string(),
        blocks: status.blocks,
        missing: status.missing().iter().map(ToString::to_string).collect(),
        holders: holders
            .map(|run| Holders { blocks: run.span.to_string(), servers: run.servers, count: run.span.len() })
            .collect(),
        servers,
        ages_s: status.ages.clone(),
    }
}
