//! Asks the swarm what it serves, and tries servers that seem to be gone.
//!
//! A record lives for two minutes after its server has died. So whoever is no longer connected is tried: a server that does not answer is shown as
//! silent at once, and holds nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use petals_protocol::{ServerInfo, ServerState};
use petals_swarm::{ModelStatus, Multiaddr, OpenError, PeerId, SwarmHandle, SwarmStatus, swarm_status};

use super::state::{Contact, Failure, Model};

/// Servers that are tried after one look, and at a time.
const TRIED: usize = 8;
/// Longest wait for a server that is tried.
const PATIENCE: Duration = Duration::from_secs(3);
/// A server that was tried is left alone for so long.
const AGAIN: Duration = Duration::from_secs(15);
/// How the error ends of a server whose addresses this program has not met.
const NO_ADDRESS: &str = "no address of it is known";
/// Servers of which it is remembered whether they answered.
const MOST_KNOWN: usize = 4096;
/// Failures that are remembered.
const MOST_FAILURES: usize = 64;

/// What was seen of a swarm.
#[derive(Debug)]
pub(crate) struct Watch {
    swarm: SwarmHandle,
    /// The one model that is looked at, if it is one.
    name: Option<String>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    at: Option<Instant>,
    models: Vec<ModelStatus>,
    known: HashMap<PeerId, Known>,
    failures: VecDeque<Failure>,
}

/// What is remembered of a server.
#[derive(Debug, Clone)]
struct Known {
    info: ServerInfo,
    answers: bool,
    tried: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(swarm: SwarmHandle, name: Option<String>) -> Self {
        Self { swarm, name, seen: Mutex::default() }
    }

    pub(crate) fn swarm(&self) -> &SwarmHandle {
        &self.swarm
    }

    /// When the swarm was last asked.
    pub(crate) fn looked(&self) -> Option<Instant> {
        self.lock().at
    }

    /// Asks the swarm; `own` is what this program says of itself now.
    pub(crate) async fn look(&self, own: Option<ServerInfo>) {
        let (found, addresses, problem) = match swarm_status(&self.swarm, self.name.as_deref()).await {
            Ok(SwarmStatus { models, addresses, .. }) => (models, addresses, None),
            // The first node of a swarm has nobody to ask, and is all that there is.
            Err(_) if own.is_some() && self.swarm.connected_peers().is_empty() => (Vec::new(), HashMap::new(), None),
            Err(error) => (self.lock().models.clone(), HashMap::new(), Some(error.to_string())),
        };
        let models = with_own(found, self.swarm.local_peer(), own);
        if let Some(what) = problem {
            self.fail(&self.swarm.local_peer(), None, format!("the swarm cannot be asked: {what}"));
        }
        let to_try = self.take(models);
        // Of a server that does not say where it is, and was never connected, an attempt would tell nothing.
        let placed = to_try.iter().filter_map(|peer| Some((*peer, addresses.get(peer).filter(|all| !all.is_empty())?)));
        futures::future::join_all(placed.map(|(peer, addresses)| self.try_server(peer, addresses))).await;
    }

    /// Remembers what was found, tells of those who are gone, and says whom to try.
    fn take(&self, models: Vec<ModelStatus>) -> Vec<PeerId> {
        let local = self.swarm.local_peer();
        let mut seen = self.lock();
        let there: HashSet<PeerId> = models.iter().flat_map(|model| &model.servers).map(|(peer, _)| *peer).collect();
        let gone: Vec<(PeerId, Known)> =
            seen.known.iter().filter(|(peer, _)| !there.contains(*peer)).map(|(p, k)| (*p, k.clone())).collect();
        for (peer, known) in gone {
            seen.known.remove(&peer);
            // Whoever leaves in order says so before.
            if known.answers && !matches!(known.info.state, ServerState::Draining | ServerState::Offline) {
                seen.fail(&peer, Some(known.info.span.to_string()), "is gone: the swarm knows no record of it".into());
            }
        }
        let mut to_try = Vec::new();
        for (peer, info) in models.iter().flat_map(|model| &model.servers) {
            if !seen.known.contains_key(peer) && seen.known.len() >= MOST_KNOWN {
                continue;
            }
            let connected = *peer == local || self.swarm.is_connected(peer);
            let known = seen.known.entry(*peer).or_insert_with(|| Known {
                info: info.clone(),
                answers: connected,
                tried: None,
            });
            known.info = info.clone();
            if connected {
                let was_silent = !known.answers && known.tried.is_some();
                (known.answers, known.tried) = (true, None);
                if was_silent {
                    seen.fail(peer, Some(info.span.to_string()), "answers again".into());
                }
            } else if known.tried.is_none_or(|at| at.elapsed() >= AGAIN) {
                to_try.push((known.tried, *peer));
            }
        }
        // Whoever was not tried yet comes first, then whoever was tried longest ago.
        to_try.sort_unstable();
        to_try.truncate(TRIED);
        seen.models = models;
        seen.at = Some(Instant::now());
        to_try.into_iter().map(|(_, peer)| peer).collect()
    }

    async fn try_server(&self, peer: PeerId, addresses: &[Multiaddr]) {
        let opened = self.swarm.open_stream(peer, addresses, PATIENCE).await;
        let problem = match opened {
            // Whoever refuses is there.
            Ok(_) | Err(OpenError::NotAllowed { .. } | OpenError::Unsupported(_)) => None,
            Err(error) => Some(error.to_string()),
        };
        let mut seen = self.lock();
        let Some(known) = seen.known.get_mut(&peer) else { return };
        // Where it is, nobody knows here: of one that was never connected that says nothing.
        let unplaced = problem.as_deref().is_some_and(|what| what.ends_with(NO_ADDRESS));
        if unplaced && !known.answers {
            return;
        }
        let (first, answered) = (known.tried.is_none(), known.answers);
        (known.answers, known.tried) = (problem.is_none(), Some(Instant::now()));
        let blocks = Some(known.info.span.to_string());
        match problem {
            Some(what) if first || answered => seen.fail(&peer, blocks, format!("does not answer: {what}")),
            None if !first && !answered => seen.fail(&peer, blocks, "answers again".into()),
            _ => {}
        }
    }

    /// Notes that something did not go as it should.
    pub(crate) fn fail(&self, peer: &PeerId, blocks: Option<String>, what: String) {
        self.lock().fail(peer, blocks, what);
    }

    /// What did not go as it should, the latest first.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.lock().failures.iter().rev().cloned().collect()
    }

    /// The models and their servers, as they were seen last; `own` is what this program says of itself now.
    pub(crate) fn models(&self, own: Option<ServerInfo>) -> Vec<Model> {
        let local = self.swarm.local_peer();
        let (models, known) = {
            let seen = self.lock();
            let answers: HashMap<PeerId, (bool, bool)> =
                seen.known.iter().map(|(peer, known)| (*peer, (known.answers, known.tried.is_some()))).collect();
            (seen.models.clone(), answers)
        };
        let contact = |peer: &PeerId| {
            let ping = self.swarm.ping(peer).map(|ping| ping.as_secs_f64() * 1e3);
            let contact = match known.get(peer) {
                _ if *peer == local => Contact::Own,
                _ if self.swarm.is_connected(peer) => Contact::Connected,
                Some((true, _)) => Contact::Reached,
                Some((false, true)) => Contact::Silent,
                _ => Contact::Unknown,
            };
            (contact, ping)
        };
        with_own(models, local, own).iter().map(|model| Model::new(model, contact)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // What was seen is whole whatever happens while it is locked.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn fail(&mut self, peer: &PeerId, blocks: Option<String>, what: String) {
        note(&mut self.failures, Failure { time_ms: now_ms(), peer: peer.to_string(), blocks, what, times: 1 });
    }
}

/// Adds a failure; one that is like the last one counts there.
fn note(failures: &mut VecDeque<Failure>, failure: Failure) {
    let same =
        |last: &&mut Failure| (&last.peer, &last.blocks, &last.what) == (&failure.peer, &failure.blocks, &failure.what);
    if let Some(last) = failures.back_mut().filter(same) {
        (last.time_ms, last.times) = (failure.time_ms, last.times.saturating_add(1));
        return;
    }
    if failures.len() >= MOST_FAILURES {
        failures.pop_front();
    }
    failures.push_back(failure);
}

/// What the directory says, with what this program says of itself in place of its own older record.
fn with_own(mut models: Vec<ModelStatus>, local: PeerId, own: Option<ServerInfo>) -> Vec<ModelStatus> {
    let Some(mut own) = own else { return models };
    own.written_ms = now_ms();
    let blocks = own.model_blocks.unwrap_or(own.span.end());
    match models.iter_mut().find(|status| status.model == own.model) {
        Some(status) => {
            let mut servers = std::mem::take(&mut status.servers);
            servers.retain(|(peer, _)| *peer != local);
            servers.push((local, own));
            *status = ModelStatus::new(status.model.clone(), blocks, servers);
        }
        None => models.push(ModelStatus::new(own.model.clone(), blocks, vec![(local, own)])),
    }
    models
}

/// Unix time in milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::Span;

    #[test]
    fn failures_are_bounded_and_the_same_one_is_counted() {
        let mut failures = VecDeque::new();
        let failure = |what: &str| Failure { time_ms: 1, peer: "p".into(), blocks: None, what: what.into(), times: 1 };
        for _ in 0..3 {
            note(&mut failures, failure("a"));
        }
        assert_eq!((failures.len(), failures[0].times), (1, 3));
        (0..2 * MOST_FAILURES).for_each(|number| note(&mut failures, failure(&number.to_string())));
        assert_eq!(failures.len(), MOST_FAILURES);
        assert_eq!(failures.back().map(|last| last.what.clone()), Some((2 * MOST_FAILURES - 1).to_string()));
    }

    #[test]
    fn a_program_knows_itself_better_than_the_directory() {
        let local = PeerId::random();
        let info = |to, queue_depth| ServerInfo {
            queue_depth,
            ..ServerInfo::new("m@0000000000000001".parse().unwrap(), Span::new(0, to).unwrap(), ServerState::Online)
        };
        let model = info(2, 0).model;
        let told = ModelStatus::new(model, 4, vec![(local, info(2, 0)), (PeerId::random(), info(4, 1))]);
        let merged = with_own(vec![told], local, Some(info(3, 9)));
        let mine: Vec<_> = merged[0].servers.iter().filter(|(peer, _)| *peer == local).collect();
        assert_eq!((merged[0].servers.len(), mine.len(), mine[0].1.queue_depth), (2, 1, 9));
        assert_eq!(with_own(Vec::new(), local, Some(info(3, 9)))[0].servers.len(), 1, "alone");
        assert!(with_own(Vec::new(), local, None).is_empty());
    }
}
