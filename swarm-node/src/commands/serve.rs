//! `petals-node serve`.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_model::{Checkpoint, Device, Division, Place};
use petals_protocol::{ModelId, ServerInfo, ServerState, Span};
use petals_swarm::{DirectoryEntry, Incoming, SwarmHandle, network_of};

use super::events::NodeEvent;
use super::join;
use super::model;
use super::network;
use super::page::{self, NodePage};
use super::report;
use super::signals::{ReloadSignal, StopSignals};
use super::state::{Keeper, NodeState};
use super::watch;
use crate::args::ServeArgs;
use crate::error::NodeError;
use crate::executor::ExecutorConfig;
use crate::machine::division;
use crate::machine::measure::{self, MeasureConfig};
use crate::machine::memory::Free;
use crate::placement::mover::{RebalanceConfig, random};
use crate::placement::presence::Presence;
use crate::placement::{Claim, Coverage, neighbourhood};
use crate::server::{Server, ServerConfig};
use crate::sharing::Sharing;

/// Passes that are running must end within this time after a stop signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Mean time until servers that choose their blocks at the same moment have seen each other.
const SETTLE: Duration = Duration::from_secs(1);
/// Choices after which the last one stands, whatever others do.
const PLACE_ATTEMPTS: usize = 6;

pub(crate) async fn run(args: ServeArgs) -> Result<(), NodeError> {
    let started = Instant::now();
    let mut signals = StopSignals::install()?;
    let mut reload = ReloadSignal::install()?;
    let json = args.network.json;
    let sharing = args.share.share_weights.then(|| Sharing::new(args.share.share_rate));
    let nearby = sharing.as_ref().map(Sharing::nearby);
    let Some(opened) = signals.unless_stopped(model::opened(&args.model, &args.hub, nearby, json)).await else {
        stop_early(json);
    };
    let (source, checkpoint) = opened?;
    if sharing.is_some() {
        Sharing::check(&source).map_err(NodeError::input)?;
    }
    let checkpoint = match args.cache_dir.clone().or_else(petals_settings::cache_dir) {
        Some(directory) => {
            Device::keep_kernels(&directory.join("kernels"));
            checkpoint.with_cache_in(directory.join("weights"))
        }
        None => checkpoint,
    };
    let name = network::model_name(&args.network, args.model_name.as_deref());
    let id = checkpoint.model_id(name).context("the model needs a name: give --model-name");
    let id = id.map_err(NodeError::input)?;
    network::check_model(&args.network, &id)?;
    let compute = args.compute.resolve(&checkpoint).map_err(NodeError::input)?;
    check_blocks(args.blocks, &checkpoint)?;

    let bound = page::bind(&args.page).await?;
    let mut swarm_config = network::config(&args.network, &args.peers)?;
    swarm_config.max_streams_per_peer = args.streams_per_peer as usize;
    swarm_config.shares_contents = sharing.is_some();
    swarm_config.members = network::members(&args.network, &swarm_config);
    swarm_config.allow_peers = network::allowed(&args.allow_peer, args.allow_file.as_deref())?;
    let keeper = Keeper::new(&args.network, &swarm_config);
    let identity = network::identity(args.network.identity.as_deref())?;
    let Some(joined) = signals.unless_stopped(network::start(identity, swarm_config, json)).await else {
        stop_early(json);
    };
    let (swarm, incoming) = joined?;
    match signals.unless_stopped(watch::refuse_namesake(&swarm, &id)).await {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            // Nothing was announced, so there is nothing to take back: a goodbye would be the other node's.
            swarm.shutdown().await;
            return Err(error);
        }
        None => stop_early(json),
    }
    if let Some(sharing) = &sharing {
        sharing.begin(&swarm, &source, &id, checkpoint.blocks());
    }
    let page = NodePage::start(bound, &swarm, json);
    let start = start(&args, &swarm, incoming, checkpoint, id, compute);
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
    let join = join::lines(&args, &swarm);
    page.serves(server.view(), join.clone());
    NodeEvent::Ready {
        model: info.model.to_string(),
        blocks: info.span.to_string(),
        weight_bytes: server.weight_bytes(),
        device: server.division().map_or_else(|| info.device.clone(), |division| division::words(&division)),
        dtype: info.dtype.clone(),
        seconds: started.elapsed().as_secs_f64(),
        page: page.url(),
    }
    .emit(json);
    NodeEvent::Join(join).emit(json);

    let watching = watch::watch(&swarm, Some(&info.model), json, watch::Periods::default());
    let found = async {
        tokio::select! {
            () = tell_moves(&server, json) => None,
            never = report::run(&server, args.report_every, json) => match never {},
            never = reload_lists(&mut reload, &args, &swarm) => match never {},
            never = keeper.run(&swarm, || Some((server.info().model, server.info().span))) => match never {},
            found = watching => Some(found),
        }
    };
    let found = signals.unless_stopped(found).await.flatten();
    NodeEvent::Draining.emit(json);
    let mut shutdown = pin!(server.shutdown(DRAIN_TIMEOUT));
    // The shutdown is only borrowed: dropping it drops the server, which waits for the pass that is running.
    if signals.unless_stopped(shutdown.as_mut()).await.is_none() {
        tracing::warn!("second signal: leaving at once");
        NodeEvent::Stopped.emit(json);
        std::process::exit(1);
    }
    NodeEvent::Stopped.emit(json);
    found.map_or(Ok(()), Err)
}

/// Reads the list of those who may use the node again whenever it is asked to, for ever. A list that cannot be read changes nothing: nobody is let in or
/// kept out by a mistake in a file.
async fn reload_lists(reload: &mut ReloadSignal, args: &ServeArgs, swarm: &SwarmHandle) -> Infallible {
    loop {
        reload.next().await;
        match network::allowed(&args.allow_peer, args.allow_file.as_deref()) {
            Ok(None) => tracing::info!("SIGHUP: there is no --allow-file to be read again"),
            Ok(Some(peers)) => {
                NodeEvent::AllowListRead { peers: peers.len() }.emit(args.network.json);
                swarm.allow(Some(peers)).await;
            }
            Err(error) => tracing::warn!("SIGHUP: the list stays as it was: {error}"),
        }
    }
}

/// Prints where the server moves, for ever.
async fn tell_moves(server: &Server, json: bool) {
    let mut last = server.info();
    loop {
        let info = server.moved_from(last.span, last.moving_to).await;
        let blocks = info.span.to_string();
        match info.moving_to {
            _ if info.span != last.span => NodeEvent::Moved { blocks, weight_bytes: server.weight_bytes() }.emit(json),
            Some(to) => NodeEvent::Moving { blocks, to: to.to_string() }.emit(json),
            None => NodeEvent::Staying { blocks }.emit(json),
        }
        last = info;
    }
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
    places: Vec<Place>,
) -> Result<Server, NodeError> {
    let devices: Vec<_> = places.iter().map(|place| place.device.clone()).collect();
    let free = Free::on(&devices);
    let span = match args.blocks {
        Some(span) => span,
        None => {
            let count = args.num_blocks.map_or_else(|| fitting(&checkpoint, &places, &free), Ok)?;
            let before = earlier(args, &model).filter(|span| {
                let room =
                    if args.num_blocks.is_some() { span.len() == count as usize } else { span.len() <= count as usize };
                room && checkpoint.blocks().covers(*span)
            });
            match before {
                Some(span) => {
                    tracing::info!(%span, "taking the blocks that this node served before");
                    span
                }
                None => place(swarm, &model, checkpoint.blocks(), count).await?,
            }
        }
    };
    let checkpoint = model::supplied(checkpoint, span).await?;
    // Of a model from the hub only now is there something that tells how its weights lie.
    let places = args.compute.on(&devices, Some(&checkpoint)).map_err(NodeError::input)?;
    let measure =
        MeasureConfig { cache_dir: args.cache_dir.clone().or_else(petals_settings::cache_dir), again: args.measure };
    let speed = |place: &Place| Some(measure::known(&measure, model.fingerprint(), place)?.decode);
    let divide = |checkpoint: &Checkpoint| {
        division::divide(checkpoint, span, &places, &free, speed).context("no device was named")
    };
    let checkpoint = hold(checkpoint, &places, &free, divide)?;
    let division = divide(&checkpoint)?;
    if places.len() > 1 {
        tracing::info!(devices = division::words(&division), "divided the blocks by memory and speed");
        for idle in places.iter().filter(|place| division.parts().iter().all(|(_, other)| other.device != place.device))
        {
            tracing::warn!("{} gets no blocks: those of {span} fit on the other devices", idle.device);
        }
    }
    let moves = args.blocks.is_none() && !args.rebalance_period.is_zero();
    let budgets = free.divide(&division::weights(&checkpoint, &division));
    let executor = ExecutorConfig {
        stash_bytes: args.stash_bytes.unwrap_or(budgets.stash),
        pass_bytes: budgets.pass,
        kv_bytes: args.kv_bytes.unwrap_or(budgets.kv),
        stash_policy: args.stash,
        queue: args.queue as usize,
        queue_per_peer: args.queue_per_peer as usize,
        rooms: budgets.rooms,
        share_prefixes: args.share.share_prefixes,
        ..ExecutorConfig::default()
    };
    let config = ServerConfig {
        model,
        division,
        max_rows: args.max_rows,
        request_bytes: args.request_bytes.unwrap_or(budgets.requests),
        max_adapter_bytes: args.max_adapter_bytes,
        executor,
        measure,
        shares_weights: args.share.share_weights,
        rebalance: moves.then_some(RebalanceConfig { period: args.rebalance_period }),
        public_name: args.public_name.clone(),
    };
    Ok(Server::start(swarm.clone(), incoming, checkpoint, config).await?)
}

/// The checkpoint, its experts read from their files if memory does not hold what was asked for.
fn hold(
    checkpoint: Checkpoint,
    places: &[Place],
    free: &Free,
    divide: impl Fn(&Checkpoint) -> anyhow::Result<Division>,
) -> anyhow::Result<Checkpoint> {
    let division = divide(&checkpoint)?;
    let (needed, mixture) = (division::weights(&checkpoint, &division), checkpoint.config().block.experts.is_some());
    if free.holds(&needed) || !mixture || !places.iter().all(|place| place.device.reads_in_place()) {
        return Ok(checkpoint);
    }
    let mib = |weights: &[(String, u64)]| weights.iter().map(|(_, bytes)| bytes >> 20).sum::<u64>();
    let checkpoint = checkpoint.with_experts_in_files();
    tracing::warn!(
        "blocks {} need {} MiB and {} MiB may be used: weights of experts stay in their files ({} MiB are loaded), and whatever the system \
         does not keep of them is read from the disk for every pass; serve fewer blocks, or use --dtype int8 or int4, to avoid that",
        division.span(),
        mib(&needed),
        free.for_weights() >> 20,
        mib(&division::weights(&checkpoint, &division)),
    );
    Ok(checkpoint)
}

/// Refuses blocks that the model does not have, and tensors that cannot be loaded, before anybody is told of them.
pub(crate) fn check_blocks(blocks: Option<Span>, checkpoint: &Checkpoint) -> Result<(), NodeError> {
    let held = checkpoint.blocks().end();
    match blocks {
        Some(span) if span.end() > held => {
            let error = anyhow::anyhow!("--blocks {span} reaches beyond the model's {held} blocks (0..{held})");
            Err(NodeError::input(error))
        }
        _ => checkpoint.check_span(blocks.unwrap_or(checkpoint.blocks())).map_err(NodeError::input),
    }
}

/// The blocks that the node of this identity served when it last ran, if they were of this model. Its files are read already, its speed is known, and
/// nobody has to move: a restart should be no event. It looks around later, as always.
fn earlier(args: &ServeArgs, model: &ModelId) -> Option<Span> {
    let identity = args.network.identity.as_deref()?;
    match NodeState::load(identity) {
        Ok(state) => state.filter(|state| state.model.as_ref() == Some(model))?.blocks,
        Err(error) => {
            tracing::warn!("which blocks this node served before is not known: {error}");
            None
        }
    }
}

/// As many blocks as fit.
fn fitting(checkpoint: &Checkpoint, places: &[Place], free: &Free) -> Result<u32, NodeError> {
    let all = checkpoint.blocks();
    let count = u32::try_from(division::fitting(checkpoint, places, free)).unwrap_or(u32::MAX).min(all.end());
    if count == 0 {
        let mib = |bytes: u64| bytes >> 20;
        let blocks = places.iter().map(|place| checkpoint.span_bytes(all, place.dtype) / all.len() as u64);
        let one = blocks.min().unwrap_or_default();
        let error =
            anyhow::anyhow!("one block needs {} MiB, only {} MiB may be used", mib(one), mib(free.for_weights()));
        return Err(NodeError::from(error));
    }
    Ok(count)
}

/// `count` blocks where the swarm is weakest, announced. Of servers that choose at the same moment, all but the one with
/// the lowest id choose again.
async fn place(swarm: &SwarmHandle, model: &ModelId, all: Span, count: u32) -> Result<Span, NodeError> {
    let (mut announced, mut earlier, presence) = (None, HashSet::new(), Presence::default());
    for _ in 0..PLACE_ATTEMPTS {
        let servers = match swarm.lookup(model, all).await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!("cannot ask who serves what, starting at block 0: {error}");
                Vec::new()
            }
        };
        let local = swarm.local_peer();
        if announced.is_none() {
            earlier = servers.iter().map(|entry| entry.peer).collect();
        }
        let counts = |entry: &&DirectoryEntry| {
            let settled = entry.info.state != ServerState::Joining || earlier.contains(&entry.peer);
            entry.peer != local && (settled || entry.peer < local)
        };
        let servers = presence.present(swarm, servers).await;
        let others = servers.iter().filter(counts);
        let claim = |entry: &DirectoryEntry| Claim::of(&entry.info, network_of(&entry.addresses).map(neighbourhood));
        let claims: Vec<Claim> = others.filter_map(claim).collect();
        let coverage = Coverage::of(all.end(), None, &claims);
        let span = coverage.worst_window(count).context("no range of blocks to serve")?;
        if announced == Some(span) || swarm.connected_peers().is_empty() {
            tracing::info!(%span, servers = servers.len(), "chose the blocks that are served worst");
            return Ok(span);
        }
        let joining = ServerInfo::new(model.clone(), span, ServerState::Joining);
        swarm.announce(joining).await.context("cannot announce the server")?;
        announced = Some(span);
        tokio::time::sleep(SETTLE.mul_f64(0.5 + random())).await;
    }
    announced.context("no range of blocks to serve").map_err(NodeError::from)
}
