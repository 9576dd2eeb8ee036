//! `petals-node serve`.

use std::time::{Duration, Instant};

use anyhow::Context;
use petals_model::{Checkpoint, Device, Dtype};
use petals_protocol::{ModelId, Span};
use petals_swarm::SwarmHandle;

use crate::args::ServeArgs;
use crate::error::NodeError;
use crate::events::NodeEvent;
use crate::executor::ExecutorConfig;
use crate::memory;
use crate::network;
use crate::placement;
use crate::server::{Server, ServerConfig};
use crate::signals::StopSignals;

/// Share of the free memory that weights may take; the rest is for stashes, activations and the system.
const WEIGHT_SHARE: f64 = 0.7;
/// Assumed free memory where the system does not tell.
const UNKNOWN_MEMORY: u64 = 4 << 30;
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
    let free = memory::available().unwrap_or(UNKNOWN_MEMORY);

    let swarm_config = network::config(&args.network, &args.peers)?;
    let identity = network::identity(args.network.identity.as_deref())?;
    let (swarm, incoming) = network::start(identity, swarm_config, json).await?;
    let span = match args.blocks {
        Some(span) => span,
        None => place(&swarm, &model, &checkpoint, dtype, free).await?,
    };
    let executor = ExecutorConfig { stash_bytes: args.stash_bytes.unwrap_or(free / 8), ..ExecutorConfig::default() };
    let config = ServerConfig {
        model: model.clone(),
        span,
        device: device.clone(),
        dtype,
        max_rows: args.max_rows,
        request_bytes: free / 8,
        executor,
        public_name: args.public_name.clone(),
    };
    let loading = Server::start(swarm.clone(), incoming, checkpoint, config);
    let server = tokio::select! {
        server = loading => server?,
        () = signals.next() => {
            swarm.shutdown().await;
            NodeEvent::Stopped.emit(json);
            return Ok(());
        }
    };
    NodeEvent::Ready {
        model: model.to_string(),
        blocks: span.to_string(),
        weight_bytes: server.weight_bytes(),
        device: device.to_string(),
        dtype: dtype.to_string(),
        seconds: started.elapsed().as_secs_f64(),
    }
    .emit(json);

    signals.next().await;
    NodeEvent::Draining.emit(json);
    tokio::select! {
        () = server.shutdown(DRAIN_TIMEOUT) => {}
        () = signals.next() => tracing::warn!("second signal: leaving at once"),
    }
    NodeEvent::Stopped.emit(json);
    Ok(())
}

fn check_blocks(blocks: Option<Span>, checkpoint: &Checkpoint) -> Result<(), NodeError> {
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
    free: u64,
) -> Result<Span, NodeError> {
    let all = checkpoint.blocks();
    let blocks = all.end();
    let one = checkpoint.span_bytes(all, dtype) / u64::from(blocks);
    let room = (free as f64 * WEIGHT_SHARE) as u64;
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
