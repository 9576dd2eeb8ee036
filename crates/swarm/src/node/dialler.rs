//! Keeps connections to the configured peers, with growing pauses between attempts, and now and then tries members that could
//! not be reached any more: after the network between two halves of a swarm has healed, nothing else would bring them together again.

use std::time::Duration;

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use crate::addresses::split_peer;
use crate::member_file::Member;

/// Pause after the first failure: servers and their bootstrap node are often started together.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause: a bootstrap node that returns is found within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Members that are remembered after they were lost; more are not needed to find the others through them.
const MOST_LOST: usize = 32;
/// Longest pause between attempts to reach one of them.
const LONGEST_LOST_PAUSE: Duration = Duration::from_secs(600);
/// Attempts until it is forgotten: seven hours.
const LOST_ATTEMPTS: u32 = 45;

/// Members met before this start that are tried at a time.
const MOST_REMEMBERED: usize = 32;
/// How long the configured peers have before others are tried.
const CONFIGURED_FIRST: Duration = Duration::from_secs(3);
/// Pauses between attempts at those met before this start, as long as no member is there.
const FIRST_REMEMBERED_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_REMEMBERED_PAUSE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct Dialler {
    /// Those that are configured.
    targets: Vec<Target>,
    lost: Vec<Lost>,
    /// Those met before this start.
    remembered: Remembered,
    /// Before the first attempt to reach a lost member.
    redial_pause: Duration,
}

/// Members that were met before this start: the way back into a swarm whose configured peers are gone.
#[derive(Debug, Default)]
struct Remembered {
    members: Vec<(PeerId, Vec<Multiaddr>)>,
    pause: Duration,
    /// When to dial all of them; `None` while a member is there.
    due: Option<Instant>,
}

/// A member that was in the routing table and could not be reached.
#[derive(Debug)]
struct Lost {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    pause: Duration,
    due: Instant,
    attempts: u32,
}

#[derive(Debug)]
struct Target {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    pause: Duration,
    /// When to dial; `None` while connected.
    due: Option<Instant>,
}

impl Dialler {
    /// One target per peer; several addresses may belong to one.
    pub(super) fn new(local: PeerId, addresses: &[Multiaddr], redial_pause: Duration) -> Self {
        let mut targets: Vec<Target> = Vec::new();
        for (peer, address) in addresses.iter().filter_map(|address| split_peer(address).ok()) {
            match targets.iter_mut().find(|target| target.peer == peer) {
                Some(target) => target.addresses.push(address),
                // One list of peers may serve all nodes of a swarm, the listed ones included.
                None if peer == local => {}
                None => {
                    let due = Some(Instant::now());
                    targets.push(Target { peer, addresses: vec![address], pause: FIRST_PAUSE, due });
                }
            }
        }
        Self { targets, lost: Vec::new(), remembered: Remembered::default(), redial_pause }
    }

    /// Members met before this start, the latest in front. They are tried at once if no peers are configured, and a little later otherwise.
    pub(super) fn remember(&mut self, members: &[Member], now: Instant) {
        let known = |member: &&Member| self.targets.iter().all(|target| target.peer != member.peer);
        let members = members.iter().filter(known).take(MOST_REMEMBERED);
        let members: Vec<_> = members.map(|member| (member.peer, member.addresses.clone())).collect();
        let first = if self.targets.is_empty() { now } else { now + CONFIGURED_FIRST };
        let due = (!members.is_empty()).then_some(first);
        self.remembered = Remembered { members, pause: FIRST_REMEMBERED_PAUSE, due };
    }

    /// Whether a member of the swarm is there. While none is, those met before this start are tried.
    pub(super) fn set_company(&mut self, company: bool, now: Instant) {
        let wait = company || self.remembered.members.is_empty();
        self.remembered.pause = FIRST_REMEMBERED_PAUSE;
        self.remembered.due = (!wait).then(|| now + self.remembered.pause);
    }

    pub(super) fn peers(&self) -> Vec<PeerId> {
        self.targets.iter().map(|target| target.peer).collect()
    }

    /// The addresses of a configured peer.
    pub(super) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.targets.iter().find(|target| target.peer == *peer).map_or(&[], |target| &target.addresses)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let lost = self.lost.iter().map(|lost| lost.due);
        self.targets.iter().filter_map(|target| target.due).chain(lost).chain(self.remembered.due).min()
    }

    /// The attempts to make now. Each sets the time of the next one, should nothing be heard of it.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<DialOpts> {
        let due = self.targets.iter_mut().filter(|target| target.due.is_some_and(|due| due <= now));
        let dial = |peer: PeerId, addresses: &[Multiaddr]| {
            DialOpts::peer_id(peer).condition(PeerCondition::NotDialing).addresses(addresses.to_vec()).build()
        };
        let mut attempts: Vec<DialOpts> = due
            .map(|target| {
                target.due = Some(now + target.pause);
                target.pause = (target.pause * 2).min(LONGEST_PAUSE);
                dial(target.peer, &target.addresses)
            })
            .collect();
        self.lost.retain(|lost| lost.attempts < LOST_ATTEMPTS || lost.due > now);
        attempts.extend(self.lost.iter_mut().filter(|lost| lost.due <= now).map(|lost| {
            lost.due = now + lost.pause;
            lost.pause = (lost.pause * 2).min(LONGEST_LOST_PAUSE);
            lost.attempts += 1;
            dial(lost.peer, &lost.addresses)
        }));
        let remembered = &mut self.remembered;
        if remembered.due.is_some_and(|due| due <= now) {
            remembered.due = Some(now + remembered.pause);
            remembered.pause = (remembered.pause * 2).min(LONGEST_REMEMBERED_PAUSE);
            attempts.extend(remembered.members.iter().map(|(peer, addresses)| dial(*peer, addresses)));
        }
        attempts
    }

    /// A member of the hash table was given up because it could not be reached at `addresses`.
    pub(super) fn lost(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, now: Instant) {
        if addresses.is_empty() || self.find(&peer).is_some() || self.lost.iter().any(|lost| lost.peer == peer) {
            return;
        }
        if self.lost.len() >= MOST_LOST {
            // The one that was tried most often is the one that is least likely to come back.
            let hopeless = (0..self.lost.len()).max_by_key(|&number| self.lost[number].attempts);
            hopeless.map(|number| self.lost.swap_remove(number));
        }
        let (pause, due) = (2 * self.redial_pause, now + self.redial_pause);
        self.lost.push(Lost { peer, addresses, pause, due, attempts: 0 });
    }

    pub(super) fn connected(&mut self, peer: &PeerId) {
        self.lost.retain(|lost| lost.peer != *peer);
        if let Some(target) = self.find(peer) {
            target.due = None;
            target.pause = FIRST_PAUSE;
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(target) = self.find(peer) {
            target.due = Some(now + target.pause);
        }
    }

    fn find(&mut self, peer: &PeerId) -> Option<&mut Target> {
        self.targets.iter_mut().find(|target| target.peer == *peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIAL_PAUSE: Duration = Duration::from_secs(30);

    #[test]
    fn attempts_are_repeated_with_growing_pauses_until_connected() {
        let (local, peer) = (PeerId::random(), PeerId::random());
        let address = |peer| format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}").parse().unwrap();
        let mut dialler = Dialler::new(local, &[address(peer), address(peer), address(local)], REDIAL_PAUSE);
        assert_eq!((dialler.peers(), dialler.addresses(&peer).len()), (vec![peer], 2));
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(dialler.take_due(now).len(), 1);
            assert!(dialler.take_due(now).is_empty());
            let next = dialler.next_due().unwrap();
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses.is_sorted() && pauses[0] == FIRST_PAUSE && pauses[7] == LONGEST_PAUSE, "{pauses:?}");
        dialler.connected(&peer);
        assert_eq!(dialler.next_due(), None);
        dialler.disconnected(&peer, now);
        assert_eq!(dialler.next_due(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn lost_members_are_tried_for_hours_and_then_forgotten() {
        let (mut dialler, start) = (Dialler::new(PeerId::random(), &[], REDIAL_PAUSE), Instant::now());
        let address = || vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()];
        let (peer, back) = (PeerId::random(), PeerId::random());
        [peer, peer, back].into_iter().for_each(|peer| dialler.lost(peer, address(), start));
        dialler.lost(PeerId::random(), Vec::new(), start);
        assert!(dialler.take_due(start).is_empty());
        dialler.connected(&back);
        let mut attempts = 0;
        let mut now = start;
        while let Some(due) = dialler.next_due() {
            now = due;
            attempts += dialler.take_due(now).len() as u32;
        }
        assert_eq!(attempts, LOST_ATTEMPTS);
        assert!(now - start > Duration::from_secs(6 * 3600), "{:?}", now - start);
    }

    #[test]
    fn those_met_before_are_tried_while_nobody_is_there() {
        let (local, configured, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let member = |peer| Member { peer, addresses: vec![address.clone()], met_s: 1 };
        let known = [member(PeerId::random()), member(configured), member(PeerId::random())];
        let mut dialler = Dialler::new(local, &[], REDIAL_PAUSE);
        dialler.remember(&known, now);
        assert_eq!(dialler.take_due(now).len(), 3);
        assert_eq!(dialler.next_due(), Some(now + FIRST_REMEMBERED_PAUSE));
        dialler.set_company(true, now);
        assert_eq!(dialler.next_due(), None);
        dialler.set_company(false, now);
        assert_eq!(dialler.next_due(), Some(now + FIRST_REMEMBERED_PAUSE));
        let peer = format!("{address}/p2p/{configured}").parse().unwrap();
        let mut dialler = Dialler::new(local, &[peer], REDIAL_PAUSE);
        let now = Instant::now();
        dialler.remember(&known, now);
        assert_eq!(dialler.take_due(now).len(), 1, "the configured one has its time");
        dialler.targets[0].due = None;
        assert_eq!(dialler.take_due(now + CONFIGURED_FIRST).len(), 2);
        dialler.remember(&[], now);
        dialler.set_company(false, now);
        assert_eq!(dialler.next_due(), None, "there is nobody to try");
    }

    #[test]
    fn those_that_were_tried_most_make_room() {
        let (mut dialler, start) = (Dialler::new(PeerId::random(), &[], REDIAL_PAUSE), Instant::now());
        let lose = |dialler: &mut Dialler, now| {
            dialler.lost(PeerId::random(), vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()], now);
        };
        (0..MOST_LOST).for_each(|_| lose(&mut dialler, start));
        assert_eq!(dialler.take_due(start + REDIAL_PAUSE).len(), MOST_LOST);
        (0..MOST_LOST).for_each(|_| lose(&mut dialler, start + REDIAL_PAUSE));
        assert_eq!(dialler.lost.len(), MOST_LOST);
        assert!(dialler.lost.iter().all(|lost| lost.attempts == 0));
    }
}
