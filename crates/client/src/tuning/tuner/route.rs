//! Who ran the micro-batches of a batch.

use petals_protocol::Span;
use petals_swarm::PeerId;

use crate::planner::Hop;

/// A server's part in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopPasses {
    /// The server.
    pub peer: PeerId,
    /// The blocks that it ran.
    pub span: Span,
    /// Micro-batches that it ran forward.
    pub passes: usize,
}

/// Counts the hops of one more micro-batch, and keeps them in the order of the blocks.
pub(super) fn count(all: &mut Vec<HopPasses>, hops: &[Hop]) {
    for &Hop { peer, span } in hops {
        match all.iter_mut().find(|hop| (hop.peer, hop.span) == (peer, span)) {
            Some(hop) => hop.passes += 1,
            None => all.push(HopPasses { peer, span, passes: 1 }),
        }
    }
    all.sort_by_key(|hop| (hop.span, hop.peer));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_counted_by_server_and_blocks_in_their_order() {
        let span = |start, end| Span::new(start, end).unwrap();
        let (a, b, c) = (PeerId::random(), PeerId::random(), PeerId::random());
        let hop = |peer, span| Hop { peer, span };
        let mut all = Vec::new();
        count(&mut all, &[hop(a, span(0, 2)), hop(b, span(2, 4))]);
        count(&mut all, &[hop(c, span(0, 4))]);
        count(&mut all, &[hop(a, span(0, 2)), hop(b, span(2, 4))]);
        let seen: Vec<_> = all.iter().map(|hop| (hop.peer, hop.span, hop.passes)).collect();
        assert_eq!(seen, [(a, span(0, 2), 2), (c, span(0, 4), 1), (b, span(2, 4), 2)]);
    }
}
