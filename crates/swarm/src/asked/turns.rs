//! Whose request to the hash table is answered next.
//!
//! Pure: who waits is told by the [`Waker`] that came with the question.

use std::collections::{HashMap, HashSet, VecDeque};
use std::task::Waker;

use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use crate::rates::Rates;
use crate::shares::Origin;

/// Requests of one address that are answered whatever others ask: at once, and per second afterwards. A server writes its name under the keys of its
/// blocks every 150 seconds and asks each node near a key twice for that, so one of 126 blocks asks 252 times at once and 1.7 times a second on the
/// whole, one of 1024 blocks 14 times a second; a client asks once for each block and server that it does not know. What is answered costs some 0.2 ms.
const OWN_AT_ONCE: u32 = 512;
const OWN_PER_SECOND: u32 = 16;
/// Requests beyond that of all addresses together, which wait for each other: a tenth of a processor. Sixteen servers of 126 blocks behind one router
/// ask 4032 times every 150 seconds: ten seconds' worth when all of them ask at once.
const SPARE_AT_ONCE: u32 = 512;
const SPARE_PER_SECOND: u32 = 384;

/// Everybody who asks, by connection and address.
#[derive(Debug)]
pub(super) struct Turns {
    /// What each address may ask in any case.
    own: Rates<Origin>,
    /// What there is beyond that.
    spare: Rates<()>,
    /// Addresses from which somebody waits, the next one first, and who does.
    order: VecDeque<Origin>,
    lines: HashMap<Origin, VecDeque<ConnectionId>>,
    wakers: HashMap<ConnectionId, Waker>,
    /// Those whose turn it is, and who have not been back since.
    called: HashSet<ConnectionId>,
    /// Of whoever calls [`Self::serve`].
    server: Option<Waker>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            own: Rates::new(OWN_AT_ONCE, OWN_PER_SECOND),
            spare: Rates::new(SPARE_AT_ONCE, SPARE_PER_SECOND),
            order: VecDeque::new(),
            lines: HashMap::new(),
            wakers: HashMap::new(),
            called: HashSet::new(),
            server: None,
        }
    }

    /// Whether one request of this connection is answered now. If not, the connection waits in line, and `waker` is woken when its turn has come.
    pub(super) fn ask(&mut self, connection: ConnectionId, origin: Origin, now: Instant, waker: &Waker) -> bool {
        if self.called.remove(&connection) {
            return true;
        }
        if let Some(known) = self.wakers.get_mut(&connection) {
            known.clone_from(waker);
            return false;
        }
        // Nobody passes those who wait.
        let first = !self.lines.contains_key(&origin);
        if first && (self.own.take(origin, now) || (self.order.is_empty() && self.spare.take((), now))) {
            return true;
        }
        if first {
            self.order.push_back(origin);
        }
        self.lines.entry(origin).or_default().push_back(connection);
        self.wakers.insert(connection, waker.clone());
        if let Some(server) = self.server.take() {
            server.wake();
        }
        false
    }

    /// Forgets a connection, which is from this address.
    pub(super) fn leave(&mut self, connection: ConnectionId, origin: Origin) {
        self.called.remove(&connection);
        if self.wakers.remove(&connection).is_none() {
            return;
        }
        if let Some(line) = self.lines.get_mut(&origin) {
            line.retain(|other| *other != connection);
        }
        self.close_if_empty(origin);
    }

    /// Calls whose turn it is by now: for each address as many as it may ask in any case, then one of each address in turn, and of an address one
    /// connection after the other. `true` if others still wait; if none does, `waker` is woken when somebody comes.
    pub(super) fn serve(&mut self, now: Instant, waker: &Waker) -> bool {
        for _ in 0..self.order.len() {
            let Some(origin) = self.order.pop_front() else { break };
            self.order.push_back(origin);
            while self.lines.contains_key(&origin) && self.own.take(origin, now) {
                self.call(origin);
            }
        }
        while !self.order.is_empty() && self.spare.take((), now) {
            if let Some(origin) = self.order.pop_front() {
                self.order.push_back(origin);
                self.call(origin);
            }
        }
        let waits = !self.order.is_empty();
        if !waits {
            self.server = Some(waker.clone());
        }
        waits
    }

    fn call(&mut self, origin: Origin) {
        if let Some(next) = self.lines.get_mut(&origin).and_then(VecDeque::pop_front) {
            self.called.insert(next);
            if let Some(waker) = self.wakers.remove(&next) {
                waker.wake();
            }
        }
        self.close_if_empty(origin);
    }

    fn close_if_empty(&mut self, origin: Origin) {
        if self.lines.get(&origin).is_some_and(VecDeque::is_empty) {
            self.lines.remove(&origin);
            self.order.retain(|other| *other != origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Connections of addresses, each of which asks whenever it may.
    struct Crowd {
        turns: Turns,
        now: Instant,
    }

    impl Crowd {
        fn new() -> Self {
            Self { turns: Turns::new(), now: Instant::now() }
        }

        fn origin(address: u8) -> Origin {
            Origin::Ip4([203, 0, 113, address].into())
        }

        fn asks(&mut self, address: u8, connection: u8) -> bool {
            let id = ConnectionId::new_unchecked(usize::from(address) << 8 | usize::from(connection));
            self.turns.ask(id, Self::origin(address), self.now, Waker::noop())
        }

        /// What each of these connections gets answered in so many seconds, of as much as it wants.
        fn flood(&mut self, connections: &[(u8, u8)], seconds: u32) -> Vec<u32> {
            let mut answered = vec![0; connections.len()];
            for _ in 0..50 * seconds {
                self.now += Duration::from_millis(20);
                self.turns.serve(self.now, Waker::noop());
                for (&(address, connection), answered) in connections.iter().zip(&mut answered) {
                    while self.asks(address, connection) {
                        *answered += 1;
                    }
                }
            }
            answered
        }
    }

    #[test]
    fn ids_of_one_address_ask_no_more_than_one() {
        let mut crowd = Crowd::new();
        let ids: Vec<(u8, u8)> = (0..48).map(|id| (1, id)).collect();
        crowd.flood(&ids, 10);
        let answered: u32 = crowd.flood(&ids, 10).iter().sum();
        let most = 10 * (OWN_PER_SECOND + SPARE_PER_SECOND);
        assert!((most * 9 / 10..=most + 1).contains(&answered), "{answered} of {most}");
    }

    #[test]
    fn what_is_asked_from_many_addresses_is_bounded_and_each_has_its_part() {
        let mut crowd = Crowd::new();
        let ids: Vec<(u8, u8)> = (1..=6).flat_map(|address| (0..48).map(move |id| (address, id))).collect();
        crowd.flood(&ids, 10);
        let answered = crowd.flood(&ids, 10);
        let most = 10 * (6 * OWN_PER_SECOND + SPARE_PER_SECOND);
        assert!(answered.iter().sum::<u32>() <= most + 6, "{answered:?}");
        let (of_first, part) = (answered[..48].iter().sum::<u32>(), most / 6);
        assert!((part * 8 / 10..=part * 12 / 10).contains(&of_first), "{of_first}, not {part}");
        // Somebody honest waits for nobody, however many others do: a server of 126 blocks announces itself.
        assert!((0..252).all(|_| crowd.asks(9, 0)));
    }

    #[test]
    fn a_neighbour_of_those_who_flood_has_a_share_of_the_address() {
        let mut crowd = Crowd::new();
        let mut ids: Vec<(u8, u8)> = (1..=63).map(|id| (1, id)).collect();
        crowd.flood(&ids, 10);
        ids.push((1, 0));
        let answered = crowd.flood(&ids, 10);
        let part = 10 * (OWN_PER_SECOND + SPARE_PER_SECOND) / 64;
        assert!(answered[63] >= part * 8 / 10, "{} of {part}", answered[63]);
    }

    #[test]
    fn sixteen_servers_behind_one_router_announce_themselves_within_seconds() {
        let mut crowd = Crowd::new();
        let (mut left, mut rounds) = ([252_u32; 16], 0);
        while left.iter().any(|left| *left > 0) {
            crowd.now += Duration::from_millis(20);
            crowd.turns.serve(crowd.now, Waker::noop());
            for (server, left) in left.iter_mut().enumerate() {
                while *left > 0 && crowd.asks(1, server as u8) {
                    *left -= 1;
                }
            }
            rounds += 1;
        }
        assert!(rounds <= 50 * 8, "{} s", rounds / 50);
    }

    #[test]
    fn nothing_is_kept_of_those_who_leave() {
        let mut crowd = Crowd::new();
        let ids: Vec<(u8, u8)> = (1..=6).flat_map(|address| (0..48).map(move |id| (address, id))).collect();
        crowd.flood(&ids, 20);
        assert!(!crowd.turns.wakers.is_empty());
        for (address, id) in ids {
            let id = ConnectionId::new_unchecked(usize::from(address) << 8 | usize::from(id));
            crowd.turns.leave(id, Crowd::origin(address));
        }
        let turns = &crowd.turns;
        assert!(turns.order.is_empty() && turns.lines.is_empty() && turns.wakers.is_empty() && turns.called.is_empty());
        assert!(!crowd.turns.serve(crowd.now, Waker::noop()));
    }
}
