use tokio::sync::oneshot;

use super::*;
use crate::streams::PeerStream;

type Answer = oneshot::Receiver<Result<PeerStream, OpenFailure>>;

fn behaviour() -> Behaviour {
    Behaviour::new(Spoken::only("/test"), None, Admission::new(4, 8), AllowList::new(None))
}

fn address() -> Multiaddr {
    "/ip4/203.0.113.1/tcp/1".parse().unwrap()
}

/// A connection, which lasts as long as its handler.
fn connect(behaviour: &mut Behaviour, peer: PeerId, number: usize) -> (ConnectionId, Handler) {
    let id = ConnectionId::new_unchecked(number);
    let handler = behaviour.handler(peer, id, Origin::Unknown, false);
    behaviour.on_connected(peer, id, &address());
    (id, handler)
}

/// The connection on which a stream is asked for next; `None` if the peer is dialled.
fn next(behaviour: &mut Behaviour) -> Option<ConnectionId> {
    match behaviour.events.pop_front() {
        Some(ToSwarm::NotifyHandler { handler: NotifyHandler::One(connection), .. }) => Some(connection),
        Some(ToSwarm::Dial { .. }) => None,
        other => panic!("{other:?}"),
    }
}

fn open(behaviour: &mut Behaviour, peer: PeerId) -> (Option<ConnectionId>, Answer) {
    let (reply, answer) = oneshot::channel();
    behaviour.open(peer, vec![address()], OpenRequest { reply });
    (next(behaviour), answer)
}

#[test]
fn nothing_is_asked_on_a_connection_that_has_ended_before_it_is_told() {
    let (mut behaviour, peer) = (behaviour(), PeerId::random());
    let (first, handler) = connect(&mut behaviour, peer, 1);
    assert_eq!(open(&mut behaviour, peer).0, Some(first));
    drop(handler);
    let (asked, _waiting) = open(&mut behaviour, peer);
    assert_eq!(asked, None, "it is dialled");
    let (second, _handler) = connect(&mut behaviour, peer, 2);
    assert_eq!(next(&mut behaviour), Some(second), "who waited is not sent to the one that has ended");
    behaviour.abandon(peer, first);
    assert_eq!(open(&mut behaviour, peer).0, Some(second));
}
