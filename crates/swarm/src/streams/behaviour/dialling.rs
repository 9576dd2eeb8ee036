//! Requests that wait for a connection, and the order in which a peer's addresses are tried.
//!
//! TCP comes first, because it moves more bytes per second; if no such address answers, the others and those known from the
//! hash table. Relays are tried as well when no direct connection was made within [`HEAD_START`], or none can be: the
//! direct addresses of a peer behind NAT lead nowhere, often without a word, but on its own network they work.

use std::collections::VecDeque;
use std::time::Duration;

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::addresses::{is_circuit, is_tcp};
use crate::streams::OpenRequest;
use crate::streams::dial_error::innermost;

/// How much earlier direct addresses are tried than circuits. 500 ms: a few round trips of most links.
const HEAD_START: Duration = Duration::from_millis(500);
/// How often circuits are tried if the relay is just being dialled by somebody else: that makes libp2p give up at once.
const CIRCUIT_ATTEMPTS: u8 = 8;

#[derive(Debug)]
pub(super) struct Dialling {
    attempts: Vec<ConnectionId>,
    /// Addresses to try if an attempt fails, in groups. The last one stands for those known from the hash table too.
    rest: VecDeque<Vec<Multiaddr>>,
    circuits: Vec<Multiaddr>,
    /// When the circuits are tried, if they are to be.
    circuits_due: Option<Instant>,
    circuit_attempts: u8,
    circuit_attempt: Option<ConnectionId>,
    /// What happened at those tried before.
    failures: Vec<String>,
    pub(super) requests: Vec<OpenRequest>,
}

impl Dialling {
    pub(super) fn new(addresses: Vec<Multiaddr>, request: OpenRequest, now: Instant) -> Self {
        let (circuits, direct): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_circuit);
        let (tcp, others): (Vec<_>, Vec<_>) = direct.into_iter().partition(is_tcp);
        let rest = if tcp.is_empty() { VecDeque::from([others]) } else { VecDeque::from([tcp, others]) };
        let circuits_due = (!circuits.is_empty()).then_some(now + HEAD_START);
        Self {
            attempts: Vec::new(),
            rest,
            circuits,
            circuits_due,
            circuit_attempts: 0,
            circuit_attempt: None,
            failures: Vec::new(),
            requests: vec![request],
        }
    }

    /// The next attempt, if there is anything left to try and anybody who waits for it.
    pub(super) fn next(&mut self, peer: PeerId) -> Option<DialOpts> {
        self.requests.retain(|request| !request.reply.is_closed());
        if self.requests.is_empty() {
            return None;
        }
        let Some(addresses) = self.rest.pop_front() else {
            // A second attempt waits for its time.
            return (self.circuit_attempts == 0).then(|| self.dial_circuits(peer)).flatten();
        };
        let and_known = self.rest.is_empty();
        Some(self.dial(peer, addresses, and_known))
    }

    /// The attempt to go through a relay, if it is time for it.
    pub(super) fn next_circuits(&mut self, peer: PeerId, now: Instant) -> Option<DialOpts> {
        self.circuits_due.filter(|due| *due <= now)?;
        self.dial_circuits(peer)
    }

    pub(super) fn circuits_due(&self) -> Option<Instant> {
        self.circuits_due
    }

    fn dial_circuits(&mut self, peer: PeerId) -> Option<DialOpts> {
        self.circuits_due.take()?;
        self.circuit_attempts += 1;
        let opts = self.dial(peer, self.circuits.clone(), false);
        self.circuit_attempt = Some(opts.connection_id());
        Some(opts)
    }

    /// Notes that an attempt failed; `false` if it was none of these.
    pub(super) fn failed(
        &mut self,
        attempt: ConnectionId,
        error: &DialError,
        now: Instant,
        describe: impl FnOnce(&DialError) -> String,
    ) -> bool {
        let Some(at) = self.attempts.iter().position(|known| *known == attempt) else { return false };
        self.attempts.remove(at);
        // That no further address is known says nothing beside what happened at the ones that were.
        if self.circuit_attempt == Some(attempt) && self.circuit_attempts < CIRCUIT_ATTEMPTS && was_given_up(error) {
            self.circuits_due = Some(now + HEAD_START);
            return true;
        }
        let last = self.attempts.is_empty() && self.rest.is_empty() && self.circuits_due.is_none();
        if !matches!(error, DialError::NoAddresses) || (self.failures.is_empty() && last) {
            self.failures.push(describe(error));
        }
        true
    }

    /// Whether an attempt is under way, or will be.
    pub(super) fn is_trying(&self) -> bool {
        !self.attempts.is_empty() || self.circuits_due.is_some()
    }

    pub(super) fn reason(&self) -> String {
        self.failures.join("; ")
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, and_known: bool) -> DialOpts {
        let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses);
        let opts = if and_known { opts.extend_addresses_through_behaviour() } else { opts }.build();
        self.attempts.push(opts.connection_id());
        opts
    }
}

/// Whether a circuit was not even asked for.
fn was_given_up(error: &DialError) -> bool {
    let DialError::Transport(failures) = error else { return false };
    failures.iter().any(|(_, error)| innermost(error).is::<futures::channel::oneshot::Canceled>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::{OpenFailure, PeerStream};

    type Answer = tokio::sync::oneshot::Receiver<Result<PeerStream, OpenFailure>>;

    fn dialling(addresses: &[&str], now: Instant) -> (Dialling, Answer) {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        (Dialling::new(addresses, OpenRequest { reply }, now), answer)
    }

    const TCP: &str = "/ip4/10.0.0.1/tcp/1";
    const QUIC: &str = "/ip4/10.0.0.1/udp/1/quic-v1";

    #[test]
    fn tcp_then_the_others_then_relays() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let circuit = format!("/ip4/10.0.0.2/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
        let (mut dialling, _answer) = dialling(&[&circuit, QUIC, TCP], now);
        let mut seen = Vec::new();
        while let Some(opts) = dialling.next(peer) {
            assert!(
                dialling.failed(opts.connection_id(), &DialError::Aborted, now, |_| opts.connection_id().to_string())
            );
            assert!(!dialling.failed(opts.connection_id(), &DialError::Aborted, now, |_| String::new()), "only once");
            seen.push(opts.connection_id().to_string());
        }
        assert_eq!(seen.len(), 3);
        assert!(!dialling.is_trying() && dialling.reason() == seen.join("; "));
    }

    #[test]
    fn relays_are_tried_beside_direct_addresses_that_do_not_answer() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let circuit = format!("/ip4/10.0.0.2/tcp/1/p2p/{}/p2p-circuit", PeerId::random());
        let (mut dialling, _answer) = dialling(&[TCP, &circuit], now);
        let direct = dialling.next(peer).unwrap().connection_id();
        assert!(dialling.next_circuits(peer, now).is_none());
        let relayed = dialling.next_circuits(peer, now + HEAD_START).unwrap().connection_id();
        assert_eq!(dialling.circuits_due(), None);
        assert!(dialling.failed(relayed, &DialError::Aborted, now, |_| "a".into()) && dialling.is_trying());
        assert!(dialling.failed(direct, &DialError::Aborted, now, |_| "b".into()));
        assert!(dialling.next(peer).is_some(), "what the hash table knows");
    }

    #[test]
    fn nobody_dials_for_a_request_that_was_given_up() {
        let (mut dialling, answer) = dialling(&[TCP], Instant::now());
        drop(answer);
        assert!(dialling.next(PeerId::random()).is_none() && !dialling.is_trying());
    }
}
