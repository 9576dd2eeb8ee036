//! `petals-tune monitor`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use petals_client::{Hop, ModelShape, PassInput, RelayMode, RemoteSequence, SequenceConfig, SwarmEvent, SwarmHandle};
use petals_page::{FEW, Key, RouteHop, Rules, ShownRoute, SwarmPage, router, serve};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::session::{self, SwarmLog};
use super::stop::StopSignal;
use super::swarm_page::{Client, ClientPage};
use super::{key, model};
use crate::args::MonitorArgs;
use crate::error::CliError;
use crate::output::{Monitoring, Output};

/// Time between two looks at the route, while somebody looks at the page.
const PERIOD: Duration = Duration::from_secs(5);
/// Longest wait for an answer to a pass, and for servers of blocks that nobody serves.
const PATIENCE: Duration = Duration::from_secs(10);
/// Failures that may wait to be noted; later ones are dropped.
const EVENTS: usize = 64;
/// What is under way at the first Ctrl-C has so long to end.
const GRACE: Duration = Duration::from_secs(1);

/// What this client knows: the way that a pass would take.
#[derive(Debug, Clone)]
struct Watcher {
    swarm: SwarmHandle,
    routes: Arc<Mutex<Vec<ShownRoute>>>,
}

pub(crate) async fn run(args: MonitorArgs, output: Output) -> Result<(), CliError> {
    let key = args.key_file.as_deref().map(|file| key::read(file).map(|key| Key::new(&key))).transpose()?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    let source = match args.model {
        Some(model) => Some(model::found(model, model::Weights::OfClient(None), None, output).await?),
        None => None,
    };
    let shape = source.as_ref().map(|source| ModelShape::open(source.path(), args.model_name.as_deref()));
    let shape = shape.transpose().map_err(CliError::input)?;
    let stop = StopSignal::install()?;
    let swarm = session::join(&args.network, output).await?;
    let watcher = Watcher { swarm: swarm.clone(), routes: Arc::default() };
    let shown = Arc::new(ClientPage::new(watcher.clone(), SwarmLog::default()));
    let page = Arc::new(SwarmPage::new(swarm.clone(), args.name, shown));
    let is_open = key.is_none() && !address.ip().is_loopback();
    output.emit(&Monitoring { url: format!("http://{address}"), key: key.is_some() })?;
    if is_open {
        tracing::warn!("anybody who reaches {address} sees the page: --key-file sets a key");
    }
    let rules = Rules { key, hosts: address.ip().is_loopback().then(Vec::new) };
    let routes = router(page.clone(), rules);
    let stopped = async {
        tokio::select! {
            () = stop.received() => {}
            never = page.run() => match never {},
            () = plan(&page, &watcher, shape, args.rows, args.probe) => {}
        }
    };
    serve(listener, routes, FEW, stopped, GRACE).await;
    swarm.shutdown().await;
    Ok(())
}

/// Plans a pass again and again, as long as somebody looks, and sends one now and then if that is wanted; waits for ever without a model.
async fn plan(page: &SwarmPage, watcher: &Watcher, shape: Option<ModelShape>, rows: usize, probe: Option<Duration>) {
    let Some(ModelShape { id, blocks, hidden_size }) = shape else { return std::future::pending().await };
    let (model, swarm) = (id.to_string(), watcher.swarm.clone());
    // Through this machine from hop to hop, so that the way to each is measured too.
    let relay = if probe.is_some() { RelayMode::Star } else { RelayMode::default() };
    let config =
        SequenceConfig { relay, request_timeout: PATIENCE, give_up_after: PATIENCE, ..SequenceConfig::default() };
    let (sender, mut events) = mpsc::channel(EVENTS);
    let sequence = RemoteSequence::new(swarm, id, blocks, hidden_size, config).with_events(sender);
    let (mut measured, mut sent) = (None, None::<Instant>);
    loop {
        if page.is_watched() {
            if probe.is_some_and(|period| sent.is_none_or(|at| at.elapsed() >= period)) {
                sent = Some(Instant::now());
                measured = pass(&sequence, &model, rows).await;
            }
            let routes = expected(&sequence, &model, rows).await.into_iter().chain(measured.clone()).collect();
            *watcher.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes;
        }
        while let Ok(event) = events.try_recv() {
            if let SwarmEvent::HopFailed { peer, span, reason } = event {
                page.fail(&peer, Some(span.to_string()), format!("failed a pass: {reason}"));
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The way that a pass would take now.
async fn expected(sequence: &RemoteSequence, model: &str, rows: usize) -> Option<ShownRoute> {
    // That blocks are missing the page shows in any case.
    let explained =
        sequence.explain(rows).await.inspect_err(|error| tracing::debug!(%error, "no route can be planned"));
    let route = explained.ok()?.route.ok()?;
    let hops = route.hops.iter().map(|(hop, cost)| shown(*hop, cost.way, cost.queue, cost.compute));
    Some(ShownRoute { model: model.to_owned(), measured: false, rows, seconds: route.seconds, hops: hops.collect() })
}

/// Sends a pass and says what each hop took. What is in it does not matter, and nothing of it is kept.
async fn pass(sequence: &RemoteSequence, model: &str, rows: usize) -> Option<ShownRoute> {
    let length = u32::try_from(rows).ok()?;
    let text = vec![0.01; rows.checked_mul(sequence.hidden())?];
    let input = PassInput { lengths: vec![length], text, read_rows: None, tables: None };
    let begin = Instant::now();
    let passed = sequence.forward(input, false).await;
    let (_, trace) = passed.inspect_err(|error| tracing::warn!("the pass failed: {error}")).ok()?;
    let seconds = begin.elapsed().as_secs_f64();
    let hops = trace.hops().zip(trace.timings()).map(|(hop, timing)| {
        let (queue, compute) = (timing.queued.as_secs_f64(), timing.computed.as_secs_f64());
        shown(hop, (timing.elapsed.as_secs_f64() - queue - compute).max(0.0), queue, compute)
    });
    Some(ShownRoute { model: model.to_owned(), measured: true, rows, seconds, hops: hops.collect() })
}

fn shown(hop: Hop, way_s: f64, queue_s: f64, compute_s: f64) -> RouteHop {
    RouteHop { peer: hop.peer.to_string(), blocks: [hop.span.start(), hop.span.end()], way_s, queue_s, compute_s }
}

impl Client for Watcher {
    fn routes(&self) -> Vec<ShownRoute> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn metrics(&self) -> String {
        let mut registry = Registry::with_prefix("petals_monitor");
        let peers = Gauge::<i64>::default();
        peers.set(self.swarm.connected_peers().len() as i64);
        registry.register("peers", "Members of the swarm that this client is connected to", peers);
        let mut text = String::new();
        // Writing into memory does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
