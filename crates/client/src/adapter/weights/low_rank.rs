//! Low-rank tables (LoRA). Those of a projection that is several matrices are, with `q`, `k` and `v` for example:
//!
//! * as PEFT trains them, one `A` for all: each matrix gets it, and its rows of `B`;
//! * as they are saved from here, `A = [A_q; A_k; A_v]` with as many times the rank, and `B` with each `B` in the rows of its matrix and the columns of
//!   its `A`, zeros elsewhere. Whether a file is of that kind the manifest says, and the zeros.
//!
//! `B·A` is the same in all forms.

use petals_model::{Projection, Projections};
use petals_protocol::{Module, Modules, WeightChange};

use super::lora::Lora;
use super::{Found, Part, Tensors, WeightParts, Written, common, name};
use crate::adapter::AdapterError;
use crate::adapter::tables::{PromptTables, Table};

/// Tables of one block's projection, as the file has them.
struct Pair {
    block: usize,
    rank: usize,
    /// `[rank, input]`.
    a: Vec<f32>,
    /// `[output, rank]`.
    b: Vec<f32>,
}

/// How the matrices of a projection have their tables in those of the file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sharing {
    /// All of `A`, and of `B` their rows.
    Together,
    /// These have so many rows of `A` and columns of `B` each, one after the other.
    Apart(Modules, usize),
}

/// Reads what the file has.
///
/// # Errors
/// [`AdapterError`] that names the tensor which cannot be used.
pub(super) fn read(tensors: &Tensors<'_>, lora: &Lora) -> Result<WeightParts, AdapterError> {
    // The highest one, if some matrices have a lower one: rows of zeros add nothing.
    let (mut rank, mut shared) = (0, Vec::new());
    for projection in tensors.projections() {
        let pairs = pairs(tensors, projection)?;
        let sharing = sharing(tensors, projection, &pairs);
        rank = rank.max(match sharing {
            Sharing::Together => pairs.iter().map(|pair| pair.rank).max().unwrap_or_default(),
            Sharing::Apart(_, own) => own,
        });
        shared.push((projection, sharing));
    }
    let modules = |(projection, sharing): &(&Projection, Sharing)| match sharing {
        Sharing::Together => projection.modules(),
        Sharing::Apart(modules, _) => *modules,
    };
    // Before anything is allocated for it.
    let all = shared.iter().flat_map(|own| modules(own).iter().collect::<Vec<_>>()).collect();
    let change = WeightChange::LowRank { rank: u32::try_from(rank).unwrap_or(u32::MAX), modules: all };
    change.validate().map_err(AdapterError::Weights)?;
    let scale = lora.scale(rank);
    let mut tables = Vec::new();
    for (projection, sharing) in shared {
        let pairs = pairs(tensors, projection)?;
        // What differs from the scale of all is in `B`.
        let factor =
            |pair: &Pair| lora.scale_of(&tensors.model.projections.path(pair.block, projection), pair.rank) / scale;
        for (number, module) in modules(&(projection, sharing)).iter().enumerate() {
            let first = if let Sharing::Apart(_, own) = sharing { number * own } else { 0 };
            let [input, output] = module.extents(tensors.model.widths);
            let blocks = tensors.model.blocks;
            let (mut a, mut b) = (vec![0.0; blocks * rank * input], vec![0.0; blocks * rank * output]);
            for pair in &pairs {
                let count = if let Sharing::Apart(_, own) = sharing { own } else { pair.rank };
                let own = &pair.a[first * input..][..count * input];
                a[pair.block * rank * input..][..own.len()].copy_from_slice(own);
                let factor = factor(pair);
                let b = &mut b[pair.block * rank * output..][..rank * output];
                for (column, row) in projection.rows(module).enumerate() {
                    for (number, value) in pair.b[row * pair.rank + first..][..count].iter().enumerate() {
                        b[number * output + column] = value * factor;
                    }
                }
            }
            tables.extend([(Table::LowRankA(module), a), (Table::LowRankB(module), b)]);
        }
    }
    Ok(WeightParts { change, scale, tables })
}

/// The tables of a projection in every block that has some, with the right shapes.
fn pairs<'a>(tensors: &Tensors<'a>, projection: &'a Projection) -> Result<Vec<Pair>, AdapterError> {
    let [input, output] = projection.extents();
    let mut pairs = Vec::new();
    for block in 0..tensors.model.blocks {
        let own = [tensors.get(block, projection, Part::A)?, tensors.get(block, projection, Part::B)?];
        let (a, b) = match own {
            [None, None] => continue,
            [Some(a), Some(b)] => (a, b),
            [Some(Found { name, .. }), None] | [None, Some(Found { name, .. })] => {
                return Err(AdapterError::LonelyTensor { name: name.to_owned() });
            }
        };
        let rank = match a.tensor.shape[..] {
            [rows, width] if rows > 0 && width == input => rows,
            _ => return Err(tensors.misshapen(a, format!("[rank, {input}]"))),
        };
        if b.tensor.shape != [output, rank] {
            return Err(tensors.misshapen(b, format!("[{output}, {rank}]")));
        }
        pairs.push(Pair { block, rank, a: a.tensor.values, b: b.tensor.values });
    }
    Ok(pairs)
}

/// Whether tables are those of several matrices, each with its own.
fn sharing(tensors: &Tensors<'_>, projection: &Projection, pairs: &[Pair]) -> Sharing {
    let apart = || {
        let changed = tensors.changed.filter(|_| projection.is_fused())?;
        let modules = common(projection.modules(), changed.modules());
        let rank = changed.rank.filter(|rank| *rank > 0)? as usize;
        let mut owners = vec![None; projection.extents()[1]];
        for (number, module) in modules.iter().enumerate() {
            projection.rows(module).for_each(|row| owners[row] = Some(number));
        }
        let zero = |pair: &Pair| {
            pair.b.chunks_exact(pair.rank).zip(&owners).all(|(row, owner)| {
                let own = |(column, value): (usize, &f32)| *value == 0.0 || *owner == Some(column / rank);
                row.iter().enumerate().all(own)
            })
        };
        let all = modules.iter().count() * rank;
        let fits = all > 0 && pairs.iter().all(|pair| pair.rank == all && zero(pair));
        fits.then_some(Sharing::Apart(modules, rank))
    };
    apart().unwrap_or(Sharing::Together)
}

/// Whether the matrices of a projection have one `A` in common, as they have when PEFT trained them.
fn is_together(tables: &PromptTables, (projection, own): (&Projection, Modules)) -> bool {
    let mut all = own.iter().map(|module| tables.table(Table::LowRankA(module)));
    let first = all.next().flatten();
    own == projection.modules() && all.all(|other| other == first)
}

/// How many times the rank of each matrix the saved tables of a projection have, of which `own` are changed.
pub(in crate::adapter) fn stored_times(tables: &PromptTables, own: (&Projection, Modules)) -> u32 {
    if is_together(tables, own) { 1 } else { own.1.iter().map(|_| 1).sum() }
}

/// The tensors of a projection in every block.
pub(super) fn tensors(
    tables: &PromptTables,
    projections: &Projections,
    (projection, own): (&Projection, Modules),
) -> Vec<Written> {
    let shape = tables.shape();
    let WeightChange::LowRank { rank, .. } = shape.weights else { return Vec::new() };
    let together = is_together(tables, (projection, own));
    let ([input, output], rank) = (projection.extents(), rank as usize);
    let stored = rank * stored_times(tables, (projection, own)) as usize;
    let of_block = |table: Table, block: usize| {
        let len = shape.block_len(table);
        tables.table(table).and_then(|values| values.get(block * len..(block + 1) * len)).unwrap_or_default()
    };
    let of = |block: usize| {
        let sources = own.iter().take(if together { 1 } else { Module::ALL.len() });
        let a: Vec<f32> = sources.flat_map(|module| of_block(Table::LowRankA(module), block)).copied().collect();
        let mut b = vec![0.0; output * stored];
        for (number, module) in own.iter().enumerate() {
            let first = if together { 0 } else { number * rank };
            let values = of_block(Table::LowRankB(module), block);
            let width = values.len() / rank.max(1);
            for (column, row) in projection.rows(module).enumerate() {
                let place = &mut b[row * stored + first..][..rank];
                place.iter_mut().enumerate().for_each(|(at, value)| *value = values[at * width + column]);
            }
        }
        let named = |part: &str| name(projections, block, projection, part);
        [(named("lora_A.weight"), vec![stored, input], a), (named("lora_B.weight"), vec![output, stored], b)]
    };
    (0..shape.blocks).flat_map(of).collect()
}
