//! Finding out what this node cannot see by itself: whether others reach it where it says it is, and whether somebody else goes by its
//! name.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate};
use libp2p::{Multiaddr, autonat};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::EventLoop;
use crate::addresses::{short, without_peer};

/// How long a node waits for its own call, if that is what it may have been.
const HINDSIGHT: Duration = Duration::from_millis(500);

/// Attempts to meet another node under this node's identity.
#[derive(Debug, Default)]
pub(super) struct Meetings {
    dialled: HashMap<ConnectionId, Meeting>,
    /// Those that were answered under this identity, by whomever.
    answered: Vec<(Instant, Meeting)>,
    /// Calls that came in from this identity.
    own_calls: u64,
}

#[derive(Debug)]
struct Meeting {
    /// Calls from this identity before it.
    calls: u64,
    reply: oneshot::Sender<bool>,
}

impl EventLoop {
    /// Lets peers try the announced addresses. They are no candidates by themselves: the operator says that they are right.
    pub(super) fn try_announced(&mut self) {
        if self.config.probes_announced() {
            for address in self.config.announce.iter().map(without_peer).collect::<Vec<_>>() {
                self.let_try(&address);
            }
        }
    }

    /// Lets a peer try an address.
    fn let_try(&mut self, address: &Multiaddr) {
        if let Some(probes) = self.swarm.behaviour_mut().probes_mut() {
            let candidate = NewExternalAddrCandidate { addr: address };
            probes.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
    }

    pub(super) fn on_probe(&mut self, event: &autonat::v2::client::Event) {
        let (address, reached) = (&event.tested_addr, event.result.is_ok());
        if let Some(again) = self.reach.on_probe(address, reached) {
            // An address that failed is never tried again; with this node's name behind it, it is another one.
            let named = again.with(Protocol::P2p(*self.swarm.local_peer_id()));
            self.let_try(&named);
        }
        tracing::debug!(%address, reached, by = short(&event.server), "a peer tried to dial this node");
        let announced = self.reach.announced();
        self.view.send_modify(|view| view.announced = announced);
        self.refresh_reachability();
    }

    /// Dials an address without saying who is wanted there, to see whether this node's own identity answers.
    pub(super) fn meet_self(&mut self, address: Multiaddr, reply: oneshot::Sender<bool>) {
        let attempt = DialOpts::unknown_peer_id().address(without_peer(&address)).build();
        let connection = attempt.connection_id();
        match self.swarm.dial(attempt) {
            Ok(()) => drop(self.meetings.dialled.insert(connection, Meeting { calls: self.meetings.own_calls, reply })),
            Err(error) => tracing::debug!(%address, %error, "cannot look who is there"),
        }
    }

    /// Somebody with another name is there.
    pub(super) fn on_met(&mut self, connection: ConnectionId) {
        if let Some(meeting) = self.meetings.dialled.remove(&connection) {
            let _ = meeting.reply.send(false);
            self.swarm.close_connection(connection);
        }
    }

    /// The attempt ended without a connection.
    pub(super) fn on_meeting_failed(&mut self, connection: ConnectionId, error: &DialError, now: Instant) {
        let Some(meeting) = self.meetings.dialled.remove(&connection) else { return };
        if matches!(error, DialError::LocalPeerId { .. }) {
            self.meetings.answered.push((now + HINDSIGHT, meeting));
        } else {
            let _ = meeting.reply.send(false);
        }
    }

    /// Somebody under this node's own identity called.
    pub(super) fn on_own_call(&mut self) {
        self.meetings.own_calls += 1;
    }

    /// An address may lead back to this node, through a router for example. Then it has called itself.
    pub(super) fn settle_meetings(&mut self, now: Instant) {
        let own_calls = self.meetings.own_calls;
        for (_, meeting) in self.meetings.answered.extract_if(.., |(due, _)| *due <= now) {
            let _ = meeting.reply.send(meeting.calls == own_calls);
        }
    }
}
