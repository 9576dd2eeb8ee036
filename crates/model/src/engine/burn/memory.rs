//! What burn's operations take, in values of f32.

use crate::engine::shapes::{AttentionSizes, Heads, PAGE_TOKENS};

/// The attention of a pass, whose examples are padded to the longest: masks; scores, of which a backward holds up to eight at a time
/// (probabilities, their gradients, parts and turned copies of both); biases; and padded queries, keys and values.
pub(super) fn attention(AttentionSizes { longest, prefix, examples, heads }: AttentionSizes) -> u64 {
    let slots = longest.saturating_mul(examples);
    // A sink is a column more.
    let columns = longest.saturating_add(prefix).saturating_add(1);
    let text = slots.saturating_mul(columns);
    let seen = text.saturating_add(prefix.saturating_mul(prefix.saturating_add(1)));
    let widths = (heads.query_width() + heads.key_width()) as u64;
    let padded = slots.saturating_add(prefix).saturating_mul(widths.saturating_mul(8));
    let biases = biases(heads, columns.saturating_add(prefix));
    seen.saturating_mul(values_per_seen(heads)).saturating_add(padded).saturating_add(biases)
}

/// The attention of a step: masks and biases of all sequences; of one sequence at a time scores and what is read of its cache, keys and values widened from
/// eight bits, their parts, all of them together, and with their scales; and a cache's copy when it grows.
pub(super) fn cached_attention(heads: Heads, sequences: &[(u64, u64)]) -> u64 {
    let (query_width, key_width) = (heads.query_width() as u64, heads.key_width() as u64);
    let of_sequence = |&(new, kept): &(u64, u64)| {
        // With the rest of a page, which is less than a page, and a sink's column.
        let seen = new.saturating_add(kept).saturating_add(PAGE_TOKENS as u64);
        let scores = new.saturating_mul(seen).saturating_mul(values_per_seen(heads));
        let copies = seen.saturating_mul(12 * key_width).saturating_add(new.saturating_mul(4 * query_width));
        scores.saturating_add(copies).saturating_add(biases(heads, seen))
    };
    sequences.iter().map(of_sequence).fold(0, u64::saturating_add)
}

/// Eight scores of every head at a time, and under a soft cap the tanh of each and its square; and masks: those of up to three
/// windows, of the usual and of the last block, and one as it is made.
fn values_per_seen(heads: Heads) -> u64 {
    let scores = if heads.soft_cap.is_some() { 10 } else { 8 };
    (heads.query as u64).saturating_mul(scores).saturating_add(7)
}

/// ALiBi's biases, on the device and as they are made, of the usual and of the last block.
fn biases(heads: Heads, columns: u64) -> u64 {
    if heads.alibi.is_some() { columns.saturating_mul(4 * heads.query as u64) } else { 0 }
}
