//! What waits for its turn on one connection.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::swarm::handler::{ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, FullyNegotiatedInbound};
use libp2p::swarm::{ConnectionId, SubstreamProtocol};
use tokio::time::Instant;

use super::turns::Turns;
use crate::shares::Origin;

/// Streams that wait on one connection. libp2p's Kademlia has 32 open at a time, so that more are of somebody else.
const MOST_WAITING: usize = 32;
/// Whoever asks has given up by then: libp2p's Kademlia waits for ten seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Streams beyond [`MOST_WAITING`], without any time at which none waited, until the connection is closed: some flood, and closing is cheaper than
/// negotiating protocols on more of them.
const MOST_SURPLUS: u32 = 512;
/// Reports of the connection itself that nobody pays for: whether the other side is a member of the table, which changes once or twice.
const REPORTS: u32 = 8;
/// Most reports that are expected: an answer to each of 32 requests either way, and some more. Requests of this node that have no answer would add up.
const MOST_EXPECTED: u32 = 128;

type Waiting<H> =
    FullyNegotiatedInbound<<H as ConnectionHandler>::InboundProtocol, <H as ConnectionHandler>::InboundOpenInfo>;

/// Where a connection waits.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) connection: ConnectionId,
    pub(super) origin: Origin,
    pub(super) turns: Arc<Mutex<Turns>>,
}

impl Place {
    fn take_turn(&self, now: Instant, context: &Context<'_>) -> bool {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.ask(self.connection, self.origin, now, context.waker())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).leave(self.connection, self.origin);
    }
}

/// What a connection says.
#[derive(Debug)]
pub(crate) enum Told<E> {
    /// What the protocol says.
    Inner(E),
    /// The other side opens streams without end.
    Floods,
}

/// The protocol's handler, which sees a stream when its turn has come: nothing of it is read before. A stream is one request; whoever sends more of them on
/// one pays for each before anything else is done on the connection.
pub(crate) struct Handler<H: ConnectionHandler> {
    inner: H,
    /// `None` if the connection waits for nobody.
    place: Option<Place>,
    waiting: VecDeque<(Instant, Waiting<H>)>,
    surplus: u32,
    /// Reports to come that have been paid for or answer requests of this node, and those that came beside them.
    expected: u32,
    owed: u32,
    told: bool,
}

impl<H: ConnectionHandler> Handler<H> {
    pub(super) fn new(inner: H, place: Option<Place>) -> Self {
        Self { inner, place, waiting: VecDeque::new(), surplus: 0, expected: REPORTS, owed: 0, told: false }
    }

    fn keep_waiting(&mut self, stream: Waiting<H>) {
        // The oldest one is the first that is given up on the other side.
        if self.waiting.len() >= MOST_WAITING {
            self.waiting.pop_front();
            self.surplus = self.surplus.saturating_add(1);
        }
        self.waiting.push_back((Instant::now(), stream));
    }

    /// Hands on streams and settles what is owed, as far as turns go. `false` if something is still owed.
    fn settle(&mut self, context: &Context<'_>) -> bool {
        let Some(place) = &self.place else { return true };
        if self.owed == 0 && self.waiting.is_empty() {
            return true;
        }
        let now = Instant::now();
        while self.owed > 0 {
            if !place.take_turn(now, context) {
                return false;
            }
            self.owed -= 1;
        }
        while self.waiting.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= PATIENCE) {
            self.waiting.pop_front();
        }
        while !self.waiting.is_empty() && place.take_turn(now, context) {
            if let Some((_, stream)) = self.waiting.pop_front() {
                self.expected = self.expected.saturating_add(1).min(MOST_EXPECTED);
                self.inner.on_connection_event(ConnectionEvent::FullyNegotiatedInbound(stream));
            }
        }
        if self.waiting.is_empty() {
            self.surplus = 0;
        }
        true
    }

    fn count_report(&mut self) {
        match self.expected.checked_sub(1) {
            Some(left) => self.expected = left,
            None => self.owed = self.owed.saturating_add(1),
        }
    }
}

impl<H: ConnectionHandler> ConnectionHandler for Handler<H> {
    type FromBehaviour = H::FromBehaviour;
    type ToBehaviour = Told<H::ToBehaviour>;
    type InboundProtocol = H::InboundProtocol;
    type OutboundProtocol = H::OutboundProtocol;
    type InboundOpenInfo = H::InboundOpenInfo;
    type OutboundOpenInfo = H::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        self.inner.listen_protocol()
    }

    fn connection_keep_alive(&self) -> bool {
        self.inner.connection_keep_alive()
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if self.surplus > MOST_SURPLUS && !self.told {
            self.told = true;
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Told::Floods));
        }
        if !self.settle(context) {
            return Poll::Pending;
        }
        let event = std::task::ready!(self.inner.poll(context));
        Poll::Ready(match event {
            ConnectionHandlerEvent::NotifyBehaviour(event) => {
                self.count_report();
                ConnectionHandlerEvent::NotifyBehaviour(Told::Inner(event))
            }
            ConnectionHandlerEvent::OutboundSubstreamRequest { protocol } => {
                self.expected = self.expected.saturating_add(1).min(MOST_EXPECTED);
                ConnectionHandlerEvent::OutboundSubstreamRequest { protocol }
            }
            other => other.map_custom(Told::Inner),
        })
    }

    fn poll_close(&mut self, context: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        self.inner.poll_close(context).map(|event| event.map(Told::Inner))
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.inner.on_behaviour_event(event);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(stream) if self.place.is_some() => self.keep_waiting(stream),
            other => self.inner.on_connection_event(other),
        }
    }
}

impl<H: ConnectionHandler> fmt::Debug for Handler<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waiting, owed) = (self.waiting.len(), self.owed);
        f.debug_struct("Handler").field("place", &self.place).field("waiting", &waiting).field("owed", &owed).finish()
    }
}

#[cfg(test)]
mod tests;
