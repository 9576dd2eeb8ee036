//! Which rows a request brings, and which of their outputs come back.

/// Which positions of each sequence are wanted, ascending.
pub(super) type Wanted = Vec<Vec<usize>>;

/// Rows that one request brings. A longer text is sent in parts, so that other sessions get their turns in between.
const CHUNK: usize = 512;

/// How many rows of each sequence come next, where `known` of them are there and `target` are to be.
pub(super) fn next(known: &[usize], target: &[usize]) -> Vec<usize> {
    let mut room = CHUNK;
    let rows = |(known, target): (&usize, &usize)| {
        let rows = target.saturating_sub(*known).min(room);
        room -= rows;
        rows
    };
    known.iter().zip(target).map(rows).collect()
}

/// Some of the rows that a hop gets.
pub(super) struct Chunk<'a> {
    /// Positions of each sequence in front of it.
    pub(super) known: &'a [usize],
    /// Its rows of each sequence.
    pub(super) lengths: &'a [usize],
    pub(super) wanted: &'a Wanted,
    /// All rows come back, and the prefix.
    pub(super) whole: bool,
}

impl Chunk<'_> {
    /// Rows of the chunk that are wanted.
    fn rows(&self) -> Vec<u32> {
        let (mut first, mut rows) = (0, Vec::new());
        for ((&start, &length), wanted) in self.known.iter().zip(self.lengths).zip(self.wanted) {
            let own = wanted.iter().filter(|&&position| (start..start + length).contains(&position));
            rows.extend(own.map(|position| (first + position - start) as u32));
            first += length;
        }
        rows
    }

    /// What to ask for. At least one row is read of every request, wanted or not. The last span's are always named, since its
    /// prefix is not wanted.
    pub(super) fn read_rows(&self, last: bool) -> Option<Vec<u32>> {
        let rows = self.rows();
        let all = rows.len() == self.lengths.iter().sum::<usize>();
        if self.whole || (all && !last) {
            return None;
        }
        let last = self.lengths.iter().sum::<usize>().saturating_sub(1);
        Some(if rows.is_empty() { vec![last as u32] } else { rows })
    }

    /// Sorts the rows of an answer to their sequences.
    pub(super) fn collect(&self, text: &[f32], hidden: usize, outputs: &mut [Vec<f32>]) {
        let rows = self.rows();
        let at = |number: usize, row: u32| if self.whole { row as usize } else { number };
        let (mut first, mut rows) = (0, rows.into_iter().enumerate().peekable());
        for (&length, output) in self.lengths.iter().zip(outputs) {
            let end = (first + length) as u32;
            while let Some((number, row)) = rows.next_if(|(_, row)| *row < end) {
                let from = at(number, row) * hidden;
                output.extend_from_slice(text.get(from..from + hidden).unwrap_or_default());
            }
            first += length;
        }
    }
}
