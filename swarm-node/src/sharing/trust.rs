//! Who is asked for files, who first, and who no more.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use petals_protocol::ContentHash;
use petals_swarm::PeerId;
use tokio::time::Instant;

/// How long somebody who failed is not asked.
const FORGIVEN: Duration = Duration::from_secs(600);
/// Where so many have failed lately, or so many have lied, nobody else is asked either: any number of servers can be made up, each failure costs some
/// seconds, and a lie a whole file.
const MOST_FAILED: usize = 16;
const MOST_LIARS: usize = 3;

/// What is known of those who were asked in this run.
#[derive(Debug, Default)]
pub(super) struct Trust {
    liars: HashSet<PeerId>,
    failed: HashMap<PeerId, Instant>,
}

impl Trust {
    /// What somebody sent was not what it should be.
    pub(super) fn lied(&mut self, peer: PeerId) {
        self.liars.insert(peer);
    }

    /// Somebody did not answer, or not to the end.
    pub(super) fn failed(&mut self, peer: PeerId, now: Instant) {
        self.failed.insert(peer, now);
    }

    /// Of `peers` those to be asked.
    pub(super) fn choose(&mut self, peers: impl IntoIterator<Item = PeerId>, now: Instant) -> Vec<PeerId> {
        self.failed.retain(|_, when| now.saturating_duration_since(*when) < FORGIVEN);
        if self.failed.len() >= MOST_FAILED || self.liars.len() >= MOST_LIARS {
            return Vec::new();
        }
        let trusted = |peer: &PeerId| !self.liars.contains(peer) && !self.failed.contains_key(peer);
        peers.into_iter().filter(trusted).collect()
    }
}

/// What servers are sorted by before they are asked for a content: near ones first, and of those that are about as near each content and each asker
/// has another order, so that all of them give.
pub(super) fn order(hash: &ContentHash, asker: &PeerId, peer: &PeerId, ping: Option<Duration>) -> (u32, u64) {
    let mut hasher = DefaultHasher::new();
    (hash.0, asker.to_bytes(), peer.to_bytes()).hash(&mut hasher);
    let far = ping.map_or(u32::MAX, |ping| u64::try_from(ping.as_millis()).unwrap_or(u64::MAX).max(4).ilog2());
    (far, hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerId {
        petals_swarm::Identity::generate().peer_id()
    }

    #[tokio::test]
    async fn liars_are_never_asked_again_and_who_failed_is_after_a_while() {
        let (mut trust, peers, now) = (Trust::default(), [peer(), peer(), peer()], Instant::now());
        assert_eq!(trust.choose(peers, now), peers);
        trust.lied(peers[0]);
        trust.failed(peers[1], now);
        assert_eq!(trust.choose(peers, now), peers[2..]);
        assert_eq!(trust.choose(peers, now + FORGIVEN), peers[1..]);
    }

    #[tokio::test]
    async fn made_up_servers_cost_no_more_than_a_few() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        (0..MOST_FAILED).for_each(|_| trust.failed(peer(), now));
        assert!(trust.choose([peer()], now).is_empty());
        assert_eq!(trust.choose([peer()], now + FORGIVEN).len(), 1);
        (0..MOST_LIARS).for_each(|_| trust.lied(peer()));
        assert!(trust.choose([peer()], now + 2 * FORGIVEN).is_empty());
    }

    #[test]
    fn near_servers_come_first_and_equals_in_another_order_each_time() {
        let (asker, one, two) = (peer(), peer(), peer());
        let ms = |ms| Some(Duration::from_millis(ms));
        let first = |content: u8, pings: [Option<Duration>; 2]| {
            let of = |peer, ping| order(&ContentHash([content; 32]), &asker, peer, ping);
            of(&one, pings[0]) < of(&two, pings[1])
        };
        assert!((0..64).all(|content| first(content, [ms(2), ms(90)]) && first(content, [ms(900), None])));
        let firsts = (0..64).filter(|content| first(*content, [ms(1), ms(2)])).count();
        assert!((8..56).contains(&firsts), "{firsts}");
    }
}
