//! Asking the directory: who is listed, and of some of them what they are.
//!
//! Names cost some requests for each block and records some for each server, so names are asked for seldom, and records only of a [`Sample`]. What is in
//! use is asked for again, as are those that the user named; of the others a part makes room for strangers each time that there are new names, so that in the long run all
//! are looked at.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_protocol::ServerState;
use petals_swarm::{Listed, LookupError, PeerId, network_of};
use rand::Rng;

use super::{Known, MAX_AGE, SwarmView, is_open};
use crate::lock::lock;
use crate::servers::sample::{EXPLORED, NAMES_AGE, RECORDS_AGE, Sample};

/// What was last asked, and when.
#[derive(Debug)]
pub(super) struct Refreshed {
    at: Instant,
    listed_at: Instant,
    listed: Arc<Listed>,
}

impl SwarmView {
    /// Asks the directory in the background if the last answer is older than `max_age`.
    pub(crate) fn refresh_soon(self: &Arc<Self>, max_age: Duration) {
        // Held by a lookup under way, whose answer will do.
        let is_old = |last: &Refreshed| last.at.elapsed() >= max_age;
        if self.refreshed.try_lock().is_ok_and(|last| last.as_ref().is_none_or(is_old)) {
            let view = self.clone();
            tokio::spawn(async move {
                if let Err(error) = view.refresh(max_age).await {
                    tracing::debug!(%error, "the directory does not answer");
                }
            });
        }
    }

    /// Waits for the directory's first answer; later ones come in the background.
    pub(crate) async fn ready(self: &Arc<Self>) -> Result<(), LookupError> {
        if lock(&self.servers).is_empty() {
            return self.refresh(MAX_AGE).await;
        }
        self.refresh_soon(MAX_AGE);
        Ok(())
    }

    /// Asks the directory if the last answer is older than `max_age`. Whoever wants to know it sooner than usual gets all of it anew.
    pub(crate) async fn refresh(&self, max_age: Duration) -> Result<(), LookupError> {
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.as_ref().is_some_and(|last| last.at.elapsed() < max_age) {
            return Ok(());
        }
        match self.look(refreshed.take(), max_age).await {
            Ok(looked) => {
                *refreshed = Some(looked);
                self.changed();
                Ok(())
            }
            // What was known is better than nothing, and asking again at once is no better than this time.
            Err(error) if !lock(&self.servers).is_empty() => {
                tracing::debug!(%error, "the directory does not answer, keeping the known servers");
                let (now, listed) = (Instant::now(), Arc::new(Listed::default()));
                // No names: the next time they are asked for.
                *refreshed = Some(Refreshed { at: now, listed_at: now, listed });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Names if they are old, and records of a sample, as far as they are old.
    async fn look(&self, last: Option<Refreshed>, max_age: Duration) -> Result<Refreshed, LookupError> {
        let urgent = max_age < MAX_AGE;
        let (names_age, records_age) =
            if urgent { (max_age, max_age) } else { (NAMES_AGE * max_age, RECORDS_AGE * max_age) };
        let usable = last.filter(|last| last.listed_at.elapsed() < names_age && !self.lacks_holders());
        let new_names = usable.is_none();
        let (listed, listed_at) = match usable {
            Some(last) => (last.listed, last.listed_at),
            None => (Arc::new(self.swarm.list(&self.model, self.blocks).await?), Instant::now()),
        };
        let connected: HashSet<PeerId> =
            lock(&self.slots).iter().filter(|(_, slot)| is_open(slot)).map(|(peer, _)| *peer).collect();
        let mut sample = Sample::new(&listed, &mut rand::rng());
        let wanted = |peer: &PeerId| connected.contains(peer) || self.rules.names(peer);
        let (mut fresh, mut batch) = (HashMap::new(), HashSet::new());
        let known: Vec<Known> = lock(&self.servers).values().cloned().collect();
        for known in known {
            let peer = known.entry.peer;
            let explored = new_names && !urgent && !wanted(&peer) && rand::rng().random_ratio(1, EXPLORED);
            if !sample.lists(&peer) || explored {
                continue;
            }
            if known.seen.elapsed() >= records_age {
                batch.insert(peer);
                continue;
            }
            sample.asks(peer);
            self.count(&mut sample, &known);
            fresh.insert(peer, known);
        }
        batch.extend(self.rules.named().filter(|peer| sample.lists(peer) && !fresh.contains_key(*peer)));
        batch.iter().for_each(|peer| sample.asks(*peer));
        let (started, mut complete) = (Instant::now(), listed.complete);
        loop {
            if batch.is_empty() {
                batch = sample.to_ask();
            }
            if batch.is_empty() {
                break;
            }
            let asked = self.swarm.describe(&self.model, self.blocks, std::mem::take(&mut batch)).await?;
            complete &= asked.1;
            for known in asked.0.into_iter().map(|entry| Known::new(entry, &self.weights)) {
                self.count(&mut sample, &known);
                fresh.insert(known.entry.peer, known);
            }
            if started.elapsed() > LONGEST {
                complete = false;
                break;
            }
        }
        if fresh.is_empty() {
            self.swarm.found_nothing(complete)?;
        }
        tracing::debug!(model = %self.model, servers = fresh.len(), new_names, complete, took = ?started.elapsed(), "looked at the directory");
        let mut servers = lock(&self.servers);
        // It may not know some; a server with an open stream is there whatever it says.
        for peer in connected {
            if let Some(known) = servers.remove(&peer) {
                fresh.entry(peer).or_insert(known);
            }
        }
        self.weights.learn(fresh.values().map(|known| &*known.entry));
        fresh.values_mut().for_each(|known| known.weights = self.weights.exclusion(&known.entry.info));
        *servers = fresh;
        Ok(Refreshed { at: Instant::now(), listed_at, listed })
    }

    /// Whether some block has nobody who may run it.
    fn lacks_holders(&self) -> bool {
        let servers = lock(&self.servers);
        let mut usable = servers.values().filter(|known| self.is_usable(known)).map(|known| known.entry.info.span);
        let mut held = HashSet::new();
        usable.by_ref().for_each(|span| held.extend(span.blocks()));
        !self.blocks.blocks().all(|block| held.contains(&block))
    }

    fn count(&self, sample: &mut Sample, known: &Known) {
        if self.is_usable(known) {
            sample.has(known.entry.peer, known.entry.info.span, network_of(&known.entry.addresses));
        }
    }

    /// Whether a server is one to choose. Where only some are allowed, which are all asked, the others count too: they are there to be told of.
    fn is_usable(&self, known: &Known) -> bool {
        let (peer, info) = (known.entry.peer, &known.entry.info);
        info.state == ServerState::Online
            && self.excluded(peer, info).or(known.weights).is_none()
            && self.peers.ban(peer, Instant::now()).is_none()
            && (self.rules.peer_exclusion(peer).is_none() || !self.rules.allow.is_empty())
    }
}

/// Longest time in which records are asked for, one part of the sample after the other.
const LONGEST: Duration = Duration::from_secs(10);
