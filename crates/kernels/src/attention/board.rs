//! What a cube of the forward goes by, in shared memory: scores of its tile, and behind them its work.
//!
//! The compiler wants as many cubes at a time as registers allow (it does not know how much shared memory a cube has), and what units would keep from before the loop
//! over keys to its end, or from one tile to the next, is what it puts into slow memory for that. So such values are here, and are read between two
//! barriers where they are needed.

use cubecl::prelude::*;

use super::Shape;

/// The part's first position.
pub(super) const FROM: usize = 0;
/// The position behind its last one.
pub(super) const TO: usize = 1;
/// As of the tile of queries.
pub(super) const PREFIX: usize = 2;
/// As of the tile of queries.
pub(super) const KEYS: usize = 3;
/// Which key head.
pub(super) const KEY_HEAD: usize = 4;
/// The sequence's first row.
pub(super) const FIRST_ROW: usize = 5;
/// The first virtual query.
pub(super) const FIRST: usize = 6;
/// How many of them there are.
pub(super) const TAKEN: usize = 7;
/// Which part of the positions.
pub(super) const SPLIT: usize = 8;
/// Nothing, see [`unit_again`].
pub(super) const ZERO: usize = 9;
/// Words of that.
pub(super) const PLAN: usize = 10;
/// Words of each virtual query behind it: which positions it sees, from the first to behind the last, and these.
pub(super) const SEEN: usize = 6;
/// Its head's slope.
pub(super) const SLOPE: usize = 2;
/// Its largest score before the tile.
pub(super) const LARGEST: usize = 3;
/// Its largest score with the tile.
pub(super) const NOW: usize = 4;
/// The sum of the exponentials of what its scores are less than the largest one.
pub(super) const SUM: usize = 5;

/// Words of a board.
pub(super) fn board_words(shape: Shape) -> usize {
    shape.queries * shape.keys + PLAN + shape.queries * SEEN
}

/// A unit's number, as between two barriers: what follows from it is computed there, and not once for all tiles.
#[cube]
pub(super) fn unit_again(board: &SharedMemory<u32>, #[comptime] shape: Shape) -> usize {
    (UNIT_POS_X + board[comptime!(shape.queries * shape.keys + ZERO)]) as usize
}

/// Whether a virtual query sees a position; one that is none sees nothing.
#[cube]
pub(super) fn sees(board: &SharedMemory<u32>, query: usize, position: usize, #[comptime] shape: Shape) -> bool {
    let at = comptime!(shape.queries * shape.keys + PLAN) + query * SEEN;
    position >= board[at] as usize && position < board[at + 1] as usize
}
