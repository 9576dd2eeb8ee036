//! What the kernels take, in values of f32.

use crate::engine::shapes::{AttentionSizes, Heads};

/// Most parts that a device of many processors cuts a long sequence into.
const MOST_SPLITS: u64 = 64;

/// The attention of a pass: lists of tiles and what rows see; in a backward logarithms and what runs along, for each head, and the gradients of a prefix in parts.
pub(super) fn attention(AttentionSizes { longest, prefix, examples, heads }: AttentionSizes) -> u64 {
    let rows = longest.saturating_mul(examples).saturating_add(prefix);
    let of_heads = rows.saturating_mul(heads.query as u64);
    let parts = of_heads.div_ceil(1024).saturating_add(1);
    let of_prefix = parts.saturating_mul(prefix).saturating_mul(2 * heads.key_width() as u64);
    // A tile of thirteen words is at least one virtual query, forward and backward.
    of_heads.saturating_mul(2 + 2 * 14).saturating_add(of_prefix).saturating_add(rows.saturating_mul(2))
}

/// The attention of a step: tiles, pages, and the sums of sequences that are cut.
pub(super) fn cached_attention(heads: Heads, sequences: &[(u64, u64)]) -> u64 {
    let of_sequence = |&(new, kept): &(u64, u64)| {
        let splits = new.saturating_add(kept).div_ceil(256).min(MOST_SPLITS);
        let sums = new.saturating_mul(splits).saturating_mul((heads.query_width() + 2 * heads.query) as u64);
        let tiles = new.saturating_mul(8 * heads.query as u64 + 4);
        sums.saturating_add(tiles).saturating_add(new.saturating_add(kept))
    };
    sequences.iter().map(of_sequence).fold(0, u64::saturating_add)
}
