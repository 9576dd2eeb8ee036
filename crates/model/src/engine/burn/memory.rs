//! What burn's operations take, in values of f32.

use crate::engine::shapes::{AttentionSizes, Heads, PAGE_TOKENS};

/// The attention of a pass, whose examples are padded to the longest: masks, on the device and as they are made, of the usual and
/// of the last block; scores, of which a backward holds up to eight at a time (probabilities, their gradients, parts and turned copies of
/// both); and padded queries, keys and values.
pub(super) fn attention(AttentionSizes { longest, prefix, examples, heads }: AttentionSizes) -> u64 {
    let slots = longest.saturating_mul(examples);
    let text = slots.saturating_mul(longest.saturating_add(prefix));
    let seen = text.saturating_add(prefix.saturating_mul(prefix));
    let widths = (heads.query_width() + heads.key_width()) as u64;
    let padded = slots.saturating_add(prefix).saturating_mul(widths.saturating_mul(8));
    seen.saturating_mul(values_per_seen(heads)).saturating_add(padded)
}

/// The attention of a step: masks of all sequences; of one sequence at a time scores and what is read of its cache; and a cache's
/// copy when it grows.
pub(super) fn cached_attention(heads: Heads, sequences: &[(u64, u64)]) -> u64 {
    let (query_width, key_width) = (heads.query_width() as u64, heads.key_width() as u64);
    let of_sequence = |&(new, kept): &(u64, u64)| {
        let seen = new.saturating_add(kept).saturating_add(PAGE_TOKENS as u64);
        let scores = new.saturating_mul(seen).saturating_mul(values_per_seen(heads));
        let copies = seen.saturating_mul(4 * key_width).saturating_add(new.saturating_mul(4 * query_width));
        scores.saturating_add(copies)
    };
    sequences.iter().map(of_sequence).fold(0, u64::saturating_add)
}

/// Eight scores of every head at a time, and masks.
fn values_per_seen(heads: Heads) -> u64 {
    (heads.query as u64).saturating_mul(8).saturating_add(4)
}
