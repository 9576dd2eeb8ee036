//! Figures of the requests, as Prometheus reads them, and the way of the latest text.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petals_client::{Generation, HopUse};
use petals_page::{RouteHop, ShownRoute};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Upper ends of the histograms' buckets for times, in seconds.
const SECONDS: [f64; 16] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0];
/// Upper ends of the histogram's buckets for speeds, in tokens per second.
const SPEEDS: [f64; 16] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4];
/// Hops that are told of, so that a swarm that changes for weeks does not fill the memory.
const HOPS: usize = 256;

type OfModel<M> = Family<ModelLabels, M>;
type Histograms = Family<ModelLabels, Histogram, fn() -> Histogram>;
type OfHop<M> = Family<HopLabels, M>;
type Seconds = Counter<f64, AtomicU64>;
type Value = Gauge<f64, AtomicU64>;

/// Everything counted since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    active: Gauge,
    waiting: Gauge,
    idle: Gauge,
    requests: Family<RequestLabels, Counter>,
    texts: Family<TextLabels, Counter>,
    prompt_tokens: OfModel<Counter>,
    reused_tokens: OfModel<Counter>,
    new_tokens: OfModel<Counter>,
    steps: OfModel<Counter>,
    drafted: OfModel<Counter>,
    accepted: OfModel<Counter>,
    first_token: Histograms,
    each_token: Histograms,
    speed: Histograms,
    hops: HopFigures,
    latest: Mutex<Latest>,
    /// Tokens of all models as they come, without the first ones of texts.
    generated: AtomicU64,
}

/// What is so at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Texts that are being generated.
    pub(super) active: usize,
    /// Requests that wait.
    pub(super) waiting: usize,
    /// Finished texts that servers keep.
    pub(super) idle: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    endpoint: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TextLabels {
    model: String,
    finish: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct HopLabels {
    peer: String,
    blocks: String,
}

/// What is told of hops.
#[derive(Debug, Default)]
struct HopFigures {
    steps: OfHop<Counter>,
    elapsed: OfHop<Seconds>,
    computed: OfHop<Seconds>,
    queued: OfHop<Seconds>,
    /// Of the last generation, each step.
    latest: OfHop<Value>,
    latest_queued: OfHop<Value>,
    used: OfHop<Gauge>,
}

/// The hops that are told of, with the number of the generation that used each last, and the way of the last one.
#[derive(Debug, Default)]
struct Latest {
    generations: u64,
    hops: BTreeMap<HopLabels, u64>,
    route: Option<ShownRoute>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("petals");
        let seconds = || Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let speeds = Family::new_with_constructor((|| Histogram::new(SPEEDS)) as fn() -> Histogram);
        let to = &mut registry;
        let active = told(to, "active_texts", "Texts that are being generated", Gauge::default());
        let waiting = told(to, "queued_requests", "Requests that wait for their turn", Gauge::default());
        let idle = "Finished texts that servers keep for what follows them";
        let idle = told(to, "idle_sessions", idle, Gauge::default());
        let requests = "Requests by model, endpoint and HTTP status; 499: the client left";
        let requests = told(to, "requests", requests, Family::default());
        let texts = told(to, "texts", "Texts by model and how they ended", Family::default());
        let prompt_tokens = told(to, "prompt_tokens", "Tokens of prompts", Family::default());
        let reused = "Tokens of prompts that servers had from the text before";
        let reused_tokens = told(to, "reused_tokens", reused, Family::default());
        let new_tokens = told(to, "completion_tokens", "Tokens generated", Family::default());
        let steps = told(to, "steps", "Steps through all blocks", Family::default());
        let drafted = told(to, "foreseen_tokens", "Tokens that were foreseen and sent", Family::default());
        let accepted = told(to, "accepted_tokens", "Tokens that were foreseen rightly", Family::default());
        let first_token = told(to, "time_to_first_token_seconds", "From a request to the first token", seconds());
        let each_token = told(to, "time_per_token_seconds", "Between further tokens", seconds());
        let speed = told(to, "tokens_per_second", "Of each text, behind its first token", speeds);
        let hops = HopFigures {
            steps: told(to, "hop_steps", "Steps of a hop", Family::default()),
            elapsed: told(to, "hop_seconds", "Time of a hop's steps, way included", Family::default()),
            computed: told(to, "hop_compute_seconds", "The part in which the server computed", Family::default()),
            queued: told(to, "hop_queue_seconds", "The part spent waiting for others there", Family::default()),
            latest: told(to, "hop_step_seconds", "A step of the latest text", Family::default()),
            latest_queued: told(
                to,
                "hop_step_queue_seconds",
                "The wait in a step of the latest text",
                Family::default(),
            ),
            used: told(to, "route_hop", "1 for the hops of the latest text", Family::default()),
        };
        let latest = Mutex::default();
        Self {
            registry,
            active,
            waiting,
            idle,
            requests,
            texts,
            prompt_tokens,
            reused_tokens,
            new_tokens,
            steps,
            drafted,
            accepted,
            first_token,
            each_token,
            speed,
            hops,
            latest,
            generated: AtomicU64::new(0),
        }
    }
}

/// Registers a figure, and returns it for whoever counts.
fn told<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// A request was answered, or left without an answer.
    pub(super) fn request(&self, model: &str, endpoint: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { model: model.to_owned(), endpoint, status }).inc();
    }

    /// A text ended: `stop`, `length`, `cancelled` or `failed`.
    pub(super) fn text(&self, model: &str, how: &'static str) {
        self.texts.get_or_create(&TextLabels { model: model.to_owned(), finish: how }).inc();
    }

    /// The first tokens of a text came after `time`.
    pub(super) fn first_token(&self, model: &str, time: Duration) {
        self.first_token.get_or_create(&of(model)).observe(time.as_secs_f64());
    }

    /// `tokens` tokens came `time` after those before.
    pub(super) fn tokens(&self, model: &str, tokens: usize, time: Duration) {
        if tokens > 0 {
            self.generated.fetch_add(tokens as u64, Ordering::Relaxed);
            let times = self.each_token.get_or_create(&of(model));
            (0..tokens).for_each(|_| times.observe(time.as_secs_f64() / tokens as f64));
        }
    }

    /// A text is complete.
    pub(super) fn generation(&self, model: &str, prompt: usize, generation: &Generation) {
        let labels = of(model);
        for (counter, count) in [
            (&self.prompt_tokens, prompt),
            (&self.reused_tokens, generation.reused),
            (&self.new_tokens, generation.tokens.len()),
            (&self.steps, generation.steps),
            (&self.drafted, generation.drafted),
            (&self.accepted, generation.accepted),
        ] {
            counter.get_or_create(&labels).inc_by(count as u64);
        }
        if let Some(speed) = generation.tokens_per_s() {
            self.speed.get_or_create(&labels).observe(speed);
        }
        let mut latest = self.lock();
        latest.generations += 1;
        for hop in &generation.hops {
            self.hop(&mut latest, hop);
        }
        // Which hops the latest text went through.
        let number = latest.generations;
        for (labels, last_use) in &latest.hops {
            self.hops.used.get_or_create(labels).set(i64::from(*last_use == number));
        }
        latest.route = Some(route(model, &generation.hops));
    }

    /// Tokens that were generated since the start, by all models.
    pub(super) fn new_tokens(&self) -> u64 {
        self.generated.load(Ordering::Relaxed)
    }

    /// The way that the latest text took, with the times of one of its steps.
    pub(super) fn route(&self) -> Option<ShownRoute> {
        self.lock().route.clone()
    }

    /// The text that Prometheus reads.
    pub(super) fn render(&self, now: Now) -> String {
        for (gauge, value) in [(&self.active, now.active), (&self.waiting, now.waiting), (&self.idle, now.idle)] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing into memory does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn hop(&self, latest: &mut Latest, hop: &HopUse) {
        let labels = HopLabels { peer: hop.peer.to_string(), blocks: hop.span.to_string() };
        let steps = u32::try_from(hop.steps).unwrap_or(u32::MAX).max(1);
        let HopFigures { steps: all_steps, elapsed, computed, queued, .. } = &self.hops;
        all_steps.get_or_create(&labels).inc_by(hop.steps as u64);
        elapsed.get_or_create(&labels).inc_by(hop.timing.elapsed.as_secs_f64());
        computed.get_or_create(&labels).inc_by(hop.timing.computed.as_secs_f64());
        queued.get_or_create(&labels).inc_by(hop.timing.queued.as_secs_f64());
        self.hops.latest.get_or_create(&labels).set((hop.timing.elapsed / steps).as_secs_f64());
        self.hops.latest_queued.get_or_create(&labels).set((hop.timing.queued / steps).as_secs_f64());
        latest.hops.insert(labels, latest.generations);
        if latest.hops.len() > HOPS {
            let oldest = latest.hops.iter().min_by_key(|(_, last_use)| **last_use).map(|(labels, _)| labels.clone());
            if let Some(labels) = oldest {
                latest.hops.remove(&labels);
                self.hops.forget(&labels);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Latest> {
        // What is in it is whole whatever happens while it is locked.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HopFigures {
    fn forget(&self, labels: &HopLabels) {
        let Self { steps, elapsed, computed, queued, latest, latest_queued, used } = self;
        for counters in [elapsed, computed, queued] {
            counters.remove(labels);
        }
        for gauges in [latest, latest_queued] {
            gauges.remove(labels);
        }
        steps.remove(labels);
        used.remove(labels);
    }
}

fn of(model: &str) -> ModelLabels {
    ModelLabels { model: model.to_owned() }
}

/// The way of a text, and where the time of one of its steps went.
fn route(model: &str, hops: &[HopUse]) -> ShownRoute {
    let of_hop = |hop: &HopUse| {
        let each = |time: Duration| time.as_secs_f64() / hop.steps.max(1) as f64;
        let (elapsed, queue_s, compute_s) =
            (each(hop.timing.elapsed), each(hop.timing.queued), each(hop.timing.computed));
        let way_s = (elapsed - queue_s - compute_s).max(0.0);
        let blocks = [hop.span.start(), hop.span.end()];
        RouteHop { peer: hop.peer.to_string(), blocks, way_s, queue_s, compute_s }
    };
    let hops: Vec<RouteHop> = hops.iter().map(of_hop).collect();
    let seconds = hops.iter().map(|hop| hop.way_s + hop.queue_s + hop.compute_s).sum();
    ShownRoute { model: model.to_owned(), measured: true, rows: 1, seconds, hops }
}

#[cfg(test)]
mod tests {
    use petals_client::{HopTiming, PeerId, Span};

    use super::*;

    #[test]
    fn figures_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.request("m:\"a\"", "chat", 200);
        metrics.text("m", "stop");
        metrics.first_token("m", Duration::from_millis(30));
        metrics.tokens("m", 4, Duration::from_millis(400));
        metrics.tokens("m", 0, Duration::from_millis(400));
        let hop = |peer| HopUse { peer, span: Span::new(0, 4).unwrap(), steps: 2, timing: HopTiming::default() };
        let peers: Vec<PeerId> = (0..=HOPS).map(|_| PeerId::random()).collect();
        for peer in &peers {
            let mut latest = metrics.lock();
            latest.generations += 1;
            metrics.hop(&mut latest, &hop(*peer));
        }
        let text = metrics.render(Now { active: 2, waiting: 3, idle: 4 });
        for line in [
            "petals_active_texts 2",
            "petals_queued_requests 3",
            "petals_idle_sessions 4",
            "petals_requests_total{model=\"m:\\\"a\\\"\",endpoint=\"chat\",status=\"200\"} 1",
            "petals_texts_total{model=\"m\",finish=\"stop\"} 1",
            "petals_time_to_first_token_seconds_bucket{le=\"0.02\",model=\"m\"} 0",
            "petals_time_to_first_token_seconds_bucket{le=\"0.05\",model=\"m\"} 1",
            "petals_time_to_first_token_seconds_bucket{le=\"+Inf\",model=\"m\"} 1",
            "petals_time_per_token_seconds_bucket{le=\"0.1\",model=\"m\"} 4",
            "petals_time_per_token_seconds_count{model=\"m\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
        assert_eq!(text.matches("petals_hop_steps_total{").count(), HOPS, "the oldest hop is forgotten");
        assert!(!text.contains(&peers[0].to_string()) && text.contains(&peers[HOPS].to_string()));
        assert!(text.ends_with("# EOF\n"));
        // Every figure has a help and a type, once.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let base =
                ["_bucket", "_sum", "_count", "_total"].iter().fold(name, |name, end| name.trim_end_matches(end));
            assert_eq!(text.matches(&format!("# TYPE {base} ")).count(), 1, "{name}");
        }
    }
}
