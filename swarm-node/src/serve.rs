//! `petals-node serve`.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_model::{Checkpoint, Device, Dtype};
use petals_protocol::{ModelId, Span};
use petals_swarm::{Incoming, SwarmHandle};

use crate::args::ServeArgs;
use crate::error::NodeError;
use crate::events::NodeEvent;
use crate::executor::ExecutorConfig;
use crate::memory::Free;
use crate::network;
use crate::placement;
use crate::server::{Server, ServerConfig};
use crate::signals::StopSignals;

/// Passes that are running must end within this time after a stop signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: ServeArgs) -> Result<(), NodeError> {
    let started = Instant::now();
    let mut signals = StopSignals::install()?;
    let json = args.network.json;
    let checkpoint = Checkpoint::open(&args.model).map_err(NodeError::input)?;
    let model = checkpoint.model_id(args.model_name.as_deref()).context("the model needs a name: give --model-name");
    let model = model.map_err(NodeError::input)?;
    let device: Device = args.device.parse().map_err(NodeError::input)?;
    let dtype: Dtype = args.dtype.parse().map_err(|error: String| NodeError::input(anyhow::anyhow!(error)))?;
    let dtype = dtype.on(&device);
    check_blocks(args.blocks, &checkpoint)?;

    let swarm_config = network::config(&args.network, &args.peers)?;
    let identity = network::identity(args.network.identity.as_deref())?;
    let Some(joined) = signals.unless_stopped(network::start(identity, swarm_config, json)).await else {
        stop_early(json);
    };
    let (swarm, incoming) = joined?;
    let start = start(&args, &swarm, incoming, checkpoint, model, device, dtype);
    let Some(server) = signals.unless_stopped(start).await else {
        let leave = async {
            swarm.withdraw().await;
            swarm.shutdown().await;
        };
        signals.unless_stopped(leave).await;
        stop_early(json);
    };
    let server = server?;
    let info = server.info();
    NodeEvent::Ready {
        model: info.model.to_string(),
        blocks: info.span.to_string(),
        weight_bytes: server.weight_bytes(),
        device: server.device().to_string(),
        dtype: info.dtype.clone(),
        seconds: started.elapsed().as_secs_f64(),
    }
    .emit(json);

    signals.next().await;
    NodeEvent::Draining.emit(json);
    let mut shutdown = pin!(server.shutdown(DRAIN_TIMEOUT));
    // The shutdown is only borrowed: dropping it drops the server, which waits for the pass that is running.
    if signals.unless_stopped(shutdown.as_mut()).await.is_none() {
        tracing::warn!("second signal: leaving at once");
        NodeEvent::Stopped.emit(json);
        std::process::exit(1);
    }
    NodeEvent::Stopped.emit(json);
    Ok(())
}

/// Ends the process: a load that has begun cannot be interrupted, and returning would wait for it.
fn stop_early(json: bool) -> ! {
    NodeEvent::Stopped.emit(json);
    std::process::exit(0)
}

/// Chooses the blocks if nobody did, divides the memory, loads and announces.
async fn start(
    args: &ServeArgs,
    swarm: &SwarmHandle,
    incoming: Incoming,
    checkpoint: Checkpoint,
    model: ModelId,
    device: Device,
    dtype: Dtype,
) -> Result<Server, NodeError> {
    let free = Free::on(&device);
    let span = match args.blocks {
        Some(span) => span,
        None => place(swarm, &model, &checkpoint, dtype, free.for_weights()).await?,
    };
    let budgets = free.divide(checkpoint.span_bytes(span, dtype));
    let executor = ExecutorConfig {
        stash_bytes: args.stash_bytes.unwrap_or(budgets.stash),
        pass_bytes: budgets.pass,
        stash_policy: args.stash,
        ..ExecutorConfig::default()
    };
    let config = ServerConfig {
        model,
        span,
        device,
        dtype,
        max_rows: args.max_rows,
        request_bytes: budgets.requests,
        executor,
        public_name: args.public_name.clone(),
    };
    Ok(Server::start(swarm.clone(), incoming, checkpoint, config).await?)
}

/// Refuses blocks that the model does not have.
pub(crate) fn check_blocks(blocks: Option<Span>, checkpoint: &Checkpoint) -> Result<(), NodeError> {
    let held = checkpoint.blocks().end();
    match blocks {
        Some(span) if span.end() > held => {
            let error = anyhow::anyhow!("--blocks {span} reaches beyond the model's {held} blocks (0..{held})");
            Err(NodeError::input(error))
        }
        _ => Ok(()),
    }
}

/// As many blocks as fit, where the swarm is weakest.
async fn place(
    swarm: &SwarmHandle,
    model: &ModelId,
    checkpoint: &Checkpoint,
    dtype: Dtype,
    room: u64,
) -> Result<Span, NodeError> {
    let all = checkpoint.blocks();
    let blocks = all.end();
    let one = checkpoint.span_bytes(all, dtype) / u64::from(blocks);
    let count = u32::try_from(room / one.max(1)).unwrap_or(u32::MAX).min(blocks);
    if count == 0 {
        let mib = |bytes: u64| bytes >> 20;
        let error = anyhow::anyhow!("one block needs {} MiB, only {} MiB may be used", mib(one), mib(room));
        return Err(NodeError::from(error));
    }
    let servers = match swarm.lookup(model, all).await {
        Ok(entries) => entries.into_iter().map(|entry| entry.info).collect(),
        Err(error) => {
            tracing::warn!("cannot ask who serves what, starting at block 0: {error}");
            Vec::new()
        }
    };
    let span = placement::choose(blocks, count, &servers).context("no range of blocks to serve")?;
    tracing::info!(%span, servers = servers.len(), "chose the blocks that are served worst");
    Ok(span)
}
