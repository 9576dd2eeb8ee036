//! A hop that is much slower than usual is raced by another server, if one holds its blocks.
//!
//! Silence is what counts: a server that goes on answering other requests is busy, not gone. The first good answer wins and
//! the other request is given up, which tells its server.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use petals_swarm::PeerId;

use super::{RelayMode, RemoteSequence, SwarmEvent};
use crate::lock::lock;
use crate::planner::{Exclusion, Hop, Planner, Punctuality};
use crate::servers::hop::HopError;
use crate::servers::peers::PassSize;

/// A hop is late when it takes this many times as long as expected.
const LATE: f64 = 4.0;
/// A server that has not answered yet may be behind a slow link: it gets this many times as long.
const UNKNOWN: u32 = 5;
/// A server that kept a chain waiting gets this part of the usual time.
const SUSPECTED: u32 = 4;
/// A backward computes about twice as much as its forward, or three times without a stash.
pub(super) const BACKWARD: f64 = 3.0;
/// Races that may begin at once, and requests that earn one more: in a swarm that is slow as a whole, asking twice would
/// make it slower.
const MOST_RACES: f64 = 32.0;
const REQUESTS_PER_RACE: f64 = 10.0;

/// Races so far, and those that may still begin.
#[derive(Debug)]
pub(super) struct Hedges(Mutex<Counts>);

#[derive(Debug, Clone, Copy)]
struct Counts {
    left: f64,
    begun: u64,
    won: u64,
}

impl Default for Hedges {
    fn default() -> Self {
        Self(Mutex::new(Counts { left: MOST_RACES, begun: 0, won: 0 }))
    }
}

impl Hedges {
    /// A request that needed no race.
    pub(super) fn in_time(&self) {
        let mut counts = lock(&self.0);
        counts.left = (counts.left + 1.0 / REQUESTS_PER_RACE).min(MOST_RACES);
    }

    /// Whether another one may begin; if so it counts.
    pub(super) fn begin(&self) -> bool {
        let mut counts = lock(&self.0);
        let may = counts.left >= 1.0;
        if may {
            counts.left -= 1.0;
            counts.begun += 1;
        }
        may
    }
}

impl RemoteSequence {
    /// Races in which a late server was asked beside another one so far, and those that the other one won.
    pub fn races(&self) -> (u64, u64) {
        let counts = *lock(&self.hedges.0);
        (counts.begun, counts.won)
    }

    /// How long a hop may be silent. `work` is what it computes beside a forward.
    pub(super) fn allowance(&self, hop: Hop, pass: PassSize, work: f64) -> Duration {
        let usual = self.config.hedge_after;
        let Some(cost) = self.view.cost(hop.peer, pass) else { return usual };
        let usually = self.view.peers().usual_wait(hop.peer, pass.rows);
        let expected = (cost.seconds(hop.span.len(), pass) * work).max(usually.unwrap_or_default());
        let least = if self.view.peers().is_suspected(hop.peer, Instant::now()) {
            usual / SUSPECTED
        } else if usually.is_some() {
            usual
        } else {
            usual * UNKNOWN
        };
        let late = Duration::try_from_secs_f64(LATE * expected).unwrap_or(self.config.request_timeout);
        late.max(least).min(self.config.request_timeout)
    }

    /// Returns when `peer` has been silent for `allowance`, which begins now.
    pub(super) async fn silence(&self, peer: PeerId, allowance: Duration) {
        let started = Instant::now();
        loop {
            let heard = self.view.last_heard(peer).map_or(started, |heard| heard.max(started));
            match allowance.checked_sub(heard.elapsed()).filter(|left| !left.is_zero()) {
                Some(left) => tokio::time::sleep(left).await,
                None => return,
            }
        }
    }

    /// The answer to `first`, which asks `hop`, or, if that is late, to the same asked of another server by `other`.
    pub(super) async fn raced<T, F>(
        &self,
        hop: Hop,
        pass: PassSize,
        work: f64,
        first: impl Future<Output = Result<T, HopError>>,
        other: impl Fn(Hop) -> F,
    ) -> Result<(Hop, T), HopError>
    where
        F: Future<Output = Result<T, HopError>>,
    {
        let (allowance, started) = (self.allowance(hop, pass, work), Instant::now());
        let mut first = pin!(first);
        tokio::select! {
            biased;
            answer = &mut first => {
                self.hedges.in_time();
                let answer = answer?;
                self.view.peers().waited(hop.peer, pass.rows, started.elapsed());
                return Ok((hop, answer));
            }
            () = self.silence(hop.peer, allowance) => {}
        }
        let mut tried = HashSet::from([hop.peer]);
        while let Some(second) = self.substitute(hop, pass, &tried)
            && self.hedges.begin()
        {
            tracing::debug!(peer = %hop.peer, other = %second.peer, span = %hop.span, "a hop is late, asking another one");
            tried.insert(second.peer);
            match select(first, pin!(other(second))).await {
                Either::Left((Ok(answer), _)) => return Ok((hop, answer)),
                // What the first one says counts, unless the other one can do it.
                Either::Left((Err(error), racing)) => {
                    let answer = racing.await.map_err(|_| error)?;
                    return Ok((self.outpaced(hop, second, allowance), answer));
                }
                Either::Right((Ok(answer), _)) => return Ok((self.outpaced(hop, second, allowance), answer)),
                Either::Right((Err(error), waiting)) => {
                    tracing::debug!(peer = %second.peer, %error, "the other one failed");
                    if !matches!(error, HopError::Refused(_)) {
                        self.view.failed(second.peer);
                    }
                    first = waiting;
                }
            }
        }
        // Nobody has all of these blocks, but perhaps several servers have together.
        if tried.len() == 1 && self.could_do_without(hop, pass) && self.hedges.begin() {
            return Err(HopError::Slow(allowance));
        }
        Ok((hop, first.await?))
    }

    /// The answer of a server whose work nobody can take over by itself: what it has seen must be sent to the other one first. If it
    /// is late and there is another one, that is the error.
    pub(crate) async fn unless_late<T>(
        &self,
        hop: Hop,
        pass: PassSize,
        answer: impl Future<Output = Result<T, HopError>>,
    ) -> Result<T, HopError> {
        let (allowance, started) = (self.allowance(hop, pass, 1.0), Instant::now());
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => {
                self.hedges.in_time();
                self.view.peers().waited(hop.peer, pass.rows, started.elapsed());
                return answer;
            }
            () = self.silence(hop.peer, allowance) => {}
        }
        if self.could_do_without(hop, pass) && self.hedges.begin() {
            return Err(HopError::Slow(allowance));
        }
        answer.await
    }

    fn outpaced(&self, slow: Hop, by: Hop, after: Duration) -> Hop {
        lock(&self.hedges.0).won += 1;
        self.view.failed(slow.peer);
        self.tell(SwarmEvent::Outpaced { peer: slow.peer, span: slow.span, by: by.peer, after });
        by
    }

    /// Another server that holds all of a hop's blocks and is not banned.
    fn substitute(&self, hop: Hop, pass: PassSize, tried: &HashSet<PeerId>) -> Option<Hop> {
        let candidates = self.candidates(pass, RelayMode::Star, tried, Exclusion::Without);
        let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
        let others = candidates.iter().filter(|candidate| !candidate.banned);
        // Who was on time rather than who only says that it is quick.
        let others = others.map(|candidate| {
            let doubtful = candidate.punctuality != Punctuality::OnTime;
            (doubtful, Hop { peer: candidate.peer, span: hop.span })
        });
        let timed = others.filter_map(|(doubtful, hop)| Some((doubtful, planner.seconds(&[hop])?, hop)));
        let best = timed.min_by(|(a, soon, _), (b, sooner, _)| a.cmp(b).then(soon.total_cmp(sooner)));
        best.map(|(.., hop)| hop)
    }

    /// Whether others hold a hop's blocks and are not banned.
    fn could_do_without(&self, hop: Hop, pass: PassSize) -> bool {
        let candidates = self.candidates(pass, RelayMode::Star, &[hop.peer].into(), Exclusion::Without);
        let planner = Planner::new(&candidates, &self.config.rules, self.blocks);
        planner.fastest(hop.span).is_ok_and(|route| !route.hops.iter().any(|hop| self.is_banned(hop.peer)))
    }
}
