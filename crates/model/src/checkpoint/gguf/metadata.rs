//! Metadata by their keys, with errors that name them.

use std::path::Path;

use super::container::{Container, Tensor};
use super::reader::Problem;
use super::value::{List, Value};
use crate::checkpoint::CheckpointError;

/// Longest list of settings, one for each block.
const MAX_LIST: usize = 1 << 12;

/// The metadata of a file, and the tensors of all of its parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metadata<'a> {
    file: &'a Container,
    parts: &'a [Container],
    /// What keys of the architecture begin with.
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    /// Those of the first of a model's files.
    pub(super) fn new(parts: &'a [Container]) -> Result<Self, CheckpointError> {
        const KEY: &str = "general.architecture";
        let missing = || CheckpointError::Malformed { path: Default::default(), reason: "there is no file".to_owned() };
        let file = parts.first().ok_or_else(missing)?;
        let plain = Self { file, parts, architecture: "" };
        let architecture = plain.text(KEY)?.ok_or_else(|| plain.missing(KEY))?;
        Ok(Self { architecture, ..plain })
    }

    pub(super) fn path(&self) -> &'a Path {
        &self.file.path
    }

    pub(super) fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// The whole key of one of the architecture's.
    pub(super) fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn missing(&self, key: &str) -> CheckpointError {
        self.wrong(format!("it has no `{key}`"))
    }

    pub(super) fn wrong(&self, reason: String) -> CheckpointError {
        CheckpointError::Malformed { path: self.path().to_owned(), reason }
    }

    fn expected(&self, key: &str, expected: &str) -> CheckpointError {
        self.wrong(format!("`{}` is not {expected}", key.escape_debug()))
    }

    /// The error for what this program does not compute or read.
    pub(super) fn unsupported(&self, key: &str, got: impl Into<String>, remedy: &str) -> CheckpointError {
        CheckpointError::Unsupported {
            path: self.path().to_owned(),
            key: key.escape_debug().to_string(),
            got: got.into().escape_debug().to_string(),
            remedy: remedy.to_owned(),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.file.metadata.get(key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.expected(key, "a text")),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Flag(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.expected(key, "true or false")),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a List>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::List(list)) => Ok(Some(list)),
            Some(_) => Err(self.expected(key, "a list")),
        }
    }

    /// The values of a list.
    pub(super) fn values(&self, list: &'a List) -> impl Iterator<Item = Result<Value, CheckpointError>> {
        let (file, length) = (self.file, self.file.map.len() as u64);
        list.values(&file.map).map(move |value| value.map_err(|problem: Problem| problem.of(&file.path, length)))
    }

    /// A token's id.
    pub(super) fn token(&self, key: &str) -> Result<Option<u32>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // -1 has been written for none.
        if matches!(value, Value::Signed(id) if *id < 0) {
            return Ok(None);
        }
        let id = value.unsigned().and_then(|id| u32::try_from(id).ok());
        id.map(|id| Some(id).filter(|id| *id != u32::MAX)).ok_or_else(|| self.expected(key, "a token id"))
    }

    /// A count of the architecture's, which is the same for all blocks if it is a list.
    pub(super) fn count(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        let key = self.own(key);
        match self.get(&key) {
            None => Ok(None),
            Some(Value::List(list)) if (1..=MAX_LIST).contains(&list.len()) => {
                let mut counts = Vec::new();
                for value in self.values(list) {
                    counts.push(value?.unsigned().ok_or_else(|| self.expected(&key, "a count"))?);
                }
                if counts.iter().any(|count| *count != counts[0]) {
                    let got = "another number for each block";
                    return Err(self.unsupported(&key, got, "use a model whose blocks are alike"));
                }
                Ok(counts.first().copied())
            }
            Some(value) => value.unsigned().map(Some).ok_or_else(|| self.expected(&key, "a count")),
        }
    }

    /// A count that must be there.
    pub(super) fn needed(&self, key: &str) -> Result<u64, CheckpointError> {
        self.count(key)?.ok_or_else(|| self.missing(&self.own(key)))
    }

    /// A number of the architecture's.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        let key = self.own(key);
        let Some(value) = self.get(&key) else { return Ok(None) };
        let number = value.number().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| self.expected(&key, "a number"))
    }

    /// A tensor, with the file that it is in.
    pub(super) fn tensor(&self, name: &str) -> Option<(&'a Container, &'a Tensor)> {
        self.parts.iter().find_map(|part| Some((part, part.tensors.get(name)?)))
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    /// A vector of numbers in single precision.
    pub(super) fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, CheckpointError> {
        let Some((part, tensor)) = self.tensor(name) else { return Ok(None) };
        let (begin, end) = tensor.bytes;
        if tensor.dtype != "F32" || tensor.shape.len() != 1 {
            let got = format!("a tensor of {:?} {}", tensor.shape, tensor.dtype);
            return Err(self.unsupported(name, got, "convert the model again, with a vector of F32"));
        }
        let values = part.map[begin..end].as_chunks().0;
        Ok(Some(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
    }
}
