//! Which file holds which tensor.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use super::CheckpointError;
use super::file::{Located, TensorFile};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a checkpoint by name. Files are opened when a tensor of theirs is asked for.
#[derive(Debug)]
pub(super) struct TensorIndex {
    path: PathBuf,
    files: BTreeMap<String, PathBuf>,
    open: Mutex<HashMap<PathBuf, Arc<TensorFile>>>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl TensorIndex {
    /// Reads the names of `model.safetensors`, or else the index of a sharded checkpoint, without its shards.
    pub(super) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            let file = TensorFile::open(&single)?;
            let files = file.names().map(|name| (name.to_owned(), single.clone())).collect();
            let open = Mutex::new(HashMap::from([(single.clone(), Arc::new(file))]));
            return Ok(Self { path: single, files, open });
        }
        if !index.exists() {
            return Err(CheckpointError::NoWeights(dir.to_owned()));
        }
        let text = std::fs::read(&index).map_err(|source| CheckpointError::Io { path: index.clone(), source })?;
        let malformed = |reason: String| CheckpointError::Malformed { path: index.clone(), reason };
        let parsed: IndexFile = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
        let mut files = BTreeMap::new();
        for (name, file) in parsed.weight_map {
            if !is_plain_name(&file) {
                return Err(malformed(format!("`{}` is not the name of a file beside it", file.escape_default())));
            }
            files.insert(name, dir.join(file));
        }
        Ok(Self { path: index, files, open: Mutex::default() })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Finds a tensor of a given shape, opening its file if need be.
    pub(super) fn locate(&self, name: &str, shape: &[usize]) -> Result<(Arc<TensorFile>, Located), CheckpointError> {
        let missing = || CheckpointError::MissingTensor { path: self.path.clone(), name: name.to_owned() };
        let path = self.files.get(name).ok_or_else(missing)?;
        let file = self.file(path)?;
        let located = file.locate(name, shape)?;
        Ok((file, located))
    }

    fn file(&self, path: &Path) -> Result<Arc<TensorFile>, CheckpointError> {
        // A panic cannot leave the map half-written, so a poisoned lock is as good as any.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(TensorFile::open(path)?);
        open.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

/// Whether a file name from an index stays in its directory.
fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) && !file.contains('\\')
}
