//! Tables that adapt weights, as PEFT names and shapes them: `lora_A` `[rank, input]`, `lora_B` `[output, rank]`, `ia3_l` of every block.
//!
//! PEFT adapts the projections that transformers has. Where one of them is several matrices (`query_key_value`), its tables become tables of
//! each, and those of each become tables of it that compute the same.

use std::collections::BTreeMap;
use std::path::Path;

use petals_model::{Projection, Projections};
use petals_protocol::{Modules, WeightChange};
use serde_json::Value;

use super::manifest::ChangedWeights;
use super::tables::{PromptTables, Table};
use super::tensor_file::{NamedTensor, TensorFile};
use super::{AdaptedModel, AdapterError};

mod lora;
mod low_rank;
mod scales;

pub(super) use low_rank::stored_times;

/// What a tensor of an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    Scale,
}

/// A tensor's place: block, path of the projection and part.
type Place<'a> = (usize, &'a str, Part);

/// The name, extents and values of a tensor that is written.
type Written = (String, Vec<usize>, Vec<f32>);

/// The tables that adapt weights.
#[derive(Debug, Default)]
pub(super) struct WeightParts {
    pub(super) change: WeightChange,
    /// What low-rank products are multiplied with.
    pub(super) scale: f32,
    pub(super) tables: Vec<(Table, Vec<f32>)>,
}

/// Reads them from the file; none if it has none. `changed` is what the manifest says of them.
///
/// # Errors
/// [`AdapterError`] that names the tensor or the key of the configuration that cannot be used.
pub(super) fn read(
    file: &TensorFile,
    config: &Value,
    directory: &Path,
    model: &AdaptedModel,
    changed: Option<&ChangedWeights>,
) -> Result<WeightParts, AdapterError> {
    let mut found = BTreeMap::<Place<'_>, String>::new();
    let mut others = Vec::new();
    for name in file.names()? {
        match place(&name, &model.projections) {
            Some(place) => drop(found.insert(place, name)),
            None => others.push(name),
        }
    }
    // Beside tables of weights, other weights may have been trained as a whole.
    let beside = |name: &String| !found.is_empty() && name.starts_with("base_model.") && !name.contains("score.");
    if let Some(name) = others.into_iter().find(|name| is_of_weights(name) || beside(name)) {
        return Err(foreign(name, model));
    }
    if let Some((_, name)) = found.iter().find(|((block, ..), _)| *block >= model.blocks) {
        return Err(foreign(name.clone(), model));
    }
    if found.is_empty() {
        return Ok(WeightParts { scale: 1.0, ..WeightParts::default() });
    }
    let is_scale = |((.., part), _): &(&Place<'_>, &String)| *part == Part::Scale;
    let (scaled, low_rank): (Vec<_>, Vec<_>) = found.iter().partition(is_scale);
    match (&scaled[..], &low_rank[..]) {
        // Both at once is no kind of PEFT's.
        ([(_, name), ..], [_, ..]) => Err(foreign((*name).clone(), model)),
        ([_, ..], []) => scales::read(&Tensors { file, found, model, changed }),
        ([], _) => low_rank::read(&Tensors { file, found, model, changed }, &lora::read(config, directory)?),
    }
}

/// The tensors of an adapter's weight tables, as PEFT saves them.
pub(super) fn tensors(tables: &PromptTables, projections: &Projections) -> Vec<Written> {
    match tables.shape().weights {
        WeightChange::None => Vec::new(),
        WeightChange::LowRank { modules, .. } => {
            of(projections, modules).flat_map(|own| low_rank::tensors(tables, projections, own)).collect()
        }
        WeightChange::Scales { modules } => {
            of(projections, modules).flat_map(|own| scales::tensors(tables, projections, own)).collect()
        }
    }
}

/// The projections that have any of `modules`, each with those that it has.
pub(super) fn of(projections: &Projections, modules: Modules) -> impl Iterator<Item = (&Projection, Modules)> {
    let own = move |projection: &Projection| common(projection.modules(), modules);
    projections.iter().map(move |projection| (projection, own(projection))).filter(|(_, own)| !own.is_empty())
}

/// Those that are in both.
fn common(a: Modules, b: Modules) -> Modules {
    a.iter().filter(|module| b.contains(*module)).collect()
}

/// What an adapter's file has of weights.
struct Tensors<'a> {
    file: &'a TensorFile,
    found: BTreeMap<Place<'a>, String>,
    model: &'a AdaptedModel,
    /// What the manifest says of them.
    changed: Option<&'a ChangedWeights>,
}

impl<'a> Tensors<'a> {
    /// The projections that have any.
    fn projections(&self) -> impl Iterator<Item = &'a Projection> + '_ {
        let has = |projection: &&Projection| self.found.keys().any(|(_, path, _)| *path == projection.path());
        self.model.projections.iter().filter(has)
    }

    fn get(&self, block: usize, projection: &'a Projection, part: Part) -> Result<Option<Found<'_>>, AdapterError> {
        let Some(name) = self.found.get(&(block, projection.path(), part)) else { return Ok(None) };
        Ok(self.file.find(name)?.map(|tensor| Found { name, tensor }))
    }

    /// The error of a tensor that cannot be used.
    fn misshapen(&self, found: Found<'_>, expected: String) -> AdapterError {
        self.file.misshapen(found.name, found.tensor.shape, expected).into()
    }
}

/// A tensor with its name.
struct Found<'a> {
    name: &'a str,
    tensor: NamedTensor,
}

fn foreign(name: String, model: &AdaptedModel) -> AdapterError {
    let known = model.projections.describe(model.projections.adaptable());
    AdapterError::ForeignTensor { name, known }
}

/// Whether a tensor is one that only adapters of weights have.
fn is_of_weights(name: &str) -> bool {
    ["lora_", "ia3_"].iter().any(|mark| name.contains(mark))
}

/// What a tensor is by its name; `None` if it is no table of a block's projection.
fn place<'a>(name: &str, projections: &'a Projections) -> Option<Place<'a>> {
    let (block, projection, part) = projections.find(name)?;
    // Adapters that were not saved by `save_pretrained` have their name in it.
    let part = match part {
        "lora_A.weight" | "lora_A.default.weight" => Part::A,
        "lora_B.weight" | "lora_B.default.weight" => Part::B,
        "ia3_l" | "ia3_l.default" => Part::Scale,
        _ => return None,
    };
    Some((block, projection.path(), part))
}

/// The name of a tensor in PEFT's files.
fn name(projections: &Projections, block: usize, projection: &Projection, part: &str) -> String {
    format!("base_model.model.{}.{part}", projections.path(block, projection))
}

#[cfg(test)]
mod tests;
