//! Tables that adapt weights, as PEFT names and shapes them: `lora_A` `[rank, input]`, `lora_B` `[output, rank]`, `ia3_l` of every block.

use std::collections::BTreeMap;
use std::path::Path;

use petals_protocol::{Module, Modules, WeightChange};
use serde_json::Value;

use super::peft::{self, Lora};
use super::tables::{Table, TableShape};
use super::tensor_file::{NamedTensor, TensorFile};
use super::{AdaptedModel, AdapterError};

/// What a tensor of an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    Scale,
}

/// A tensor's place: block, matrix and part.
type Place = (usize, Module, Part);

/// The tables that adapt weights.
#[derive(Debug, Default)]
pub(super) struct WeightParts {
    pub(super) change: WeightChange,
    /// What low-rank products are multiplied with.
    pub(super) scale: f32,
    pub(super) tables: Vec<(Table, Vec<f32>)>,
}

/// Reads them from the file; none if it has none.
///
/// # Errors
/// [`AdapterError`] that names the tensor or the key of the configuration that cannot be used.
pub(super) fn read(
    file: &TensorFile,
    config: &Value,
    directory: &Path,
    model: &AdaptedModel,
) -> Result<WeightParts, AdapterError> {
    let mut found = BTreeMap::<Place, String>::new();
    let mut others = Vec::new();
    for name in file.names()? {
        match place(&name) {
            Some(place) => drop(found.insert(place, name)),
            None => others.push(name),
        }
    }
    // Beside tables of weights, other weights may have been trained as a whole.
    let beside = |name: &String| !found.is_empty() && name.starts_with("base_model.") && !name.contains("score.");
    if let Some(name) = others.into_iter().find(|name| is_of_weights(name) || beside(name)) {
        return Err(AdapterError::ForeignTensor { name });
    }
    if let Some((_, name)) = found.iter().find(|((block, ..), _)| *block >= model.blocks) {
        return Err(AdapterError::ForeignTensor { name: name.clone() });
    }
    let tensors = Tensors { file, found, blocks: model.blocks };
    match tensors.found.keys().any(|(.., part)| *part == Part::Scale) {
        _ if tensors.found.is_empty() => Ok(WeightParts { scale: 1.0, ..WeightParts::default() }),
        true => tensors.scales(model),
        false => tensors.low_rank(&peft::lora(config, directory)?, model),
    }
}

struct Tensors<'a> {
    file: &'a TensorFile,
    found: BTreeMap<Place, String>,
    blocks: usize,
}

impl Tensors<'_> {
    fn modules(&self) -> Modules {
        self.found.keys().map(|(_, module, _)| *module).collect()
    }

    fn get(&self, place: Place) -> Result<Option<(&str, NamedTensor)>, AdapterError> {
        let Some(name) = self.found.get(&place) else { return Ok(None) };
        Ok(self.file.find(name)?.map(|tensor| (name.as_str(), tensor)))
    }

    fn low_rank(&self, lora: &Lora, model: &AdaptedModel) -> Result<WeightParts, AdapterError> {
        if let Some((_, name)) = self.found.iter().find(|((.., part), _)| *part == Part::Scale) {
            return Err(AdapterError::ForeignTensor { name: name.clone() });
        }
        // The highest one, if some matrices have a lower one: rows of zeros add nothing.
        let mut rank = 0;
        for (place @ (_, module, _), name) in self.found.iter().filter(|((.., part), _)| *part == Part::A) {
            let [input, _] = module.extents(model.widths);
            let shape = self.get(*place)?.map(|(_, tensor)| tensor.shape).unwrap_or_default();
            match shape[..] {
                [rows, width] if rows > 0 && width == input => rank = rank.max(rows),
                _ => return Err(self.file.misshapen(name, shape, format!("[rank, {input}]")).into()),
            }
        }
        // Before anything is allocated for it.
        let change = WeightChange::LowRank { rank: u32::try_from(rank).unwrap_or(u32::MAX), modules: self.modules() };
        change.validate().map_err(AdapterError::Weights)?;
        let scale = lora.scale(rank);
        let mut tables = Vec::new();
        for module in self.modules().iter() {
            let [input, output] = module.extents(model.widths);
            let (mut a, mut b) = (vec![0.0; self.blocks * rank * input], vec![0.0; self.blocks * rank * output]);
            for block in 0..self.blocks {
                let own = [self.get((block, module, Part::A))?, self.get((block, module, Part::B))?];
                let (a_given, (b_name, b_given)) = match own {
                    [None, None] => continue,
                    [Some((_, a)), Some(b)] => (a, b),
                    [Some((name, _)), None] | [None, Some((name, _))] => {
                        return Err(AdapterError::LonelyTensor { name: name.to_owned() });
                    }
                };
                let rows = a_given.values.len() / input;
                if b_given.shape != [output, rows] {
                    return Err(self.file.misshapen(b_name, b_given.shape, format!("[{output}, {rows}]")).into());
                }
                a[block * rank * input..][..rows * input].copy_from_slice(&a_given.values);
                // What differs from the scale of all is in `B`.
                let factor = lora.scale_of(&path(block, module), rows) / scale;
                let b = &mut b[block * rank * output..][..rank * output];
                for (column, values) in b_given.values.chunks_exact(rows).enumerate() {
                    for (row, value) in values.iter().enumerate() {
                        b[row * output + column] = value * factor;
                    }
                }
            }
            tables.extend([(Table::LowRankA(module), a), (Table::LowRankB(module), b)]);
        }
        Ok(WeightParts { change, scale, tables })
    }

    fn scales(&self, model: &AdaptedModel) -> Result<WeightParts, AdapterError> {
        let mut tables = Vec::new();
        for module in self.modules().iter() {
            let [input, output] = module.extents(model.widths);
            // PEFT scales what enters the modules of the feed-forward part, and what leaves the others.
            let (width, shape) = if module == Module::Down { (input, [1, input]) } else { (output, [output, 1]) };
            let mut values = vec![1.0; self.blocks * width];
            for block in 0..self.blocks {
                let Some((name, given)) = self.get((block, module, Part::Scale))? else { continue };
                if given.shape != shape {
                    return Err(self.file.misshapen(name, given.shape, format!("{shape:?}")).into());
                }
                values[block * width..][..width].copy_from_slice(&given.values);
            }
            tables.push((Table::Scale(module), values));
        }
        let change = WeightChange::Scales { modules: self.modules() };
        change.validate().map_err(AdapterError::Weights)?;
        Ok(WeightParts { change, scale: 1.0, tables })
    }
}

/// A block's matrix as modules of transformers are named.
fn path(block: usize, module: Module) -> String {
    let parent = match module {
        Module::Gate | Module::Up | Module::Down => "mlp",
        _ => "self_attn",
    };
    format!("model.layers.{block}.{parent}.{module}")
}

/// Whether a tensor is one that only adapters of weights have.
fn is_of_weights(name: &str) -> bool {
    ["lora_", "ia3_"].iter().any(|mark| name.contains(mark))
}

/// What a tensor is by its name; `None` if it is no table of a block's matrix.
fn place(name: &str) -> Option<Place> {
    let (_, rest) = name.split_once("model.layers.")?;
    let (block, rest) = rest.split_once('.')?;
    let block = block.parse().ok()?;
    let (parent, rest) = rest.split_once('.')?;
    let (module, part) = rest.split_once('.')?;
    let module = module.parse::<Module>().ok()?;
    if path(block, module) != format!("model.layers.{block}.{parent}.{module}") {
        return None;
    }
    // Adapters that were not saved by `save_pretrained` have their name in it.
    let part = match part {
        "lora_A.weight" | "lora_A.default.weight" => Part::A,
        "lora_B.weight" | "lora_B.default.weight" => Part::B,
        "ia3_l" | "ia3_l.default" => Part::Scale,
        _ => return None,
    };
    Some((block, module, part))
}

/// The tensors of an adapter's weight tables, as PEFT saves them.
pub(super) fn tensors(shape: &TableShape, table: Table, values: &[f32]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (module, part) = match table {
        Table::LowRankA(module) => (module, "lora_A.weight"),
        Table::LowRankB(module) => (module, "lora_B.weight"),
        Table::Scale(module) => (module, "ia3_l"),
        _ => return Vec::new(),
    };
    let Some(extents) = shape.of(table) else { return Vec::new() };
    let of_block = |(block, values): (usize, &[f32])| {
        let name = format!("base_model.model.{}.{part}", path(block, module));
        match (table, &extents[1..]) {
            (Table::LowRankB(_), &[rank, output]) => {
                let turned = (0..output).flat_map(|column| (0..rank).map(move |row| values[row * output + column]));
                (name, vec![output, rank], turned.collect())
            }
            (Table::Scale(Module::Down), &[width]) => (name, vec![1, width], values.to_vec()),
            (Table::Scale(_), &[width]) => (name, vec![width, 1], values.to_vec()),
            (_, rest) => (name, rest.to_vec(), values.to_vec()),
        }
    };
    values.chunks_exact(shape.block_len(table).max(1)).enumerate().map(of_block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_age_are_understood() {
        let place_of = |name: &str| place(name).map(|(block, module, _)| (block, module.name()));
        let q = Some((3, "q_proj"));
        assert_eq!(place_of("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"), q);
        assert_eq!(place_of("base_model.model.model.layers.3.self_attn.q_proj.lora_B.default.weight"), q);
        assert_eq!(place_of("model.layers.3.self_attn.q_proj.lora_A.weight"), q);
        assert_eq!(place_of("base_model.model.model.layers.0.mlp.down_proj.ia3_l"), Some((0, "down_proj")));
        for other in
            ["base_model.model.lm_head.lora_A.weight", "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight"]
        {
            assert!(place(other).is_none() && is_of_weights(other), "{other}");
        }
        assert!(!is_of_weights("base_model.score.weight") && !is_of_weights("prompt_embeddings"));
    }
}
