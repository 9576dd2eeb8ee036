//! Which servers may run what, as the user wants it.

use std::collections::HashSet;
use std::fmt;

use petals_protocol::Span;
use petals_swarm::PeerId;

/// The user's wishes. By default every server may run what it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRules {
    /// Only these servers; empty: all.
    pub allow: HashSet<PeerId>,
    /// Never these.
    pub block: HashSet<PeerId>,
    /// These blocks on this server alone. Where pins overlap the last one counts.
    pub pins: Vec<(Span, PeerId)>,
    /// The model's first and last blocks, as many as the next two say, only on these; empty: on all. Whoever runs them sees what goes in (which tells
    /// the text) and what comes out (which tells the next word).
    pub trusted: HashSet<PeerId>,
    /// First blocks that only trusted servers run.
    pub trusted_first: u32,
    /// Last blocks that only trusted servers run.
    pub trusted_last: u32,
}

impl Default for RouteRules {
    fn default() -> Self {
        let (allow, block, pins, trusted) = Default::default();
        Self { allow, block, pins, trusted, trusted_first: 1, trusted_last: 1 }
    }
}

/// Why a server that holds a block may not run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exclusion {
    /// There is a list of allowed servers, and it is not in it.
    NotAllowed,
    /// The user wants it never to be used.
    Blocked,
    /// The block is pinned to another one.
    Pinned(PeerId),
    /// The block is one of the first or last ones, and it is not trusted.
    NotTrusted,
    /// Other servers found its results to be wrong.
    Untrue,
    /// Its weights are not those that are used, though its model has the name.
    OtherWeights,
    /// It does not say what its weights are, and the user has said what they must be.
    UnnamedWeights,
    /// It computes in a dtype that the user does not accept.
    Dtype,
    /// It called this very request a mistake.
    Rejected,
    /// It is to be done without this one, for comparison.
    Without,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed => f.write_str("not in --allow"),
            Self::Blocked => f.write_str("in --block"),
            Self::Pinned(peer) => write!(f, "--pin gives the block to {peer}"),
            Self::NotTrusted => f.write_str("not in --trusted, as whoever runs the first and last blocks must be"),
            Self::Untrue => f.write_str("others found its results to be wrong"),
            Self::OtherWeights => f.write_str("it has other weights than those in use"),
            Self::UnnamedWeights => f.write_str("it does not say which weights it has, as --weights demands"),
            Self::Dtype => f.write_str("it computes in a dtype that is not accepted (--server-dtype)"),
            Self::Rejected => f.write_str("it rejects the request"),
            Self::Without => f.write_str("another server's word is wanted"),
        }
    }
}

impl RouteRules {
    /// Peers that the user named for something else than never to use them.
    pub(crate) fn named(&self) -> impl Iterator<Item = &PeerId> {
        self.allow.iter().chain(&self.trusted).chain(self.pins.iter().map(|(_, peer)| peer))
    }

    /// Whether `peer` is among [`Self::named`].
    pub(crate) fn names(&self, peer: &PeerId) -> bool {
        self.named().any(|named| named == peer)
    }

    /// Why `peer` may not run `block` of a model that consists of `model`, if it may not.
    pub(super) fn exclusion(&self, peer: PeerId, block: u32, model: Span) -> Option<Exclusion> {
        self.peer_exclusion(peer).or_else(|| self.block_exclusion(peer, block, model))
    }

    /// Why `peer` may not run anything.
    pub(crate) fn peer_exclusion(&self, peer: PeerId) -> Option<Exclusion> {
        if self.block.contains(&peer) {
            return Some(Exclusion::Blocked);
        }
        (!self.allow.is_empty() && !self.allow.contains(&peer)).then_some(Exclusion::NotAllowed)
    }

    /// Why `peer` may not run this block, though it may others.
    pub(super) fn block_exclusion(&self, peer: PeerId, block: u32, model: Span) -> Option<Exclusion> {
        let pin = self.pins.iter().rev().find(|(span, _)| span.contains(block));
        if let Some((_, pinned)) = pin.filter(|(_, pinned)| *pinned != peer) {
            return Some(Exclusion::Pinned(*pinned));
        }
        let before = block.saturating_sub(model.start());
        let behind = model.end().saturating_sub(block).saturating_sub(1);
        let at_an_end = before < self.trusted_first || behind < self.trusted_last;
        let distrusted = at_an_end && !self.trusted.is_empty() && !self.trusted.contains(&peer);
        distrusted.then_some(Exclusion::NotTrusted)
    }

    /// Reads a pin, `BLOCKS=PEER` with blocks as `A..B` or a single one.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn parse_pin(text: &str) -> Result<(Span, PeerId), PinError> {
        let (blocks, peer) = text.split_once('=').ok_or(PinError::NoPeer)?;
        let single = || blocks.parse::<u32>().ok().and_then(|block| Span::new(block, block.checked_add(1)?).ok());
        let span = blocks.parse::<Span>().ok().or_else(single).ok_or(PinError::Blocks)?;
        Ok((span, peer.parse().map_err(|_| PinError::Peer)?))
    }
}

/// Why a text is no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is no `=`.
    #[error("write BLOCKS=PEER, for example 0..4=12D3Koo…")]
    NoPeer,
    /// In front of it are no blocks.
    #[error("write blocks as A..B, or the number of one")]
    Blocks,
    /// Behind it is no peer id.
    #[error("behind = belongs the id of a peer, as `petals-node` prints it behind /p2p/")]
    Peer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_and_bad_ones_explained() {
        let peer = PeerId::random();
        let span = |start, end| Span::new(start, end).unwrap();
        assert_eq!(RouteRules::parse_pin(&format!("2..5={peer}")), Ok((span(2, 5), peer)));
        assert_eq!(RouteRules::parse_pin(&format!("7={peer}")), Ok((span(7, 8), peer)));
        assert_eq!(RouteRules::parse_pin("2..5"), Err(PinError::NoPeer));
        assert_eq!(RouteRules::parse_pin(&format!("5..5={peer}")), Err(PinError::Blocks));
        assert_eq!(RouteRules::parse_pin(&format!("{}={peer}", u32::MAX)), Err(PinError::Blocks));
        assert_eq!(RouteRules::parse_pin("2..5=me"), Err(PinError::Peer));
    }

    #[test]
    fn trust_counts_at_the_ends_of_the_model_only() {
        let (friend, stranger) = (PeerId::random(), PeerId::random());
        let rules = RouteRules { trusted: [friend].into(), ..RouteRules::default() };
        let model = Span::new(0, 4).unwrap();
        let of = |block| rules.exclusion(stranger, block, model);
        assert_eq!(
            [of(0), of(1), of(2), of(3)],
            [Some(Exclusion::NotTrusted), None, None, Some(Exclusion::NotTrusted)]
        );
        assert!((0..4).all(|block| rules.exclusion(friend, block, model).is_none()));
    }

    #[test]
    fn as_many_blocks_are_trusted_peers_as_the_user_wants() {
        let (friend, stranger) = (PeerId::random(), PeerId::random());
        let rules = |trusted_first, trusted_last| RouteRules {
            trusted: [friend].into(),
            trusted_first,
            trusted_last,
            ..RouteRules::default()
        };
        let model = Span::new(0, 6).unwrap();
        let refused = |rules: &RouteRules| -> Vec<u32> {
            (0..6).filter(|&block| rules.exclusion(stranger, block, model).is_some()).collect()
        };
        assert_eq!(refused(&rules(3, 1)), [0, 1, 2, 5]);
        assert_eq!(refused(&rules(0, 2)), [4, 5]);
        assert_eq!(refused(&rules(0, 0)), [0; 0]);
        assert_eq!(refused(&rules(9, 0)).len(), 6);
        assert!((0..6).all(|block| rules(9, 9).exclusion(friend, block, model).is_none()));
        let nobody = RouteRules { trusted: [].into(), ..rules(6, 6) };
        assert_eq!(refused(&nobody), [0; 0], "without trusted peers there is nothing to choose");
    }
}
