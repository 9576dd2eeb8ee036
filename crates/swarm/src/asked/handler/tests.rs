use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::Waker;

use libp2p::StreamProtocol;
use libp2p::core::upgrade::{DeniedUpgrade, InboundUpgrade, UpgradeInfo};
use libp2p::swarm::Stream;

use super::*;

/// What an address is answered at once when nobody else asks, and what may be refilled while a test runs.
const AT_ONCE: u32 = 1024;
const REFILLED: u32 = 256;

/// A protocol whose streams are nothing.
struct Nothing;

impl UpgradeInfo for Nothing {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(StreamProtocol::new("/nothing"))
    }
}

impl InboundUpgrade<Stream> for Nothing {
    type Output = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn upgrade_inbound(self, _: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(()))
    }
}

/// Reads so many requests from each stream.
struct Table {
    requests_of_stream: u32,
    unread: u32,
    /// Requests of this node to be made.
    asks: u32,
}

impl ConnectionHandler for Table {
    type FromBehaviour = Infallible;
    type ToBehaviour = ();
    type InboundProtocol = Nothing;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Nothing> {
        SubstreamProtocol::new(Nothing, ())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), ()>> {
        if let Some(left) = self.asks.checked_sub(1) {
            self.asks = left;
            let protocol = SubstreamProtocol::new(DeniedUpgrade, ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        match self.unread.checked_sub(1) {
            Some(left) => {
                self.unread = left;
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(()))
            }
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Nothing, DeniedUpgrade>) {
        if let ConnectionEvent::FullyNegotiatedInbound(_) = event {
            self.unread += self.requests_of_stream;
        }
    }
}

/// A connection of one address to a node of its own.
struct Connection {
    handler: Handler<Table>,
    requests: u32,
    floods: u32,
}

impl Connection {
    fn new(turns: Option<&Arc<Mutex<Turns>>>, number: usize, requests_of_stream: u32) -> Self {
        let place = turns.map(|turns| Place {
            connection: ConnectionId::new_unchecked(number),
            origin: Origin::Ip4([203, 0, 113, 1].into()),
            turns: Arc::clone(turns),
        });
        let inner = Table { requests_of_stream, unread: 0, asks: 0 };
        Self { handler: Handler::new(inner, place), requests: 0, floods: 0 }
    }

    fn run(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(event) = self.handler.poll(&mut context) {
            match event {
                ConnectionHandlerEvent::NotifyBehaviour(Told::Inner(())) => self.requests += 1,
                ConnectionHandlerEvent::NotifyBehaviour(Told::Floods) => self.floods += 1,
                _ => {}
            }
        }
    }

    fn opens(&mut self, streams: u32) {
        for _ in 0..streams {
            let opened = FullyNegotiatedInbound { protocol: (), info: () };
            self.handler.on_connection_event(ConnectionEvent::FullyNegotiatedInbound(opened));
            self.run();
        }
    }
}

fn turns() -> Arc<Mutex<Turns>> {
    Arc::new(Mutex::new(Turns::new()))
}

#[test]
fn streams_wait_unread_and_who_opens_them_without_end_is_disconnected() {
    let turns = turns();
    let mut connection = Connection::new(Some(&turns), 1, 1);
    connection.opens(AT_ONCE);
    assert_eq!((connection.requests, connection.floods), (AT_ONCE, 0), "none waits");
    connection.opens(MOST_WAITING as u32 + MOST_SURPLUS / 2);
    assert_eq!(connection.floods, 0, "not without end yet");
    connection.opens(MOST_SURPLUS + REFILLED);
    assert!(connection.requests <= AT_ONCE + REFILLED, "{} were answered", connection.requests);
    assert_eq!(connection.handler.waiting.len(), MOST_WAITING);
    assert_eq!(connection.floods, 1);
}

#[test]
fn requests_that_follow_each_other_on_a_stream_take_turns_as_well() {
    let turns = turns();
    let mut connection = Connection::new(Some(&turns), 1, 100_000);
    connection.opens(1);
    assert!(connection.requests > AT_ONCE, "{}", connection.requests);
    assert!(connection.requests <= AT_ONCE + REPORTS + REFILLED, "{}", connection.requests);
    // Another id of that address is not answered at once either.
    let mut other = Connection::new(Some(&turns), 2, 1);
    other.opens(MOST_WAITING as u32);
    assert!(other.requests <= 1, "{}", other.requests);
}

#[test]
fn answers_to_requests_of_this_node_take_no_turns() {
    let turns = turns();
    let mut connection = Connection::new(Some(&turns), 1, 1);
    connection.opens(AT_ONCE + 1);
    let answered = connection.requests;
    // This node asked meanwhile, and the other side answers, though its own requests wait.
    (connection.handler.inner.asks, connection.handler.inner.unread) = (64, 64);
    connection.run();
    assert!(connection.requests >= answered + 64);
    assert_eq!(connection.handler.owed, 0);
    // What it says without having been asked is another thing.
    connection.handler.inner.unread = REPORTS + 64;
    connection.run();
    assert!(connection.handler.owed > 0);
}

#[test]
fn who_waits_for_nobody_does_not_wait() {
    let mut connection = Connection::new(None, 1, 1);
    connection.opens(10 * AT_ONCE);
    assert_eq!((connection.requests, connection.floods), (10 * AT_ONCE, 0));
}

#[test]
fn a_connection_that_ends_leaves_the_line() {
    let turns = turns();
    let mut connections: Vec<_> = (0..8).map(|number| Connection::new(Some(&turns), number, 1)).collect();
    connections.iter_mut().for_each(|connection| connection.opens(AT_ONCE));
    let waits = |turns: &Mutex<Turns>| turns.lock().unwrap().serve(Instant::now(), Waker::noop());
    assert!(waits(&turns));
    drop(connections);
    assert!(!waits(&turns));
}
