//! Values that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, of the widest registers and of a row of a tile. One that lies across two lines is loaded twice, which halves the speed of
/// whatever reads from caches.
const LINE: usize = 64;

/// Values of which the first is at the beginning of a cache line.
#[derive(Debug)]
pub(super) struct Aligned<T> {
    values: Vec<T>,
    first: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(super) fn new(len: usize) -> Self {
        let most = LINE / size_of::<T>();
        let mut values = vec![T::default(); len + most];
        let first = values.as_ptr().align_offset(LINE).min(most);
        values.truncate(first + len);
        Self { values, first }
    }

    /// The first `len` values, whatever they are: others if there were fewer.
    pub(super) fn at_least(&mut self, len: usize) -> &mut [T] {
        if self.len() < len {
            *self = Self::new(len);
        }
        &mut self[..len]
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.first..]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.first..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_begin_at_a_line() {
        for len in [0, 1, 7, 1000, 100_000] {
            let mut values = Aligned::<u16>::new(len);
            assert_eq!((values.len(), values.as_ptr().addr() % LINE), (len, 0));
            assert_eq!(values.at_least(len + 3).len(), len + 3);
            assert_eq!(values.as_ptr().addr() % LINE, 0);
        }
    }
}
