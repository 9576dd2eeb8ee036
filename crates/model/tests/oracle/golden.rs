//! What the oracle recorded.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use petals_model::Checkpoint;
use safetensors::SafeTensors;
use serde_json::Value;

/// Everything recorded, or what `PETALS_FAMILIES` names, with commas between.
pub(crate) fn families() -> Vec<String> {
    if let Ok(names) = env::var("PETALS_FAMILIES") {
        return names.split(',').map(str::to_owned).collect();
    }
    let folders = fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = folders
        .filter(|path| path.join("goldens.safetensors").is_file())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    names
}

fn goldens() -> PathBuf {
    env::var_os("PETALS_GOLDENS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens"), PathBuf::from)
}

/// What is recorded of one model.
pub(crate) struct Golden {
    bytes: Vec<u8>,
    pub(crate) scalars: Value,
    dir: PathBuf,
}

impl Golden {
    pub(crate) fn read(family: &str) -> Self {
        let all = goldens();
        let dir = all.join(family);
        let scalars = serde_json::from_slice(&fs::read(dir.join("goldens.json")).unwrap()).unwrap();
        Self { bytes: fs::read(dir.join("goldens.safetensors")).unwrap(), scalars, dir }
    }

    /// What was recorded of adapters, beside the same checkpoint.
    pub(crate) fn adapters(&self) -> Self {
        let dir = self.dir.join("adapters");
        let scalars = serde_json::from_slice(&fs::read(dir.join("goldens.json")).unwrap()).unwrap();
        Self { bytes: fs::read(dir.join("goldens.safetensors")).unwrap(), scalars, dir }
    }

    pub(crate) fn bytes_of(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        (view.shape().to_vec(), view.data().to_vec())
    }

    pub(crate) fn tensor(&self, name: &str) -> Vec<f32> {
        self.bytes_of(name).1.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(self.dir.join("model")).unwrap()
    }

    /// Token ids of the three rows, cut to the recorded lengths if `ragged`.
    pub(crate) fn rows(&self, ragged: bool) -> Vec<Vec<u32>> {
        let (shape, bytes) = self.bytes_of("input_ids");
        let ids: Vec<u32> = bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as u32).collect();
        let lengths = self.numbers("lengths");
        let rows = ids.chunks(shape[1]).zip(lengths);
        rows.map(|(row, length)| row[..if ragged { length as usize } else { shape[1] }].to_vec()).collect()
    }

    pub(crate) fn numbers(&self, name: &str) -> Vec<u32> {
        self.scalars[name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
    }
}
