//! Figures for Prometheus, written anew for each scrape: counters that the executor keeps, and what is so at this moment.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::ServerView;
use crate::machine::memory::resident;

type Now = Gauge<f64, std::sync::atomic::AtomicU64>;

/// The text that Prometheus reads of a server, or of a node that is about to be one.
pub(crate) fn metrics(view: Option<&ServerView>) -> String {
    let mut registry = Registry::with_prefix("petals_node");
    let ready = view.is_some_and(|view| view.ready().is_ok());
    gauge(
        &mut registry,
        "ready",
        "Whether the blocks are loaded and announced, and requests are taken",
        f64::from(ready),
    );
    if let Some(view) = view {
        counted(&mut registry, view);
        now(&mut registry, view);
    }
    let mut text = String::new();
    // Writing into memory does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// What was counted since the start.
fn counted(registry: &mut Registry, view: &ServerView) {
    let totals = view.executor.totals();
    registry.register("passes", "Passes that were taken on, by what they do", totals.passes);
    registry.register("tokens", "Tokens that passes brought to the blocks, on their way forward", totals.tokens);
    registry.register("refusals", "Requests that were not served, by the reason", totals.refusals);
    let busy = Counter::<f64, std::sync::atomic::AtomicU64>::default();
    busy.inc_by(totals.busy_us.get() as f64 / 1e6);
    registry.register("compute_seconds", "Time in which the blocks computed", busy);
    let traffic = view.swarm.traffic();
    let bytes = Family::<[(&str, &str); 1], Counter>::default();
    bytes.get_or_create(&[("direction", "in")]).inc_by(traffic.bytes_in);
    bytes.get_or_create(&[("direction", "out")]).inc_by(traffic.bytes_out);
    registry.register("stream_bytes", "Bytes of block streams", bytes);
    let streams = Family::<[(&str, &str); 1], Counter>::default();
    for (what, count) in [
        ("opened", traffic.streams_opened),
        ("accepted", traffic.streams_accepted),
        ("refused", traffic.streams_refused),
    ] {
        streams.get_or_create(&[("what", what)]).inc_by(count);
    }
    registry.register("streams", "Block streams that were opened here, accepted from others, and refused", streams);
    let asked = view.swarm.directory_traffic().total();
    counter(registry, "directory_requests", "Requests of the hash table that others sent", asked);
}

/// What is so at this moment.
fn now(registry: &mut Registry, view: &ServerView) {
    let info = view.info();
    let labels = [
        ("version", info.version.clone()),
        ("peer", view.swarm.local_peer().to_string()),
        ("model", info.model.to_string()),
        ("device", info.device.clone()),
        ("dtype", info.dtype.clone()),
    ];
    registry.register("build", "What this node is.", Info::new(Vec::from(labels)));
    gauge(registry, "block_first", "The first block that is served", f64::from(info.span.start()));
    gauge(registry, "block_end", "The block behind the last one that is served", f64::from(info.span.end()));
    gauge(registry, "moving", "Whether it is about to serve other blocks", f64::from(info.moving_to.is_some()));
    gauge(registry, "queue", "Passes waiting or running", f64::from(info.queue_depth));
    gauge(registry, "peers", "Peers that it is connected to", view.swarm.connected_peers().len() as f64);
    gauge(registry, "sessions", "Sessions that are open", view.executor.sessions() as f64);
    let (cache, stash) = view.executor.in_use();
    gauge(registry, "cache_bytes", "Memory that sessions' keys and values have taken", cache.used as f64);
    gauge(registry, "cache_limit_bytes", "Memory that they may take", cache.of as f64);
    gauge(registry, "stash_bytes", "Memory of what training forwards left", stash.used as f64);
    gauge(registry, "stash_limit_bytes", "Memory that it may take", stash.of as f64);
    let weights = view.executor.blocks().map_or(0, |blocks| blocks.weight_bytes());
    gauge(registry, "weight_bytes", "Memory of the weights", weights as f64);
    if let Some(bytes) = resident() {
        gauge(registry, "resident_bytes", "Memory of this process", bytes as f64);
    }
    let division = view.executor.blocks().map(|blocks| blocks.division());
    let of_devices = Family::<[(&str, String); 1], Now>::default();
    let of_parts = Family::<[(&str, String); 1], Now>::default();
    for (span, place) in division.iter().flat_map(|division| division.parts()) {
        let device = || [("device", place.device.to_string())];
        of_parts.get_or_create(&device()).inc_by(span.len() as f64);
        if let Some(bytes) = place.device.free_bytes() {
            of_devices.get_or_create(&device()).set(bytes as f64);
        }
    }
    registry.register("device_blocks", "Blocks on each device", of_parts);
    let help = "Memory that each device with its own has free; by Vulkan: has in all";
    registry.register("device_free_bytes", help, of_devices);
    for (name, help, rate) in [
        (
            "forward_tokens_per_second",
            "Speed of forwards through the whole span, as announced",
            info.forward_tokens_per_s,
        ),
        (
            "decode_tokens_per_second",
            "Steps of one session through the whole span, as announced",
            info.decode_tokens_per_s,
        ),
    ] {
        if let Some(rate) = rate {
            gauge(registry, name, help, f64::from(rate));
        }
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Now::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}
