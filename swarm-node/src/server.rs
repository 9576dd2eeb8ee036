//! A server: loaded blocks, announced, answering streams until it is told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use petals_model::{BlockStack, Checkpoint, Device, Dtype, ForwardPass, Keep};
use petals_protocol::{Injection, ModelId, PassLayout, ServerInfo, ServerState, Span};
use petals_swarm::{Incoming, IncomingStream, SwarmHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::executor::{Executor, ExecutorConfig};
use crate::relay::RelayLinks;
use crate::request::Hosted;
use crate::stream::StreamService;

/// How often stashes are looked through for expired ones, so that an idle node frees memory too.
const EXPIRY_TICK: Duration = Duration::from_secs(10);
/// Rows of the pass that measures the throughput to announce.
const PROBE_ROWS: u32 = 128;

/// What a server hosts and how much it may use.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Model id announced and demanded.
    pub model: ModelId,
    /// Blocks to host.
    pub span: Span,
    /// Where to compute.
    pub device: Device,
    /// Dtype of the weights.
    pub dtype: Dtype,
    /// Largest number of rows of one pass.
    pub max_rows: u32,
    /// Bytes of requests that may be in memory, of all clients together.
    pub request_bytes: u64,
    /// Queue, stash and memory of a pass.
    pub executor: ExecutorConfig,
    /// A name for people.
    pub public_name: Option<String>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    swarm: SwarmHandle,
    service: Arc<StreamService>,
    executor: Executor,
    streams: TaskTracker,
    cancel: CancellationToken,
    info: ServerInfo,
    device: Device,
    weight_bytes: u64,
}

impl Server {
    /// Announces the span as joining, loads and measures it, and announces it as online.
    ///
    /// # Errors
    /// If the blocks cannot be loaded, with the file's or tensor's name.
    pub async fn start(
        swarm: SwarmHandle,
        incoming: Incoming,
        checkpoint: Checkpoint,
        config: ServerConfig,
    ) -> anyhow::Result<Self> {
        let mut info = ServerInfo {
            written_ms: now_ms(),
            dtype: config.dtype.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            public_name: config.public_name.clone(),
            ..ServerInfo::new(config.model.clone(), config.span, ServerState::Joining)
        };
        swarm.announce(info.clone()).await.context("cannot announce the server")?;
        let hidden_size = checkpoint.config().hidden_size;
        let (span, device, dtype) = (config.span, config.device.clone(), config.dtype);
        let loaded = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let blocks = checkpoint.load_span(span, &device, dtype)?;
            let rate = measure(&blocks, hidden_size)?;
            Ok((blocks, rate))
        });
        let (blocks, rate) = loaded.await.context("loading was interrupted")??;
        let weight_bytes = blocks.weight_bytes();
        info.forward_tokens_per_s = Some(rate);
        info.state = ServerState::Online;
        info.written_ms = now_ms();

        let executor = Executor::start(blocks, config.executor).context("cannot start the compute thread")?;
        let hosted = Hosted { info: info.clone(), hidden_size };
        let links = RelayLinks::new(swarm.clone(), info.model.clone());
        let service = StreamService::new(hosted, executor.handle(), Some(links), config.max_rows, config.request_bytes);
        let service = Arc::new(service);
        let (streams, cancel) = (TaskTracker::new(), CancellationToken::new());
        streams.spawn(accept(incoming, service.clone(), streams.clone(), cancel.clone()));
        swarm.announce(info.clone()).await.context("cannot announce the server")?;
        let device = config.device;
        Ok(Self { swarm, service, executor, streams, cancel, info, device, weight_bytes })
    }

    /// The node it runs on.
    pub fn swarm(&self) -> &SwarmHandle {
        &self.swarm
    }

    /// What is announced.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// Where the blocks compute.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of weights held.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of stashes held.
    pub fn stash_bytes(&self) -> u64 {
        self.executor.handle().stash_bytes()
    }

    /// Leaves in order: refuses new forwards, withdraws from the directory, finishes what runs (for at most `patience`),
    /// closes the streams and the node.
    pub async fn shutdown(self, patience: Duration) {
        self.service.draining.cancel();
        let draining = ServerInfo { state: ServerState::Draining, written_ms: now_ms(), ..self.info.clone() };
        if let Err(error) = self.swarm.announce(draining).await {
            tracing::debug!(%error, "cannot announce the drain");
        }
        self.swarm.withdraw().await;
        let deadline = Instant::now() + patience;
        let work_left = || self.executor.handle().depth() > 0 || self.stash_bytes() > 0;
        while work_left() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.cancel.cancel();
        self.streams.close();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.streams.wait()).await;
        self.swarm.shutdown().await;
        let executor = self.executor;
        let _ = tokio::task::spawn_blocking(move || drop(executor)).await;
    }
}

async fn accept(mut incoming: Incoming, service: Arc<StreamService>, streams: TaskTracker, cancel: CancellationToken) {
    let mut tick = tokio::time::interval(EXPIRY_TICK);
    loop {
        let inbound = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = tick.tick() => {
                service.executor.expire_stashes();
                continue;
            }
            inbound = incoming.next() => inbound,
        };
        let Some(IncomingStream { peer, stream }) = inbound else { return };
        streams.spawn(service.clone().serve(peer, stream, cancel.clone()));
    }
}

/// Tokens per second through the whole span, from one pass after one for warm-up.
fn measure(blocks: &BlockStack, hidden: usize) -> anyhow::Result<f32> {
    let layout = PassLayout {
        span: blocks.span(),
        lengths: vec![PROBE_ROWS],
        prefix_len: 0,
        injection: Injection::None,
        read_rows: None,
    };
    let run = || {
        let text = (0..PROBE_ROWS as usize * hidden).map(|n| ((n % 17) as f32 - 8.0) / 100.0).collect();
        let started = Instant::now();
        blocks.forward(ForwardPass { layout: &layout, text, prefix: None, prompts: None }, Keep::Nothing)?;
        anyhow::Ok(started.elapsed())
    };
    run()?;
    Ok(PROBE_ROWS as f32 / run()?.as_secs_f32().max(1e-6))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
