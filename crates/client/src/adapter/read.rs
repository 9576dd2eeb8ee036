//! From a file's tensors to tables.

use std::path::Path;

use petals_protocol::Injection;
use serde_json::Value;

use super::peft;
use super::tables::{Parts, PromptTables, Table, TableShape};
use super::tensor_file::{NamedTensor, TensorFile, TensorFileError};
use super::weights::{self, WeightParts};
use super::{AdaptedModel, AdapterError, SCORE_NAMES};

/// What is in front of the text.
struct Prefix {
    injection: Injection,
    rows: usize,
    tables: Vec<(Table, Vec<f32>)>,
}

/// Reads the tables of an adapter with this `adapter_config.json`.
pub(super) fn tables(
    file: &TensorFile,
    config: &Value,
    directory: &Path,
    model: &AdaptedModel,
) -> Result<PromptTables, AdapterError> {
    let WeightParts { change, scale, tables: weights } = weights::read(file, config, directory, model)?;
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

/// The tensor with keys and values of the prefix.
pub(super) fn prefix_name(shape: &TableShape) -> &'static str {
    // Beside changes of weights there is no PEFT adapter that it could be taken for.
    if shape.mode().weights.is_some() { "prefix_keys_values" } else { "prompt_embeddings" }
}

fn read_prefix(
    file: &TensorFile,
    mut keys_values: bool,
    needed: bool,
    model: &AdaptedModel,
) -> Result<Prefix, TensorFileError> {
    let name = Table::Input.tensor_name();
    let wide = model.blocks * 2 * model.widths.key;
    let mut found = file.find(&name)?;
    if found.is_none() {
        found = file.find("prefix_keys_values")?;
        keys_values = found.is_some();
    }
    let Some(input) = found else {
        let none = Prefix { injection: Injection::None, rows: 0, tables: Vec::new() };
        return if needed { Err(file.lacks(&name)) } else { Ok(none) };
    };
    if keys_values {
        return match input.shape[..] {
            [rows, width] if rows > 0 && width == wide => {
                let tables = vec![(Table::KeysValues, by_block(&input.values, rows, model))];
                Ok(Prefix { injection: Injection::KeysValues, rows, tables })
            }
            _ => Err(file.misshapen(&name, input.shape, format!("[prefix length, {wide}]"))),
        };
    }
    let hidden = model.widths.hidden;
    let rows = match input.shape[..] {
        [rows, width] if rows > 0 && width == hidden => rows,
        _ => return Err(file.misshapen(&name, input.shape, format!("[prefix length, {hidden}]"))),
    };
    let (injection, deep) = read_deep(file, rows, model)?;
    let mut tables = vec![(Table::Input, input.values)];
    tables.extend(deep.map(|deep| (Table::Deep, deep)));
    Ok(Prefix { injection, rows, tables })
}

/// `[rows, blocks, 2·key]` as `[blocks, rows, 2·key]`.
fn by_block(values: &[f32], rows: usize, model: &AdaptedModel) -> Vec<f32> {
    let (blocks, wide) = (model.blocks, 2 * model.widths.key);
    let of_block = |block: usize| (0..rows).flat_map(move |row| &values[(row * blocks + block) * wide..][..wide]);
    (0..blocks).flat_map(of_block).copied().collect()
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
