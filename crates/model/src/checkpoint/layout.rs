//! How rows of a tensor lie in a GGUF, as against where Hugging Face has them.

/// What the conversion to GGUF did to a tensor, which is undone when it is read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Layout {
    pub(crate) order: RowOrder,
    /// Whether 1 was added to every value (Gemma's norms).
    pub(crate) plus_one: bool,
}

/// Where the rows of a matrix, or the values of its bias, are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Where they were.
    #[default]
    Same,
    /// The halves of each head of `dim` rows take turns: `permute` of llama.cpp, whose rotary embedding turns neighbours.
    Turns {
        /// Rows of a head.
        dim: usize,
    },
    /// All queries, all keys, all values, of what is by key head: for each of `key_heads` its `group` queries, its key and its value.
    Stacked {
        /// Key heads.
        key_heads: usize,
        /// Query heads of each.
        group: usize,
        /// Rows of a head.
        dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that is row `row` of Hugging Face's tensor.
    pub(crate) fn stored(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Turns { dim } => {
                let (head, within) = (row / dim, row % dim);
                head * dim + within % (dim / 2) * 2 + within / (dim / 2)
            }
            Self::Stacked { key_heads, group, dim } => {
                let (head, part) = (row / dim / (group + 2), row / dim % (group + 2));
                let stored = match part.checked_sub(group) {
                    None => head * group + part,
                    Some(which) => key_heads * (group + which) + head,
                };
                stored * dim + row % dim
            }
        }
    }

    /// Whether it is one of `rows` rows.
    pub(crate) fn fits(self, rows: usize) -> bool {
        match self {
            Self::Same => true,
            Self::Turns { dim } => dim > 0 && dim.is_multiple_of(2) && rows.is_multiple_of(dim),
            Self::Stacked { key_heads, group, dim } => dim > 0 && rows == key_heads * (group + 2) * dim,
        }
    }
}

impl Layout {
    /// Puts the values of a vector where they belong.
    pub(crate) fn undo(self, values: &mut Vec<f32>) {
        if self.order != RowOrder::Same {
            *values = (0..values.len()).map(|number| values[self.order.stored(number)]).collect();
        }
        self.shift(values);
    }

    /// Takes away what was added.
    pub(crate) fn shift(self, values: &mut [f32]) {
        if self.plus_one {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_the_conversion_puts_them() {
        // numpy: arange(8).reshape(2, 2, 2).swapaxes(1, 2).ravel() is what the file has.
        let file = [0, 2, 1, 3, 4, 6, 5, 7];
        let turns = RowOrder::Turns { dim: 4 };
        assert_eq!((0..8).map(|row| file[turns.stored(row)]).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        // Two key heads with two queries each, of one row: q0 q1 k0 v0 q2 q3 k1 v1 becomes q0 q1 q2 q3 k0 k1 v0 v1.
        let file = [0, 1, 4, 5, 2, 6, 3, 7];
        let stacked = RowOrder::Stacked { key_heads: 2, group: 2, dim: 1 };
        assert_eq!((0..8).map(|row| file[stacked.stored(row)]).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert!(turns.fits(8) && !turns.fits(6) && stacked.fits(8) && !stacked.fits(9));
    }
}
