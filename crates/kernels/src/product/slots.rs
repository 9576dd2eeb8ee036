//! Which rows a cube multiplies by an expert of a mixture.
//!
//! The weights of experts lie one behind the other; a cube takes one that was chosen, and finds the rows that chose it itself. There is a row of cubes for each choice,
//! of which the first of its expert computes for all of them, or one for each expert, whichever is fewer; and behind each another one for each so many rows.

use cubecl::prelude::*;

/// What a row of cubes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Slots {
    Choices,
    Experts,
}

/// How long the lists of a cube's rows are: where each goes, the first choice of their expert, the row of `x` that each comes from, and the expert. They are read where they are needed, so that
/// registers are free in between.
pub(super) fn own_len(slots: Option<Slots>, together: usize) -> usize {
    if slots.is_some() { 2 * together + 2 } else { 1 }
}

/// Finds the choices that this cube computes, `together` at most, of `rows`, each of a row of `x` that `of_row` of them share; `own` has `rows` where there are no more.
#[cube]
pub(super) fn collect(
    chosen: &Array<u32>,
    own: &mut SharedMemory<u32>,
    rows: usize,
    of_row: usize,
    #[comptime] together: usize,
    #[comptime] units: usize,
    #[comptime] slots: Option<Slots>,
) {
    let unit = UNIT_POS_X as usize;
    let passed_over = CUBE_POS_Z as usize * together;
    let mut expert = CUBE_POS_Y;
    if comptime!(slots == Some(Slots::Choices)) {
        expert = chosen[CUBE_POS_Y as usize];
    }
    if unit < comptime!(together + 1) {
        own[unit] = rows as u32;
    }
    if unit == 0 {
        own[comptime!(2 * together + 1)] = expert;
    }
    sync_cube();
    for choice in range_stepped(unit, rows, units) {
        if chosen[choice] == expert {
            let mut before = 0usize;
            for other in 0..choice {
                before += select(chosen[other] == expert, 1usize, 0usize);
            }
            if before == 0 {
                own[together] = choice as u32;
            }
            if before >= passed_over && before < passed_over + together {
                own[before - passed_over] = choice as u32;
                own[before - passed_over + comptime!(together + 1)] = (choice / of_row) as u32;
            }
        }
    }
    sync_cube();
}

/// The first of the weight's rows, `columns` of which are an expert's.
#[cube]
pub(super) fn first_column_of(
    own: &SharedMemory<u32>,
    first: u32,
    columns: u32,
    #[comptime] together: usize,
    #[comptime] slots: Option<Slots>,
) -> usize {
    if comptime!(slots.is_some()) {
        (first + own[comptime!(2 * together + 1)] * columns) as usize
    } else {
        first as usize
    }
}

/// Whether there is anything to do that no other cube does.
#[cube]
pub(super) fn is_here(
    own: &SharedMemory<u32>,
    rows: usize,
    #[comptime] together: usize,
    #[comptime] slots: Option<Slots>,
) -> bool {
    let mut is_here = own[0] < rows as u32;
    if comptime!(slots == Some(Slots::Choices)) {
        is_here = is_here && own[together] == CUBE_POS_Y;
    }
    is_here
}

/// The row of the result that is this cube's row `row`.
#[cube]
pub(super) fn place_of(own: &SharedMemory<u32>, row: usize, #[comptime] slots: Option<Slots>) -> usize {
    if comptime!(slots.is_some()) { own[row] as usize } else { row }
}

/// The row of `x` that this cube's row `row` comes from.
#[cube]
pub(super) fn from_of(
    own: &SharedMemory<u32>,
    row: usize,
    first: usize,
    #[comptime] together: usize,
    #[comptime] slots: Option<Slots>,
) -> usize {
    if comptime!(slots.is_some()) { own[row + comptime!(together + 1)] as usize } else { first + row }
}
