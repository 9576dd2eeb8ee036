//! FP8 as DeepSeek and Qwen publish it: `weight` in E4M3, and `weight_scale_inv`, by which each block is multiplied (a scale of a whole
//! matrix may be called `weight_scale` as well).

use super::super::{Checkpoint, CheckpointError, FLOATS, FileDtype};
use super::groups::Groups;
use super::scaled::{Blocks, Codes, Scaled};

/// Finds the tensors of a module and checks them. `block` is rows and values of a block; those at the edges may be smaller.
pub(super) fn locate(
    checkpoint: &Checkpoint,
    name: &str,
    shape @ [rows, values]: [usize; 2],
    block: [usize; 2],
) -> Result<Scaled, CheckpointError> {
    let codes = checkpoint.locate_as(&format!("{name}.weight"), &shape, &[FileDtype::F8E4m3])?;
    let names = ["weight_scale_inv", "weight_scale"].map(|end| format!("{name}.{end}"));
    let [first, other] = &names;
    let scales = if !checkpoint.has_tensor(first) && checkpoint.has_tensor(other) { other } else { first };
    let found = checkpoint.header(scales)?.shape;
    let [height, width] = match found[..] {
        [] | [1] | [1, 1] => shape,
        [n, 1] if n == rows => [1, values],
        _ => block,
    };
    let columns = values.div_ceil(width);
    let expected = match found[..] {
        [] | [1] => found,
        _ => vec![rows.div_ceil(height), columns],
    };
    let scales = checkpoint.locate_as(scales, &expected, FLOATS)?;
    let blocks = Blocks { height, columns, groups: Groups::Even(width) };
    Ok(Scaled { codes: Codes::Numbers(codes), scales, zeros: None, blocks, values })
}
