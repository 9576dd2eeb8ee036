//! Vectors that keys, values and the MLP's inside are multiplied with (IA3). PEFT has one of the feed-forward part for what enters its last projection, and
//! for what leaves every other one. Of a projection that is queries, keys and values, it is ones where the queries are.

use petals_model::{Projection, Projections};
use petals_protocol::{Module, Modules, WeightChange};

use super::{Found, Part, Tensors, WeightParts, Written, common, name};
use crate::adapter::AdapterError;
use crate::adapter::tables::{PromptTables, Table};

/// Reads what the file has.
///
/// # Errors
/// [`AdapterError`] that names the tensor which cannot be used.
pub(super) fn read(tensors: &Tensors<'_>) -> Result<WeightParts, AdapterError> {
    let (mut all, mut tables) = (Vec::new(), Vec::new());
    for projection in tensors.projections() {
        let (_, shape) = extents(projection);
        let mut blocks = Vec::new();
        for block in 0..tensors.model.blocks {
            let Some(found) = tensors.get(block, projection, Part::Scale)? else { continue };
            if found.tensor.shape != shape {
                return Err(tensors.misshapen(found, format!("{shape:?}")));
            }
            blocks.push((block, found));
        }
        let modules = modules(tensors, projection, &blocks)?;
        for module in modules.iter() {
            let rows: Vec<usize> = places(projection, module).collect();
            let mut values = vec![1.0; tensors.model.blocks * rows.len()];
            for (block, found) in &blocks {
                let own = &mut values[block * rows.len()..][..rows.len()];
                own.iter_mut().zip(&rows).for_each(|(value, row)| *value = found.tensor.values[*row]);
            }
            all.push(module);
            tables.push((Table::Scale(module), values));
        }
    }
    let change = WeightChange::Scales { modules: all.into_iter().collect() };
    change.validate().map_err(AdapterError::Weights)?;
    Ok(WeightParts { change, scale: 1.0, tables })
}

/// The matrices of a projection that are scaled: those that the manifest names if the others are not, or else all that can be.
fn modules(
    tensors: &Tensors<'_>,
    projection: &Projection,
    blocks: &[(usize, Found<'_>)],
) -> Result<Modules, AdapterError> {
    // The first tensor in which something else than `modules` is scaled, and what.
    let others = |modules: Modules| {
        blocks.iter().find_map(|(_, found)| {
            let scaled = |module: &Module| places(projection, *module).any(|row| found.tensor.values[row] != 1.0);
            let mut others = projection.modules().iter().filter(|module| !modules.contains(*module));
            others.find(scaled).map(|module| (found.name, module))
        })
    };
    let possible = common(projection.modules(), Modules::SCALED);
    let named = tensors.changed.map_or(possible, |changed| common(possible, changed.modules()));
    if !named.is_empty() && others(named).is_none() {
        return Ok(named);
    }
    let error = |name: &str, module: Module| {
        let known = tensors.model.projections.describe(tensors.model.projections.scalable());
        AdapterError::ScaledTensor { name: name.to_owned(), what: module.name().to_owned(), known }
    };
    match (others(possible), blocks.first(), projection.modules().iter().next()) {
        (Some((name, module)), ..) => Err(error(name, module)),
        // Ones alone, of something that is never scaled.
        (None, Some((_, found)), Some(module)) if possible.is_empty() => Err(error(found.name, module)),
        _ => Ok(possible),
    }
}

/// How many values a projection's vector has, and PEFT's extents of it.
fn extents(projection: &Projection) -> (usize, [usize; 2]) {
    let [input, output] = projection.extents();
    // PEFT scales what enters the modules of the feed-forward part, and what leaves the others.
    if projection.modules().contains(Module::Down) { (input, [1, input]) } else { (output, [output, 1]) }
}

/// Where a matrix has its values in the projection's vector.
fn places(projection: &Projection, module: Module) -> Box<dyn Iterator<Item = usize> + '_> {
    match module {
        Module::Down => Box::new(0..projection.extents()[0]),
        _ => Box::new(projection.rows(module)),
    }
}

/// The tensors of a projection in every block.
pub(super) fn tensors(
    tables: &PromptTables,
    projections: &Projections,
    (projection, own): (&Projection, Modules),
) -> Vec<Written> {
    let (width, extents) = extents(projection);
    let of = |block: usize| {
        let mut vector = vec![1.0; width];
        for module in own.iter() {
            let len = tables.shape().block_len(Table::Scale(module));
            let values = tables.table(Table::Scale(module)).unwrap_or_default();
            let values = values.get(block * len..(block + 1) * len).unwrap_or_default();
            places(projection, module).zip(values).for_each(|(row, value)| vector[row] = *value);
        }
        (name(projections, block, projection, "ia3_l"), extents.to_vec(), vector)
    };
    (0..tables.shape().blocks).map(of).collect()
}
