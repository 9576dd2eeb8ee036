//! `petals-tune monitor`.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use petals_client::{ModelShape, RemoteSequence, SequenceConfig, SwarmHandle};
use petals_page::{Key, RouteHop, Rules, ShownRoute, SwarmPage, router, serve};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use super::session::{self, SwarmLog};
use super::stop::StopSignal;
use super::swarm_page::{Client, ClientPage};
use super::{key, model};
use crate::args::MonitorArgs;
use crate::error::CliError;
use crate::output::{Monitoring, Output};

/// Time between two looks at the route, while somebody looks at the page.
const PERIOD: Duration = Duration::from_secs(5);
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
        Some(model) => Some(model::found(model, false, None, output).await?),
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
            () = plan(&page, &watcher, shape, args.rows) => {}
        }
    };
    serve(listener, routes, stopped, GRACE).await;
    swarm.shutdown().await;
    Ok(())
}

/// Plans a pass again and again, as long as somebody looks; waits for ever without a model.
async fn plan(page: &SwarmPage, watcher: &Watcher, shape: Option<ModelShape>, rows: usize) {
    let Some(ModelShape { id, blocks, hidden_size }) = shape else { return std::future::pending().await };
    let (model, swarm) = (id.to_string(), watcher.swarm.clone());
    let sequence = RemoteSequence::new(swarm, id, blocks, hidden_size, SequenceConfig::default());
    loop {
        if page.is_watched() {
            let routes = match sequence.explain(rows).await.map(|explained| explained.route) {
                Ok(Ok(route)) => {
                    let hops = route.hops.iter().map(|(hop, cost)| RouteHop {
                        peer: hop.peer.to_string(),
                        blocks: [hop.span.start(), hop.span.end()],
                        way_s: cost.way,
                        queue_s: cost.queue,
                        compute_s: cost.compute,
                    });
                    let (model, hops) = (model.clone(), hops.collect());
                    vec![ShownRoute { model, measured: false, rows, seconds: route.seconds, hops }]
                }
                // That blocks are missing the page shows in any case.
                Ok(Err(_)) => Vec::new(),
                Err(error) => {
                    tracing::debug!(%error, "no route can be planned");
                    Vec::new()
                }
            };
            *watcher.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes;
        }
        tokio::time::sleep(PERIOD).await;
    }
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
