//! Models in GGUF, the format of llama.cpp: one file, or one that was split, with everything that a directory of Hugging Face's has.
//!
//! What is read is what the conversion to GGUF was made from: metadata become a `config.json`, tensors get Hugging Face's names and the order of
//! their rows back. So everything behind this folder, adapters and fingerprints too, knows one kind of model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::file::{Entry, TensorFile};
use crate::config::{ConfigError, ModelConfig};

mod config;
mod container;
mod experts;
mod metadata;
mod names;
mod reader;
mod rope;
mod rows;
mod value;
mod vocabulary;

use container::{Container, Tensor};
use metadata::Metadata;
use names::{Finder, Placed, SIDE};
pub(super) use rows::GgufRows;
pub use vocabulary::{GgufVocabulary, TokenKind};

/// Most files of one model.
const MAX_PARTS: u64 = 1 << 10;

/// A model's files, opened.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) config: ModelConfig,
    /// Its files by their paths, with tensors by Hugging Face's names.
    pub(super) files: BTreeMap<PathBuf, TensorFile>,
    /// Hugging Face's names of all its tensors.
    pub(super) names: BTreeSet<String>,
}

/// Whether a path is that of a GGUF, by its name or its first bytes.
pub(super) fn is_one(path: &Path) -> bool {
    let named = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    path.is_file() && (named || Container::is_one(path))
}

/// The name of a model by that of its file, without what says that it is one of several.
pub(super) fn name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match numbered(&stem) {
        Some((stem, ..)) => stem.to_owned(),
        None => stem.into_owned(),
    }
}

/// Reads the headers of all files of a model.
pub(super) fn open(path: &Path) -> Result<Model, CheckpointError> {
    let parts = parts(path)?;
    let metadata = Metadata::new(&parts)?;
    let architecture = config::architecture(&metadata)?;
    let json = config::json(&metadata, architecture)?;
    let refused = |source: ConfigError| CheckpointError::Metadata { path: path.to_owned(), source: Box::new(source) };
    let config = ModelConfig::from_json(&json.to_string()).map_err(refused)?;
    let finder = Finder { config: &config, turns: architecture.turns };
    let (mut files, mut names) = (BTreeMap::new(), BTreeSet::new());
    for Container { path, map, tensors, .. } in parts {
        let mut entries = BTreeMap::new();
        for (name, tensor) in tensors {
            let found = finder.find(&name, &tensor.shape);
            // Rotary frequencies that old files have for each block.
            if found.is_empty() && name.starts_with("blk.") && !name.ends_with(".attn_rot_embd.weight") {
                return Err(CheckpointError::Unsupported {
                    path,
                    key: name.escape_debug().to_string(),
                    got: format!("a tensor that blocks of `{}` do not have", config.model_type),
                    remedy: "use another model, or convert it again".to_owned(),
                });
            }
            for placed in found {
                names.extend(listed(&placed.name, &tensor.dtype));
                if let Some((name, entry)) = entry(placed, &tensor) {
                    entries.insert(name, entry);
                }
            }
        }
        files.insert(path.clone(), TensorFile::of_mapped(path, map, entries));
    }
    Ok(Model { config, files, names })
}

/// The file of a model, or all that it was split into.
fn parts(path: &Path) -> Result<Vec<Container>, CheckpointError> {
    const COUNT: &str = "split.count";
    let first = Container::open(path)?;
    let count = first.metadata.get(COUNT).and_then(value::Value::unsigned).unwrap_or(1);
    let malformed = |reason: &str| CheckpointError::Malformed { path: path.to_owned(), reason: reason.to_owned() };
    if count <= 1 {
        return Ok(vec![first]);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let numbers = numbered(&stem).filter(|(.., of)| *of == count && count <= MAX_PARTS);
    let Some((stem, number, _)) = numbers else {
        let reason = format!("it is one of {count} files by `{COUNT}`, and its name does not end as theirs do");
        return Err(malformed(&reason));
    };
    let named = |number: u64| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
    if number != 1 {
        let remedy = format!("give --model the first one, {}", named(1).display());
        let got = format!("number {number} of {count} files");
        return Err(CheckpointError::Unsupported { path: path.to_owned(), key: "split.no".to_owned(), got, remedy });
    }
    let mut all = vec![first];
    for number in 2..=count {
        let part = named(number);
        all.push(Container::open(&part).map_err(|error| match error {
            CheckpointError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                CheckpointError::MissingShard { path, name: format!("those of file {number} of {count}") }
            }
            other => other,
        })?);
    }
    Ok(all)
}

/// What is in front of `-00001-of-00003`, and the two numbers.
fn numbered(stem: &str) -> Option<(&str, u64, u64)> {
    let (front, count) = stem.rsplit_once("-of-")?;
    let (front, number) = front.rsplit_once('-')?;
    let five = |digits: &str| (digits.len() == 5).then(|| digits.parse().ok()).flatten();
    Some((front, five(number)?, five(count)?))
}

/// A tensor of Hugging Face's as a part of one of the file's. Nothing if the file's has no such part.
fn entry(placed: Placed, tensor: &Tensor) -> Option<(String, Entry)> {
    let Placed { name, matrix, rows, layout } = placed;
    let (mut shape, (mut begin, mut end)) = (tensor.shape.clone(), tensor.bytes);
    if let Some(matrix) = matrix {
        let count = shape.remove(0);
        let size = (end - begin) / count;
        begin += (matrix < count).then_some(matrix * size)?;
        end = begin + size;
    }
    if let Some(rows) = rows {
        let all = *shape.first()?;
        let size = (end - begin) / all;
        (begin, end) = (rows.end <= all).then_some((begin + rows.start * size, begin + rows.end * size))?;
        shape[0] = rows.len();
    }
    let entry = Entry { dtype: tensor.dtype.clone(), shape, data_offsets: (begin, end), layout: Some(layout) };
    Some((name, entry))
}

/// The names that Hugging Face's checkpoints have for a tensor: gate and up of all experts are one there, with their scales apart.
fn listed(name: &str, dtype: &str) -> Vec<String> {
    match name.split_once(SIDE) {
        None => vec![name.to_owned()],
        Some((whole, _)) if dtype == "MXFP4" => vec![format!("{whole}_blocks"), format!("{whole}_scales")],
        Some((whole, _)) => vec![whole.to_owned()],
    }
}

#[cfg(test)]
mod tests;
