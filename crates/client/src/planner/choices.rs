//! Where there is somebody to choose, and of whom nobody knows yet whether they keep what they announce.

use petals_protocol::Span;
use petals_swarm::PeerId;

use super::{Candidate, Hop, Planner};

/// Where a request waits for others for so many seconds, whoever only says that it is quick is worth a try.
const CROWDED: f64 = 0.5;

/// Whether a server was as quick as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Punctuality {
    /// Nobody asked it yet. It is not used for blocks of somebody who was on time and has room.
    #[default]
    Unknown,
    /// It was.
    OnTime,
    /// Time passed that it did not account for; what it costs says how much.
    Late,
}

/// What there is to find out before a route is planned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Choices {
    /// Of whom nothing is known, each with a block for which there are others.
    pub(crate) unknown: Vec<Hop>,
    /// Who was late, likewise.
    pub(crate) late: Vec<Hop>,
    /// Those of the unknown who hold blocks for which there is nobody who was on time.
    pub(crate) settling: Vec<PeerId>,
}

impl Planner<'_> {
    /// Who could be tried out to plan `blocks` better. Blocks that one server alone may run leave nothing to choose.
    pub(crate) fn choices(&self, blocks: Span) -> Choices {
        let mut holders: Vec<(usize, bool)> = vec![(0, false); blocks.len()];
        let usable = |candidate: &&Candidate| !candidate.banned && candidate.excluded.is_none();
        let mut hops = Vec::new();
        for candidate in self.candidates.iter().filter(usable) {
            let Some(span) = candidate.span.intersect(blocks) else { continue };
            for block in span.blocks().filter(|block| self.exclusion(candidate, *block).is_none()) {
                let (count, on_time) = &mut holders[(block - blocks.start()) as usize];
                *count += 1;
                *on_time |= candidate.punctuality == Punctuality::OnTime;
                hops.push((candidate.peer, candidate.punctuality, block));
            }
        }
        let contested = |block: u32| holders[(block - blocks.start()) as usize].0 > 1;
        let first_of = |wanted: Punctuality| -> Vec<Hop> {
            let mut found: Vec<Hop> = Vec::new();
            let contested = hops.iter().filter(|(_, is, block)| *is == wanted && contested(*block));
            for &(peer, _, block) in contested {
                // Those of a server follow each other.
                if found.last().is_none_or(|hop: &Hop| hop.peer != peer)
                    && let Ok(span) = Span::new(block, block + 1)
                {
                    found.push(Hop { peer, span });
                }
            }
            found
        };
        let unsettled = |block: u32| contested(block) && !holders[(block - blocks.start()) as usize].1;
        let of_unsettled = hops.iter().filter(|(_, is, block)| *is == Punctuality::Unknown && unsettled(*block));
        let mut settling: Vec<PeerId> = of_unsettled.map(|(peer, ..)| *peer).collect();
        settling.dedup();
        Choices { unknown: first_of(Punctuality::Unknown), late: first_of(Punctuality::Late), settling }
    }

    /// Of each block, whether somebody may run it who was on time, has not failed since, and has room.
    pub(super) fn on_time(&self, usable: &[(usize, Span)], blocks: Span) -> Vec<bool> {
        let mut on_time = vec![false; blocks.len()];
        for &(number, span) in usable {
            let candidate = &self.candidates[number];
            let has_room = candidate.queue_seconds < CROWDED;
            if candidate.banned || candidate.punctuality != Punctuality::OnTime || !has_room {
                continue;
            }
            let may =
                span.blocks().filter(|block| self.rules.block_exclusion(candidate.peer, *block, self.model).is_none());
            may.for_each(|block| on_time[(block - blocks.start()) as usize] = true);
        }
        on_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::RouteRules;

    fn span(start: u32, end: u32) -> Span {
        Span::new(start, end).unwrap()
    }

    fn candidate(start: u32, end: u32, punctuality: Punctuality) -> Candidate {
        Candidate { punctuality, ..Candidate::new(PeerId::random(), span(start, end), 0.1) }
    }

    #[test]
    fn only_where_there_is_a_choice_somebody_is_tried_out() {
        use Punctuality::{Late, OnTime, Unknown};
        let alone = candidate(0, 2, Unknown);
        let pair = [candidate(2, 4, Unknown), candidate(2, 4, Unknown)];
        let rules = RouteRules::default();
        let all = [alone.clone(), pair[0].clone(), pair[1].clone()];
        let choices = Planner::new(&all, &rules, span(0, 4)).choices(span(0, 4));
        let hop = |candidate: &Candidate| Hop { peer: candidate.peer, span: span(2, 3) };
        assert_eq!(choices.unknown, pair.each_ref().map(hop));
        assert_eq!((choices.settling, choices.late), (vec![pair[0].peer, pair[1].peer], vec![]));
        let known = [alone.clone(), candidate(2, 4, OnTime), candidate(2, 4, Late)];
        let choices = Planner::new(&known, &rules, span(0, 4)).choices(span(0, 4));
        assert_eq!((choices.unknown.len(), choices.late, choices.settling.len()), (0, vec![hop(&known[2])], 0));
        // Nobody waits for who can only add to a choice.
        let more = [known[1].clone(), candidate(1, 4, Unknown), candidate(0, 2, Unknown)];
        let choices = Planner::new(&more, &rules, span(0, 4)).choices(span(0, 4));
        assert_eq!((choices.unknown.len(), choices.settling), (2, vec![more[1].peer, more[2].peer]));
        let choices = Planner::new(&more, &rules, span(0, 4)).choices(span(2, 4));
        assert_eq!((choices.unknown.len(), choices.settling), (1, vec![]));
        let banned = [alone, Candidate { banned: true, ..pair[0].clone() }, pair[1].clone()];
        assert_eq!(Planner::new(&banned, &rules, span(0, 4)).choices(span(0, 4)), Choices::default());
    }

    #[test]
    fn who_was_on_time_comes_before_who_only_says_so() {
        use Punctuality::{Late, OnTime, Unknown};
        let rules = RouteRules::default();
        let slow = candidate(0, 4, OnTime);
        let claims = Candidate { block_seconds: 1e-6, ..candidate(0, 4, Unknown) };
        let route = |all: &[Candidate]| Planner::new(all, &rules, span(0, 4)).fastest(span(0, 4)).unwrap().hops;
        assert_eq!(route(&[slow.clone(), claims.clone()])[0].peer, slow.peer);
        // Once it was tried, its speed counts.
        let faster = Candidate { punctuality: OnTime, ..claims.clone() };
        assert_eq!(route(&[slow.clone(), faster.clone()])[0].peer, faster.peer);
        // Where nobody was on time, who was late has no advantage.
        let late = Candidate { queue_seconds: 0.9, ..candidate(0, 4, Late) };
        assert_eq!(route(&[late, claims.clone()])[0].peer, claims.peer);
        // And whoever failed or has no room is no better than somebody unknown.
        let banned = Candidate { banned: true, ..slow.clone() };
        assert_eq!(route(&[banned, claims.clone()])[0].peer, claims.peer);
        let busy = Candidate { queue_seconds: CROWDED, ..slow };
        assert_eq!(route(&[busy, claims.clone()])[0].peer, claims.peer);
    }
}
