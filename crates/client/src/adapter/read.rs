//! From a file's tensors to tables.

use std::path::Path;

use petals_protocol::Injection;
use serde_json::Value;

use super::manifest::ChangedWeights;
use super::tables::{Parts, PromptTables, Table, TableShape};
use super::tensor_file::{NamedTensor, TensorFile, TensorFileError};
use super::weights::{self, WeightParts};
use super::{AdaptedModel, AdapterError, SCORE_NAMES, peft, prefix};

/// What is in front of the text.
struct Prefix {
    injection: Injection,
    rows: usize,
    tables: Vec<(Table, Vec<f32>)>,
}

/// Reads the tables of an adapter with this `adapter_config.json`. `changed` is what the manifest says of weights.
pub(super) fn tables(
    file: &TensorFile,
    config: &Value,
    directory: &Path,
    model: &AdaptedModel,
    changed: Option<&ChangedWeights>,
) -> Result<PromptTables, AdapterError> {
    let WeightParts { change, scale, tables: weights } = weights::read(file, config, directory, model, changed)?;
    let prefix = read_prefix(file, peft::has_keys_values(config), weights.is_empty(), model)?;
    let score = read_score(file, model)?;
    let shape = TableShape {
        injection: prefix.injection,
        weights: change,
        scale,
        blocks: model.blocks,
        prefix_len: prefix.rows,
        widths: model.widths,
        labels: score.as_ref().and_then(|score| score.shape.first().copied()),
    };
    let mut parts = prefix.tables;
    parts.extend(weights);
    parts.extend(score.map(|score| (Table::Score, score.values)));
    Ok(PromptTables::from_parts(shape, Parts::new(parts)))
}

fn read_prefix(
    file: &TensorFile,
    keys_values: bool,
    needed: bool,
    model: &AdaptedModel,
) -> Result<Prefix, AdapterError> {
    let name = Table::Input.tensor_name();
    let of_keys_values = |name: &str, tensor: NamedTensor| {
        let (rows, values) = prefix::read(file, name, tensor, model)?;
        Ok(Prefix { injection: Injection::KeysValues, rows, tables: vec![(Table::KeysValues, values)] })
    };
    let input = match file.find(&name)? {
        Some(input) if keys_values => return of_keys_values(&name, input),
        Some(input) => input,
        None => {
            return match file.find(prefix::OWN_NAME)? {
                Some(tensor) => of_keys_values(prefix::OWN_NAME, tensor),
                None if needed => Err(file.lacks(&name).into()),
                None => Ok(Prefix { injection: Injection::None, rows: 0, tables: Vec::new() }),
            };
        }
    };
    let hidden = model.widths.hidden;
    let rows = match input.shape[..] {
        [rows, width] if rows > 0 && width == hidden => rows,
        _ => return Err(file.misshapen(&name, input.shape, format!("[prefix length, {hidden}]")).into()),
    };
    let (injection, deep) = read_deep(file, rows, model)?;
    let mut tables = vec![(Table::Input, input.values)];
    tables.extend(deep.map(|deep| (Table::Deep, deep)));
    Ok(Prefix { injection, rows, tables })
}

fn read_deep(
    file: &TensorFile,
    prefix_len: usize,
    model: &AdaptedModel,
) -> Result<(Injection, Option<Vec<f32>>), TensorFileError> {
    let name = Table::Deep.tensor_name();
    let Some(deep) = file.find(&name)? else { return Ok((Injection::None, None)) };
    let (blocks, hidden) = (model.blocks, model.widths.hidden);
    let injection = match deep.shape[..] {
        [n, m, d] if (m, d) == (prefix_len, hidden) && n == blocks => Injection::Add,
        [n, m, d] if (m, d) == (prefix_len, hidden) && n + 1 == blocks => Injection::Replace,
        _ => {
            let both = format!("[{blocks}, {prefix_len}, {hidden}] (add) or one prompt less (replace)");
            return Err(file.misshapen(&name, deep.shape, both));
        }
    };
    Ok((injection, Some(deep.values)))
}

fn read_score(file: &TensorFile, model: &AdaptedModel) -> Result<Option<NamedTensor>, TensorFileError> {
    for name in SCORE_NAMES {
        let Some(score) = file.find(name)? else { continue };
        return match score.shape[..] {
            [labels, hidden] if labels > 0 && hidden == model.widths.hidden => Ok(Some(score)),
            _ => Err(file.misshapen(name, score.shape, format!("[labels, {}]", model.widths.hidden))),
        };
    }
    Ok(None)
}
