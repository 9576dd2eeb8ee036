//! Which blocks a node serves when nobody told it.

use petals_protocol::{ServerInfo, ServerState, Span};

/// The range of `count` blocks out of `blocks` whose worst-served blocks are worst.
///
/// A block is served by the sum of the announced throughputs over it; servers that are still joining count. Of the
/// windows of `count` blocks the one is taken whose sorted coverage is lexicographically least, the first of equals (the
/// rule of Petals' `block_selection.py`).
pub(crate) fn choose(blocks: u32, count: u32, servers: &[ServerInfo]) -> Option<Span> {
    let count = count.min(blocks);
    let mut served = vec![0.0f64; blocks as usize];
    for info in servers.iter().filter(|info| matches!(info.state, ServerState::Joining | ServerState::Online)) {
        let Some(span) = Span::new(0, blocks).ok().and_then(|all| info.span.intersect(all)) else { continue };
        for block in span.blocks() {
            // Without a measurement a server still is better than none.
            served[block as usize] += f64::from(info.forward_tokens_per_s.unwrap_or(1.0).max(1e-3));
        }
    }
    let coverage = |start: u32| {
        let mut window = served[start as usize..(start + count) as usize].to_vec();
        window.sort_by(f64::total_cmp);
        window
    };
    let worst = (0..=blocks - count).min_by(|&a, &b| {
        let order = coverage(a).into_iter().zip(coverage(b)).map(|(a, b)| a.total_cmp(&b));
        order.into_iter().find(|order| order.is_ne()).unwrap_or_else(|| a.cmp(&b))
    })?;
    Span::new(worst, worst + count).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use petals_protocol::{Fingerprint, ModelId};

    fn server(start: u32, end: u32, state: ServerState, rate: f32) -> ServerInfo {
        let model = ModelId::new("m", Fingerprint([0; 8])).unwrap();
        let span = Span::new(start, end).unwrap();
        ServerInfo { forward_tokens_per_s: Some(rate), ..ServerInfo::new(model, span, state) }
    }

    fn chosen(count: u32, servers: &[ServerInfo]) -> (u32, u32) {
        choose(8, count, servers).unwrap().into()
    }

    #[test]
    fn an_empty_swarm_is_begun_at_block_zero() {
        assert_eq!(chosen(3, &[]), (0, 3));
        assert_eq!(chosen(99, &[]), (0, 8));
    }

    #[test]
    fn holes_come_first_then_slow_blocks() {
        let online = |a, b, rate| server(a, b, ServerState::Online, rate);
        assert_eq!(chosen(4, &[online(0, 4, 10.0)]), (4, 8));
        assert_eq!(chosen(2, &[online(0, 3, 10.0), online(4, 8, 10.0)]), (2, 4));
        assert_eq!(chosen(4, &[online(0, 4, 10.0), online(4, 8, 2.0)]), (4, 8));
    }

    #[test]
    fn joining_servers_count_and_leaving_ones_do_not() {
        let states = [server(0, 4, ServerState::Joining, 5.0), server(4, 8, ServerState::Draining, 5.0)];
        assert_eq!(chosen(4, &states), (4, 8));
    }

    #[test]
    fn a_record_that_claims_more_blocks_than_there_are_does_no_harm() {
        assert_eq!(chosen(4, &[server(6, 4_000_000_000, ServerState::Online, 1.0)]), (0, 4));
    }
}
