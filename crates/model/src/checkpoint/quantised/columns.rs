//! Words of a matrix that lies the other way round: a row of the matrix is a column of them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::stored::Stored;

/// Most words of columns that a thread keeps, beside a single one, which may be longer.
const KEPT: usize = 1 << 18;

/// A tensor of words `[height, width]` of which columns are read, most often one after the other.
///
/// Words below each other are a row of the tensor apart, and what a processor fetches for one of them has its neighbours as well. So each
/// thread turns some columns at once and keeps them for when they are asked for: reading a matrix takes a fifth of the time.
#[derive(Debug)]
pub(super) struct Columns {
    words: Stored,
    height: usize,
    width: usize,
    /// How many columns are turned at once.
    together: usize,
    /// Tells tensors apart, whatever was mapped to the same place before.
    number: u64,
}

/// Columns of one tensor that a thread has turned.
struct Turned {
    of: (u64, usize),
    words: Vec<u32>,
}

thread_local! {
    static TURNED: RefCell<Turned> = const { RefCell::new(Turned { of: (u64::MAX, 0), words: Vec::new() }) };
}

impl Columns {
    /// A tensor `[height, width]` of which up to `together` columns are asked for one after the other.
    pub(super) fn new(words: Stored, [height, width]: [usize; 2], together: usize) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let together = (KEPT / height.max(1)).clamp(1, together);
        Self { words, height, width, together, number: NUMBER.fetch_add(1, Ordering::Relaxed) }
    }

    /// The tensor itself.
    pub(super) fn stored(&self) -> &Stored {
        &self.words
    }

    /// Hands over the words of a column.
    pub(super) fn column(&self, column: usize, take: impl FnOnce(&[u32])) {
        let (part, at) = (column / self.together, column % self.together);
        TURNED.with_borrow_mut(|turned| {
            if turned.of != (self.number, part) {
                turned.of = (self.number, part);
                self.turn(part * self.together, &mut turned.words);
            }
            take(&turned.words[at * self.height..(at + 1) * self.height]);
        });
    }

    /// Turns columns from `first` on.
    fn turn(&self, first: usize, turned: &mut Vec<u32>) {
        let count = self.together.min(self.width - first);
        turned.clear();
        turned.resize(count * self.height, 0);
        turned.shrink_to(KEPT);
        for (row, words) in self.words.words().chunks_exact(self.width).enumerate() {
            for (column, word) in words[first..first + count].iter().enumerate() {
                turned[column * self.height + row] = u32::from_le_bytes(*word);
            }
        }
    }
}
