//! compressed-tensors: `weight_packed` (integers of four or eight bits in words) or `weight` (integers of a byte, or FP8), with
//! `weight_scale` of the whole matrix, of rows, of groups of a row, or of blocks, `weight_zero_point` if it is asymmetric, and
//! `weight_g_idx` if columns were quantised in order of their activations.

use super::super::stored::Stored;
use super::super::{Checkpoint, CheckpointError, FLOATS, FileDtype};
use super::groups::Groups;
use super::scaled::{Blocks, Codes, Scaled, Zeros};

/// Finds the tensors of a module and checks them. `bits` are those that packed integers may have, `block` rows and values of blocks; which
/// of them it is, the shapes say.
pub(super) fn locate(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    (bits, block): (&[u32], &[[usize; 2]]),
) -> Result<Scaled, CheckpointError> {
    let module = Module { checkpoint, name, shape };
    let codes = module.codes(bits)?;
    let (blocks, found) = module.blocks(block)?;
    let scales = checkpoint.locate_as(&module.named("weight_scale"), &found, FLOATS)?;
    let zeros = module.zeros(&blocks, &codes, &found)?;
    let blocks = module.reordered(blocks)?;
    Ok(Scaled { codes, scales, zeros, blocks, values: shape[1] })
}

struct Module<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    shape: [usize; 2],
}

impl Module<'_> {
    fn named(&self, end: &str) -> String {
        format!("{}.{end}", self.name)
    }

    fn has(&self, end: &str) -> bool {
        self.checkpoint.has_tensor(&self.named(end))
    }

    fn wrong(&self, end: &str, reason: String) -> CheckpointError {
        self.checkpoint.packed_wrongly(&self.named(end), reason)
    }

    fn codes(&self, bits: &[u32]) -> Result<Codes, CheckpointError> {
        let (c, [rows, values]) = (self.checkpoint, self.shape);
        let packed = self.named("weight_packed");
        if !c.has_tensor(&packed) {
            let dtypes = [FileDtype::I8, FileDtype::F8E4m3];
            return Ok(Codes::Numbers(c.locate_as(&self.named("weight"), &self.shape, &dtypes)?));
        }
        let found = c.header(&packed)?.shape;
        let words_of = |bits: u32| values.div_ceil((32 / bits) as usize);
        let fits = bits.iter().copied().find(|bits| found == [rows, words_of(*bits)]);
        let bits = fits.or(bits.first().copied()).unwrap_or(4);
        let words = c.locate_as(&packed, &[rows, words_of(bits)], &[FileDtype::I32])?;
        if self.has("weight_shape") {
            let own = c.locate_as(&self.named("weight_shape"), &[2], &[FileDtype::I64, FileDtype::I32])?.integers();
            if own != [rows as i64, values as i64] {
                let reason = format!("it says {own:?}, where config.json asks for {:?}", self.shape);
                return Err(self.wrong("weight_shape", reason));
            }
        }
        Ok(Codes::Packed { words, bits })
    }

    /// What the scales are of, by their shape, and that shape.
    fn blocks(&self, block: &[[usize; 2]]) -> Result<(Blocks, Vec<usize>), CheckpointError> {
        let [rows, values] = self.shape;
        let found = self.checkpoint.header(&self.named("weight_scale"))?.shape;
        let of = |height: usize, width: usize| Blocks {
            height,
            columns: values.div_ceil(width),
            groups: Groups::Even(width),
        };
        let blocks = match found[..] {
            [] | [1] | [1, 1] => of(rows, values),
            [high, wide] if high > 0 && wide > 0 => {
                let fits =
                    |[height, width]: &&[usize; 2]| high == rows.div_ceil(*height) && wide == values.div_ceil(*width);
                match block.iter().find(fits) {
                    // Groups of a row, or one: blocks that say the same are of one row.
                    _ if high == rows && values.is_multiple_of(wide) => of(1, values / wide),
                    Some([height, width]) => of(*height, *width),
                    None if rows.is_multiple_of(high) && values.is_multiple_of(wide) => of(rows / high, values / wide),
                    None => return Err(self.scales_do_not_divide(&found)),
                }
            }
            _ => return Err(self.scales_do_not_divide(&found)),
        };
        Ok((blocks, found))
    }

    fn scales_do_not_divide(&self, found: &[usize]) -> CheckpointError {
        let reason = format!("scales {found:?} do not divide {:?} into whole groups or blocks", self.shape);
        self.wrong("weight_scale", reason)
    }

    /// The zero points: one for each scale, packed along rows as the codes are along values, or as numbers.
    fn zeros(&self, blocks: &Blocks, codes: &Codes, scales: &[usize]) -> Result<Option<Zeros>, CheckpointError> {
        const END: &str = "weight_zero_point";
        if !self.has(END) {
            return Ok(None);
        }
        let name = self.named(END);
        let numbers = |zeros: Stored| Some(Zeros::Numbers(zeros));
        match (codes, self.checkpoint.header(&name)?.dtype.as_str()) {
            (Codes::Packed { bits, .. }, "I32") => {
                let high = self.shape[0].div_ceil(blocks.height).div_ceil((32 / bits) as usize);
                let words = self.checkpoint.locate_as(&name, &[high, blocks.columns], &[FileDtype::I32])?;
                Ok(Some(Zeros::Packed { words, bits: *bits }))
            }
            _ => {
                let dtypes = [&[FileDtype::I8, FileDtype::F8E4m3], FLOATS].concat();
                self.checkpoint.locate_as(&name, scales, &dtypes).map(numbers)
            }
        }
    }

    /// With the groups that indices say, if there are some: each as large as the others.
    fn reordered(&self, blocks: Blocks) -> Result<Blocks, CheckpointError> {
        const END: &str = "weight_g_idx";
        let (Blocks { height, columns, groups: Groups::Even(size) }, true) = (&blocks, self.has(END)) else {
            return Ok(blocks);
        };
        let groups = self.checkpoint.group_indices(&self.named(END), self.shape[1], [*size, *columns])?;
        if let Groups::Listed(listed, count) = &groups {
            let mut sizes = vec![0; *count];
            listed.iter().for_each(|group| sizes[*group as usize] += 1);
            if sizes.iter().any(|own| own != size) {
                return Err(self.wrong(END, format!("its groups are not of {size} values each")));
            }
        }
        Ok(Blocks { height: *height, columns: *columns, groups })
    }
}
