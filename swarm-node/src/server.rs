//! A server: loaded blocks, announced, answering streams until it is told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use petals_model::{Checkpoint, Division};
use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{Incoming, IncomingStream, SwarmHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::executor::{Executor, ExecutorConfig, WorkCount};
use crate::machine::division;
use crate::machine::measure::{self, MeasureConfig, Rates};
use crate::machine::speed::Speed;
use crate::placement::figures::{Figures, put_load, put_speed};
use crate::placement::hosted::Hosted;
use crate::placement::mover::{Mover, RebalanceConfig, weights_of};
use crate::streams::RelayLinks;
use crate::streams::{Bounds, StreamService};

mod metrics;
mod view;

pub(crate) use metrics::metrics;
pub(crate) use view::ServerView;

/// Longest time that one block of a pass should take: between two blocks the tokens of others go on.
const LONGEST_BLOCK: Duration = Duration::from_secs(1);
/// Rows that are taken however slow a node is: clients send texts in parts of this size.
const LEAST_ROWS: u32 = 512;
/// How often stashes are looked through for expired ones, so that an idle node frees memory too.
const EXPIRY_TICK: Duration = Duration::from_secs(10);

/// What a server hosts and how much it may use.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Model id announced and demanded.
    pub model: ModelId,
    /// Blocks to host, and where.
    pub division: Division,
    /// Largest number of rows of one pass.
    pub max_rows: u32,
    /// Bytes of requests that may be in memory, of all clients together.
    pub request_bytes: u64,
    /// Bytes of the tables that a request may bring along; `None` for as much as fits into one.
    pub max_adapter_bytes: Option<u64>,
    /// Queue, stash and memory of a pass.
    pub executor: ExecutorConfig,
    /// How its speed becomes known.
    pub measure: MeasureConfig,
    /// Whether it moves to where it is needed more; `None` keeps it where it is.
    pub rebalance: Option<RebalanceConfig>,
    /// Whether others are told that it passes files of the model on.
    pub shares_weights: bool,
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
    /// What changes the announcement by itself, and what ends it.
    upkeep: (TaskTracker, CancellationToken),
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
        let division = config.division;
        let mut info = ServerInfo {
            written_ms: now_ms(),
            device: division::names(division.parts().iter().map(|(_, place)| &place.device)),
            dtype: division.dtype().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model_blocks: Some(checkpoint.blocks().end()),
            public_name: config.public_name.clone(),
            shares_weights: config.shares_weights,
            ..ServerInfo::new(config.model.clone(), division.span(), ServerState::Joining)
        };
        swarm.announce(info.clone()).await.context("cannot announce the server")?;
        let (hidden_size, widths) = (checkpoint.config().hidden_size, checkpoint.config().block_widths());
        let (measure, fingerprint) = (config.measure, config.model.fingerprint());
        let checkpoint = Arc::new(checkpoint);
        let files = checkpoint.clone();
        let loaded = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
            let span = division.span();
            let blocks = files.load_division(&division, None)?;
            let rates = measure::rates(&measure, fingerprint, &blocks, hidden_size)?;
            Ok((blocks, rates, weights_of(&files, span)))
        });
        let (blocks, rates, weights) = loaded.await.context("loading was interrupted")??;
        let speed = Arc::new(Speed::new(rates));
        put_speed(&mut info, &speed);
        info.weights = weights;
        info.state = ServerState::Online;
        info.written_ms = now_ms();

        let executor =
            Executor::start(blocks, config.executor, speed.clone()).context("cannot start the compute thread")?;
        put_load(&mut info, &executor.handle());
        let links = RelayLinks::new(swarm.clone(), info.model.clone());
        let hosted = Arc::new(Hosted::new(info, widths));
        let rows = rows_within(LONGEST_BLOCK, rates.forward, config.max_rows);
        if rows < config.max_rows {
            tracing::info!(
                rows,
                "larger passes would keep others waiting: a block of one would take more than {LONGEST_BLOCK:?}"
            );
        }
        let bounds = Bounds { rows, memory: config.request_bytes, adapter: config.max_adapter_bytes };
        let service = StreamService::new(hosted.clone(), executor.handle(), speed.clone(), Some(links), bounds);
        let service = Arc::new(service);
        let (streams, cancel) = (TaskTracker::new(), CancellationToken::new());
        let upkeep = (TaskTracker::new(), CancellationToken::new());
        streams.spawn(accept(incoming, service.clone(), streams.clone(), cancel.clone()));
        hosted.tell(&swarm).await.context("cannot announce the server")?;
        let handle = executor.handle();
        let figures =
            Figures { swarm: swarm.clone(), hosted: hosted.clone(), executor: handle.clone(), speed: speed.clone() };
        upkeep.0.spawn(figures.run(upkeep.1.clone()));
        if let Some(config) = config.rebalance {
            let mover = Mover::new(config, swarm.clone(), hosted, (handle, speed), checkpoint);
            upkeep.0.spawn(upkeep.1.clone().run_until_cancelled_owned(mover.run()));
        }
        Ok(Self { swarm, service, executor, streams, cancel, upkeep })
    }

    /// The node it runs on.
    pub fn swarm(&self) -> &SwarmHandle {
        &self.swarm
    }

    /// What others may look at while it runs.
    pub(crate) fn view(&self) -> ServerView {
        ServerView { swarm: self.swarm.clone(), hosted: self.service.hosted.clone(), executor: self.executor.handle() }
    }

    /// What is announced.
    pub fn info(&self) -> ServerInfo {
        self.service.hosted.info()
    }

    /// Waits until the server serves another span than `span`, or announces a move, and returns what it announces then.
    pub async fn moved_from(&self, span: Span, moving_to: Option<Span>) -> ServerInfo {
        let mut changes = self.service.hosted.subscribe();
        let moved = changes.wait_for(|now| (now.info.span, now.info.moving_to) != (span, moving_to)).await;
        moved.map_or_else(|_| self.info(), |now| now.info.clone())
    }

    /// Announces this many tokens per second, forward and decode, from now on, whatever is measured.
    ///
    /// # Errors
    /// If the node is gone.
    pub async fn announce_speed(&self, tokens_per_s: f32) -> anyhow::Result<()> {
        let StreamService { hosted, speed, .. } = self.service.as_ref();
        let rate = f64::from(tokens_per_s) * hosted.span().len() as f64;
        speed.fix(Rates { forward: rate, decode: rate });
        hosted.change(|now| put_speed(&mut now.info, speed));
        hosted.tell(&self.swarm).await?;
        Ok(())
    }

    /// Which of the blocks are on which device, while there are any.
    pub fn division(&self) -> Option<Division> {
        self.executor.handle().blocks().map(|blocks| blocks.division())
    }

    /// Bytes of weights held.
    pub fn weight_bytes(&self) -> u64 {
        self.executor.handle().blocks().map_or(0, |blocks| blocks.weight_bytes())
    }

    /// What was asked of it since the last time that this was called.
    pub fn take_work(&self) -> WorkCount {
        self.executor.handle().take_work()
    }

    /// Requests waiting or running.
    pub fn queue_depth(&self) -> usize {
        self.executor.handle().depth()
    }

    /// Bytes of stashes held.
    pub fn stash_bytes(&self) -> u64 {
        self.executor.handle().stash_bytes()
    }

    /// Leaves in order: refuses new forwards, withdraws from the directory, finishes what runs (for at most `patience`),
    /// closes the streams and the node.
    pub async fn shutdown(self, patience: Duration) {
        let (tasks, end) = &self.upkeep;
        end.cancel();
        tasks.close();
        tasks.wait().await;
        self.service.hosted.change(|now| {
            now.info.state = ServerState::Draining;
            now.info.moving_to = None;
        });
        if let Err(error) = self.service.hosted.tell(&self.swarm).await {
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
        let Some(inbound) = inbound else { return };
        let gone = inbound.connection_ends();
        let IncomingStream { party, stream } = inbound;
        streams.spawn(service.clone().serve(party, stream, gone, cancel.clone()));
    }
}

/// Rows of a pass of which a block takes no longer than `time` at a measured rate of rows times blocks a second; at most `most`.
fn rows_within(time: Duration, rate: f64, most: u32) -> u32 {
    let rows = (rate * time.as_secs_f64()).max(f64::from(LEAST_ROWS));
    most.min(rows as u32)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_as_large_as_their_blocks_are_quick() {
        let rows = |rate, most| rows_within(LONGEST_BLOCK, rate, most);
        assert_eq!((rows(1e6, 8192), rows(2000.0, 8192), rows(3.0, 8192)), (8192, 2000, LEAST_ROWS));
        assert_eq!((rows(3.0, 100), rows(f64::NAN, 8192)), (100, LEAST_ROWS));
    }
}
