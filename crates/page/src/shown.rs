//! What is shown of a swarm and of the program that shows it.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use petals_protocol::ServerInfo;
use petals_swarm::{SwarmHandle, Traffic};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::history::{History, STEP, Sample};
use super::state::{Failure, JoinLines, ShownRoute, State};
use super::watch::{Watch, now_ms};

/// The swarm is asked so often while somebody looks at it. Each time is a lookup of every block.
const WATCHED: Duration = Duration::from_secs(4);
/// And so often while nobody does.
const UNWATCHED: Duration = Duration::from_secs(60);
/// Somebody who has not asked for so long does not look any more.
const ATTENTION: Duration = Duration::from_secs(20);

/// What a program adds to the page of a swarm.
pub trait Shown: Debug + Send + Sync + 'static {
    /// `node` or `client`.
    fn role(&self) -> &'static str;

    /// Why the program does not do yet, or no longer, what it is there for.
    ///
    /// # Errors
    /// In words for a person.
    fn ready(&self) -> Result<(), String>;

    /// What it says of itself now, if it serves.
    fn own(&self) -> Option<ServerInfo> {
        None
    }

    /// What it has done since its start.
    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// The ways that its passes take.
    fn routes(&self) -> Vec<ShownRoute> {
        Vec::new()
    }

    /// Lines for other machines.
    fn join(&self) -> Option<JoinLines> {
        None
    }

    /// What did not go as it should in the program itself, the latest first.
    fn failures(&self) -> Vec<Failure> {
        Vec::new()
    }

    /// Figures in OpenMetrics' text format.
    fn metrics(&self) -> String;
}

/// What a program has done since its start, as far as it does such things.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Tokens forward.
    pub tokens: Option<u64>,
    /// Passes.
    pub passes: Option<u64>,
    /// Passes waiting or running now.
    pub queue: Option<u32>,
}

/// The page of a swarm: asks it as long as somebody looks.
#[derive(Debug)]
pub struct SwarmPage {
    watch: Watch,
    program: Arc<dyn Shown>,
    history: Mutex<History>,
    asked: Mutex<Option<Instant>>,
    wake: Notify,
}

impl SwarmPage {
    /// A page of everything that a swarm serves, or of models of one name.
    pub fn new(swarm: SwarmHandle, name: Option<String>, program: Arc<dyn Shown>) -> Self {
        let watch = Watch::new(swarm, name);
        Self { watch, program, history: Mutex::default(), asked: Mutex::default(), wake: Notify::new() }
    }

    /// Keeps the page up to date, for ever.
    pub async fn run(&self) -> Infallible {
        tokio::join!(self.look(), self.sample()).0
    }

    /// What did not go as it should among the servers, for those who know.
    pub fn fail(&self, peer: &petals_swarm::PeerId, blocks: Option<String>, what: String) {
        self.watch.fail(peer, blocks, what);
    }

    async fn look(&self) -> Infallible {
        loop {
            let begin = Instant::now();
            self.watch.look(self.program.own()).await;
            while begin.elapsed() < self.period() {
                tokio::select! {
                    () = tokio::time::sleep(self.period().saturating_sub(begin.elapsed())) => {}
                    () = self.wake.notified() => {}
                }
            }
        }
    }

    fn period(&self) -> Duration {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_some_and(|at| at.elapsed() < ATTENTION) { WATCHED } else { UNWATCHED }
    }

    async fn sample(&self) -> Infallible {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let (mut counts, mut traffic, mut at) = (self.program.counts(), self.watch.swarm().traffic(), Instant::now());
        loop {
            ticks.tick().await;
            let now = (self.program.counts(), self.watch.swarm().traffic(), Instant::now());
            let seconds = now.2.saturating_duration_since(at).as_secs_f64().max(1e-3);
            let sample = self.between((&counts, &traffic), (&now.0, &now.1), seconds);
            self.history.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            (counts, traffic, at) = now;
        }
    }

    fn between(&self, before: (&Counts, &Traffic), now: (&Counts, &Traffic), seconds: f64) -> Sample {
        let rate = |before: u64, now: u64| (now.saturating_sub(before) as f64 / seconds) as f32;
        let known = |before: Option<u64>, now: Option<u64>| Some(rate(before.unwrap_or_default(), now?));
        let models = self.watch.models(self.program.own());
        let weakest = models.iter().flat_map(|model| &model.tokens_per_s).copied().fold(f32::INFINITY, f32::min);
        Sample {
            tokens: known(before.0.tokens, now.0.tokens),
            passes: known(before.0.passes, now.0.passes),
            queue: now.0.queue,
            bytes_in: rate(before.1.bytes_in, now.1.bytes_in),
            bytes_out: rate(before.1.bytes_out, now.1.bytes_out),
            servers: models.iter().map(|model| model.servers.len() + model.left_out).sum::<usize>() as u32,
            weakest: if weakest.is_finite() { weakest } else { 0.0 },
        }
    }

    /// Whether somebody looks at the page.
    pub fn is_watched(&self) -> bool {
        self.period() == WATCHED
    }

    /// Everything, as JSON for the page; whoever asks is taken to look on for a while.
    pub fn state_json(&self) -> String {
        // Numbers that JSON has not are written as null, so that nothing is left to fail.
        serde_json::to_string(&self.state()).unwrap_or_else(|_| "{}".to_owned())
    }

    /// Everything, for the page; whoever asks is taken to look on for a while.
    fn state(&self) -> State {
        let before = self.asked.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
        if before.is_none_or(|at| at.elapsed() >= ATTENTION) {
            self.wake.notify_one();
        }
        let mut failures = self.program.failures();
        failures.extend(self.watch.failures());
        failures.sort_by_key(|failure| std::cmp::Reverse(failure.time_ms));
        State {
            format: 1,
            version: env!("CARGO_PKG_VERSION"),
            role: self.program.role(),
            now_ms: now_ms(),
            peer: self.watch.swarm().local_peer().to_string(),
            not_ready: self.program.ready().err(),
            connected: self.watch.swarm().connected_peers().len(),
            looked_ms_ago: self.watch.looked().map(|at| at.elapsed().as_millis() as u64),
            models: self.watch.models(self.program.own()),
            routes: self.program.routes(),
            failures,
            join: self.program.join(),
            history: self.history.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn program(&self) -> &dyn Shown {
        self.program.as_ref()
    }
}
