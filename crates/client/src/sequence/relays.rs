//! Which servers pass rows on to each other.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use petals_swarm::PeerId;

use super::trace::HopRecord;
use crate::lock::lock;
use crate::planner::Hop;

/// Two servers that could not pass rows on are not asked to again before this has passed.
const AVOID_FOR: Duration = Duration::from_secs(60);

/// How a micro-batch goes from one server to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RelayMode {
    /// The servers pass it on to each other; where they cannot, as under [`Self::Star`]. The default: this client's link
    /// carries a micro-batch once each way, however many servers there are.
    #[default]
    Chain,
    /// Through this client.
    Star,
}

impl fmt::Display for RelayMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chain => "chain",
            Self::Star => "star",
        })
    }
}

impl FromStr for RelayMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "chain" => Ok(Self::Chain),
            "star" => Ok(Self::Star),
            _ => Err(format!("`{text}` is no way to relay: use chain or star")),
        }
    }
}

/// Pairs of servers between which rows travel through the client for a while, whatever their order.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    avoided: Mutex<HashMap<(PeerId, PeerId), Instant>>,
}

impl Relays {
    /// How many hops from the first on make one chain.
    pub(super) fn run(&self, route: &[Hop], mode: RelayMode) -> usize {
        match mode {
            RelayMode::Star => 1,
            RelayMode::Chain => 1 + route.windows(2).take_while(|pair| self.may(pair[0].peer, pair[1].peer)).count(),
        }
    }

    /// How many hops from the last on make one chain backward: each still has its stash.
    pub(super) fn run_back(&self, hops: &[HopRecord], mode: RelayMode) -> usize {
        if mode == RelayMode::Star {
            return 1;
        }
        let links = hops
            .windows(2)
            .rev()
            .take_while(|pair| pair.iter().all(HopRecord::has_stash) && self.may(pair[1].hop.peer, pair[0].hop.peer));
        1 + links.count()
    }

    /// Lets rows between these two travel through the client for a while.
    pub(super) fn avoid(&self, one: PeerId, other: PeerId) {
        let now = Instant::now();
        let mut avoided = lock(&self.avoided);
        avoided.retain(|_, until| now < *until);
        avoided.insert(pair(one, other), now + AVOID_FOR);
    }

    /// Whether any two are avoided now.
    pub(super) fn any_avoided(&self) -> bool {
        !lock(&self.avoided).is_empty()
    }

    /// Whether rows may go from one to the other.
    pub(super) fn may(&self, one: PeerId, other: PeerId) -> bool {
        one != other && lock(&self.avoided).get(&pair(one, other)).is_none_or(|until| Instant::now() >= *until)
    }
}

/// Who cannot reach the other is hardly reached by it.
fn pair(one: PeerId, other: PeerId) -> (PeerId, PeerId) {
    (one.min(other), one.max(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::Span;

    #[test]
    fn chains_end_where_two_servers_do_not_reach_each_other() {
        let relays = Relays::default();
        let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
        let hop = |n: u32| Hop { peer: peers[n as usize], span: Span::new(n, n + 1).unwrap() };
        let route: Vec<Hop> = (0..4).map(hop).collect();
        assert_eq!((relays.run(&route, RelayMode::Chain), relays.run(&route, RelayMode::Star)), (4, 1));
        relays.avoid(peers[2], peers[1]);
        assert_eq!(relays.run(&route, RelayMode::Chain), 2);
        assert_eq!(relays.run(&route[1..], RelayMode::Chain), 1);
        assert_eq!(relays.run(&route[2..], RelayMode::Chain), 2);
        assert_eq!(relays.run(&[], RelayMode::Chain), 1);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for mode in [RelayMode::Chain, RelayMode::Star] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("ring".parse::<RelayMode>().is_err());
    }
}
