//! Which file holds which tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use super::dtype::FileDtype;
use super::file::{Header, TensorFile};
use super::stored::Stored;
use super::{CheckpointError, found, text};
use crate::config::Names;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest index that is read, in bytes. Those of the largest models have a few million.
const MAX_INDEX: u64 = 64 << 20;

/// The tensors of a checkpoint by name. Files are opened when a tensor of theirs is asked for.
#[derive(Debug)]
pub(super) struct TensorIndex {
    path: PathBuf,
    /// What its model calls tensors.
    names: &'static Names,
    files: BTreeMap<String, PathBuf>,
    /// The names that the same model has elsewhere, if they are others than those of [`Self::files`].
    listed: Option<BTreeSet<String>>,
    open: Mutex<HashMap<PathBuf, Arc<TensorFile>>>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl TensorIndex {
    /// Reads the names of `model.safetensors`, or else the index of a sharded checkpoint, without its shards.
    pub(super) fn open(dir: &Path, names: &'static Names) -> Result<Self, CheckpointError> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.is_file() {
            let file = TensorFile::open(&single)?;
            let files = file.names().map(|name| (name.to_owned(), single.clone())).collect();
            let open = Mutex::new(HashMap::from([(single.clone(), Arc::new(file))]));
            return Ok(Self { path: single, names, files, listed: None, open });
        }
        if !index.is_file() {
            return Err(found::instead(dir, &[SINGLE, INDEX]));
        }
        let text = text::read(&index, MAX_INDEX)?;
        let malformed = |reason: String| CheckpointError::Malformed { path: index.clone(), reason };
        let parsed: IndexFile = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
        let mut files = BTreeMap::new();
        for (name, file) in parsed.weight_map {
            if !is_plain_name(&file) {
                return Err(malformed(format!("`{}` is not the name of a file beside it", file.escape_default())));
            }
            files.insert(name, dir.join(file));
        }
        Ok(Self { path: index, names, files, listed: None, open: Mutex::default() })
    }

    /// Reads the names in the header of a `model.safetensors` that is still to come.
    pub(super) fn of_header(dir: &Path, names: &'static Names, header: &[u8]) -> Result<Self, CheckpointError> {
        let path = dir.join(SINGLE);
        let files = TensorFile::names_in(&path, header)?.into_iter().map(|name| (name, path.clone())).collect();
        Ok(Self { path, names, files, listed: None, open: Mutex::default() })
    }

    /// The tensors of files that are open, with the names that Hugging Face's checkpoint of the model has.
    pub(super) fn of_files(
        path: &Path,
        names: &'static Names,
        open: BTreeMap<PathBuf, TensorFile>,
        listed: BTreeSet<String>,
    ) -> Self {
        let of = |(path, file): (&PathBuf, &TensorFile)| {
            file.names().map(|name| (name.to_owned(), path.clone())).collect::<Vec<_>>()
        };
        let files = open.iter().flat_map(of).collect();
        let open = open.into_iter().map(|(path, file)| (path, Arc::new(file))).collect();
        Self { path: path.to_owned(), names, files, listed: Some(listed), open: Mutex::new(open) }
    }

    /// The index's file, or that of all tensors.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a tensor of this name, or of the name without its prefix.
    pub(super) fn names(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The file that has a tensor, or the index's where none has it.
    pub(super) fn file_of(&self, name: &str) -> &Path {
        self.find(name).map_or(&self.path, |(_, file)| file)
    }

    /// The files of all tensors.
    pub(super) fn files(&self) -> BTreeSet<&Path> {
        self.files.values().map(PathBuf::as_path).collect()
    }

    /// Names of tensors as they are stored, with their files.
    pub(super) fn stored(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.files.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }

    /// All names, with the base where files were saved without.
    pub(super) fn canonical_names(&self) -> BTreeSet<Cow<'_, str>> {
        if let Some(listed) = &self.listed {
            return listed.iter().map(|name| Cow::Borrowed(name.as_str())).collect();
        }
        let names = || self.files.keys().map(String::as_str);
        let base = self.names.base();
        let base_class = !names().any(|name| name.starts_with(base));
        let canonical = |name| match base_class && self.names.belongs_to_base(name) {
            true => Cow::Owned(format!("{base}{name}")),
            false => Cow::Borrowed(name),
        };
        names().map(canonical).collect()
    }

    /// The name that a tensor is stored under, and its file. As in transformers 5 each name may lack its base, and it may be that of the
    /// language model in a wrapper.
    fn find(&self, name: &str) -> Option<(&String, &PathBuf)> {
        let stored = |name: &str| self.files.get_key_value(name);
        let bare = name.strip_prefix(self.names.base());
        stored(name)
            .or_else(|| stored(bare?))
            .or_else(|| stored(&format!("language_model.{name}")))
            .or_else(|| stored(&format!("model.language_model.{}", bare?)))
    }

    /// Finds a tensor of a given shape and one of `dtypes`, opening its file if need be.
    pub(super) fn locate(&self, name: &str, shape: &[usize], dtypes: &[FileDtype]) -> Result<Stored, CheckpointError> {
        self.look(name, |file, stored| Ok(Stored::new(Arc::clone(file), file.locate(stored, shape, dtypes)?)))
    }

    /// What the header of its file says of a tensor.
    pub(super) fn header(&self, name: &str) -> Result<Header, CheckpointError> {
        self.look(name, |file, stored| file.header(stored))
    }

    /// A tensor under the name that it is stored under: its file, what the header says of it, and where its bytes are there.
    pub(super) fn raw(&self, stored: &str) -> Result<(Arc<TensorFile>, Header, Range<usize>), CheckpointError> {
        self.look(stored, |file, stored| {
            let (header, range) = file.raw(stored)?;
            Ok((Arc::clone(file), header, range))
        })
    }

    /// Looks for a tensor in its file, under the name that it is stored under.
    fn look<T>(
        &self,
        name: &str,
        look: impl Fn(&Arc<TensorFile>, &str) -> Result<T, CheckpointError>,
    ) -> Result<T, CheckpointError> {
        let Some((stored, path)) = self.find(name) else {
            let hint = self.alike(name);
            return Err(CheckpointError::MissingTensor { path: self.path.clone(), name: name.to_owned(), hint });
        };
        let file = self.file(path).map_err(|error| match error {
            CheckpointError::Io { path, source } if source.kind() == ErrorKind::NotFound => {
                CheckpointError::MissingShard { path, name: name.to_owned() }
            }
            other => other,
        })?;
        match look(&file, stored) {
            Err(CheckpointError::MissingTensor { path, name, .. }) => {
                let hint = format!(", though {} says so, and no other file that it names has it", self.name());
                let missing = CheckpointError::MissingTensor { path, name, hint };
                self.elsewhere(stored, look).unwrap_or(Err(missing))
            }
            found => found,
        }
    }

    /// Looks for a tensor in another shard than the index says. transformers takes from each shard whatever is in it, so that an index
    /// which mixes them up goes unnoticed there. `None`: no shard that is there has it.
    fn elsewhere<T>(
        &self,
        stored: &str,
        look: impl Fn(&Arc<TensorFile>, &str) -> Result<T, CheckpointError>,
    ) -> Option<Result<T, CheckpointError>> {
        let shards: BTreeSet<&PathBuf> = self.files.values().collect();
        shards.into_iter().find_map(|path| match look(&self.file(path).ok()?, stored) {
            Err(CheckpointError::MissingTensor { .. }) => None,
            found => Some(found),
        })
    }

    /// The name of the index's file.
    fn name(&self) -> Cow<'_, str> {
        self.path.file_name().unwrap_or_default().to_string_lossy()
    }

    /// What else there is that looks like a tensor which is missing.
    fn alike(&self, name: &str) -> String {
        let bare = name.strip_prefix(self.names.base()).unwrap_or(name);
        let with_prefix = |other: &&String| other.strip_suffix(bare).is_some_and(|prefix| prefix.ends_with('.'));
        if let Some(other) = self.files.keys().find(with_prefix) {
            return format!(", but `{}`: a prefix that such models do not have", other.escape_default());
        }
        let Some(stem) = name.strip_suffix("weight") else { return String::new() };
        let bare = stem.strip_prefix(self.names.base()).unwrap_or(stem);
        let other_part = |other: &&String| {
            let part = other.strip_prefix(stem).or_else(|| other.strip_prefix(bare));
            part.is_some_and(|part| part != "bias")
        };
        match self.files.keys().find(other_part) {
            Some(other) => {
                format!(
                    ", but `{}`: parts of adapters are not read, and quantised weights only in layouts that config.json names \
                     (`quantization_config`)",
                    other.escape_default()
                )
            }
            None => String::new(),
        }
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
