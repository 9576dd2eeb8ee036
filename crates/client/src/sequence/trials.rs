//! Servers of which nothing is known are tried out before work depends on them.
//!
//! What a server announces costs it nothing, and each wrong choice costs a whole pass or more. So where there is a choice, those of whom nothing is
//! known are asked for one row of one block, many at a time and beside whatever else goes on. The planner takes nobody of them for blocks of
//! somebody who was on time. Before a route is planned for which nobody was, the first answers are waited for, and as long again for others
//! that are not much farther away. Nobody can tell such a request from a short text's, and whoever is quick only here is charged for its passes.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_protocol::{Injection, PassLayout, Span, WeightChange, WireDtype};
use petals_swarm::PeerId;
use rand::Rng;
use rand::seq::SliceRandom;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{RelayMode, RemoteSequence};
use crate::lock::lock;
use crate::planner::{Choices, Exclusion, Hop, Planner};
use crate::servers::exchange::{Ends, Flow, HopInput};
use crate::servers::hop::HopError;
use crate::servers::peers::{Measurement, PassSize};
use crate::servers::view::SwarmView;

/// Trials under way at most.
const MOST: usize = 64;
/// Longest wait for somebody who is on time. Whoever takes longer than this for a row is hardly worth more.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Others are waited for so long at least once there is somebody.
const LEAST_GRACE: Duration = Duration::from_millis(20);
/// Who has not answered after so long counts as late by as much.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who refused is asked again after so long, and who was late, since it may have been an accident.
const AGAIN: Duration = Duration::from_secs(60);
/// Without any news choices are looked at again after this.
const MAX_AGE: Duration = Duration::from_secs(2);
/// Values of the row are within this of zero, as those of embedded texts are.
const LARGEST: f32 = 0.1;

/// The trials of one client.
#[derive(Debug, Default)]
pub(super) struct Trials {
    shared: Arc<Shared>,
    /// They end with the sequence.
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The view's version when choices were last looked at with nothing to wait for, and when that was.
    settled: Option<(u64, Instant)>,
    under_way: HashMap<PeerId, Hop>,
    /// When a plan last waited in vain.
    gave_up: Option<Instant>,
    /// When choices were first looked at.
    began: Option<Instant>,
    /// When each was last tried, not long ago.
    tried: HashMap<PeerId, Instant>,
}

/// What one trial needs.
struct Trial {
    view: Arc<SwarmView>,
    shared: Arc<Shared>,
    hop: Hop,
    last: bool,
    hidden: usize,
    dtype: WireDtype,
    patience: Duration,
}

impl RemoteSequence {
    /// Begins trials where there is a choice among servers of which nothing is known, and waits until each block for which there is one has somebody who was
    /// on time, if that comes soon.
    pub(super) async fn try_out(&self, span: Span, pass: PassSize) {
        if self.config.trials == 0 || self.trials.is_settled(self.view.version()) {
            return;
        }
        let (started, mut waited) = (Instant::now(), false);
        let mut until = started + self.trials.patience();
        loop {
            let news = self.trials.shared.news.notified();
            let version = self.view.version();
            let choices = self.choices(span, pass);
            self.begin_trials(&choices);
            let (blocks, others) = self.trials.awaited(&choices);
            if !blocks {
                // As long again for others, who may be better.
                let grace = started.elapsed().max(LEAST_GRACE);
                until = until.min(Instant::now() + if waited && others { grace } else { Duration::ZERO });
                waited = false;
            }
            if (!blocks && !others) || Instant::now() >= until {
                self.trials.settle(version, blocks);
                return;
            }
            waited |= blocks;
            let _ = tokio::time::timeout_at(until.into(), news).await;
        }
    }

    fn choices(&self, span: Span, pass: PassSize) -> Choices {
        let candidates = self.candidates(pass, RelayMode::Star, &HashSet::new(), Exclusion::Rejected);
        Planner::new(&candidates, &self.config.rules, self.blocks).choices(span)
    }

    /// As many as may be at a time for each block, in any order: what they announce is what is not believed.
    fn begin_trials(&self, choices: &Choices) {
        let (mut state, now) = (lock(&self.trials.shared.state), Instant::now());
        state.tried.retain(|_, at| now.duration_since(*at) < AGAIN);
        let mut wanted = choices.unknown.clone();
        wanted.shuffle(&mut rand::rng());
        wanted.extend(&choices.late);
        // Whom an earlier run found to be late is left alone for as long: opening a dozen streams would cost a short run more than it could gain.
        let began = *state.began.get_or_insert(now);
        let late: HashSet<PeerId> = choices.late.iter().map(|hop| hop.peer).collect();
        let mut at_block: HashMap<u32, usize> = HashMap::new();
        state.under_way.values().for_each(|hop| *at_block.entry(hop.span.start()).or_default() += 1);
        for hop in wanted {
            let here = at_block.entry(hop.span.start()).or_default();
            let last = state.tried.get(&hop.peer).copied().or(late.contains(&hop.peer).then_some(began));
            let lately = last.is_some_and(|at| now.duration_since(at) < AGAIN);
            if state.under_way.len() >= MOST
                || *here >= self.config.trials
                || lately
                || state.under_way.contains_key(&hop.peer)
            {
                continue;
            }
            *here += 1;
            state.under_way.insert(hop.peer, hop);
            state.tried.insert(hop.peer, now);
            let trial = Trial {
                view: self.view.clone(),
                shared: self.trials.shared.clone(),
                hop,
                last: hop.span.end() == self.blocks.end(),
                hidden: self.hidden,
                dtype: self.config.wire_dtype,
                patience: PATIENCE.min(self.config.request_timeout),
            };
            let mut tasks = lock(&self.trials.tasks);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(trial.run());
        }
    }
}

impl Trials {
    fn is_settled(&self, version: u64) -> bool {
        let settled = lock(&self.shared.state).settled;
        settled.is_some_and(|(at, when)| at == version && when.elapsed() < MAX_AGE)
    }

    fn settle(&self, version: u64, in_vain: bool) {
        let (mut state, now) = (lock(&self.shared.state), Instant::now());
        state.settled = Some((version, now));
        if in_vain {
            state.gave_up.get_or_insert(now);
        }
    }

    /// How long a plan waits for somebody who is on time: not again while the same ones may still be silent.
    fn patience(&self) -> Duration {
        let mut state = lock(&self.shared.state);
        state.gave_up = state.gave_up.filter(|at| at.elapsed() < PATIENCE);
        if state.gave_up.is_some() { Duration::ZERO } else { LONGEST_WAIT }
    }

    /// Whether a block waits for somebody who is on time and may still come, and whether any trial is under way that matters.
    fn awaited(&self, choices: &Choices) -> (bool, bool) {
        let under_way = &lock(&self.shared.state).under_way;
        let blocks = choices.settling.iter().any(|peer| under_way.contains_key(peer));
        (blocks, blocks || choices.unknown.iter().any(|hop| under_way.contains_key(&hop.peer)))
    }
}

impl Trial {
    async fn run(self) {
        let asked = tokio::time::timeout(self.patience, self.ask()).await;
        let peer = self.hop.peer;
        match asked {
            Ok(Ok(measured)) => {
                if let Some(info) = self.view.info(peer) {
                    self.view.peers().tried(peer, measured, &info);
                }
            }
            Err(_) | Ok(Err(HopError::Timeout(_))) => {
                self.view.peers().tried_in_vain(peer, self.patience.as_secs_f64());
            }
            // Nothing is held against who has no room or takes no such request.
            Ok(Err(HopError::Refused(_) | HopError::OldServer { .. } | HopError::Weights(_))) => {}
            // No work depended on it, so nobody is told of a failure.
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a server that was tried out failed");
                self.view.failed(peer);
            }
        }
        tracing::debug!(%peer, punctuality = ?self.view.peers().punctuality(peer), "tried a server out");
        lock(&self.shared.state).under_way.remove(&peer);
        self.view.changed();
        self.shared.news.notify_waiters();
    }

    async fn ask(&self) -> Result<Measurement, HopError> {
        let connection = self.view.connection(self.hop.peer, self.patience).await?;
        let layout = PassLayout {
            span: self.hop.span,
            lengths: vec![1],
            prefix_len: 0,
            injection: Injection::None,
            weights: WeightChange::None,
            read_rows: self.last.then(|| vec![0]),
        };
        let row: Vec<f32> = {
            let mut random = rand::rng();
            (0..self.hidden).map(|_| random.random_range(-LARGEST..LARGEST)).collect()
        };
        let flow = Flow { text: row.into(), prefix: None };
        let input = HopInput {
            layout,
            flow: Some(&flow),
            ends: Ends::default(),
            tables: None,
            hidden: self.hidden,
            dtype: self.dtype,
            patience: self.patience,
        };
        Ok(input.forward(&connection, None).await?.measured)
    }
}
