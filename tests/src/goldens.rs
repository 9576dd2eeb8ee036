//! The numbers that transformers and PEFT computed (`tests/oracle`).

use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::SafeTensors;
use serde_json::Value;

/// Families of which everything is recorded. [`Goldens::families`] has all of which anything is.
pub const FAMILIES: [&str; 6] = ["llama-gqa", "llama3-rope", "llama-linear-rope", "mistral", "qwen2", "qwen3"];

/// The goldens of one family.
#[derive(Debug)]
pub struct Goldens {
    directory: PathBuf,
    tensors: Vec<u8>,
    values: Value,
}

impl Goldens {
    /// Reads the goldens of a family.
    ///
    /// # Errors
    /// If they are not where they should be.
    pub fn load(family: &str) -> anyhow::Result<Self> {
        let directory = Self::root().join(family);
        let read = |name: &str| std::fs::read(directory.join(name)).with_context(|| format!("{family}/{name}"));
        let tensors = read("goldens.safetensors")?;
        let values = serde_json::from_slice(&read("goldens.json")?)?;
        Ok(Self { directory, tensors, values })
    }

    /// Every model that something is recorded of.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn families() -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(Self::root())? {
            let entry = entry?;
            if entry.path().join("goldens.safetensors").is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        anyhow::ensure!(FAMILIES.iter().all(|family| names.iter().any(|name| name == family)), "{names:?}");
        Ok(names)
    }

    /// The folder of all goldens.
    pub fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
    }

    /// A file of the data shared by all families.
    pub fn data(name: &str) -> PathBuf {
        Self::root().join("data").join(name)
    }

    /// The checkpoint.
    pub fn model(&self) -> PathBuf {
        self.directory.join("model")
    }

    /// A file or folder of this family.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// An f32 tensor's values, row-major.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn tensor(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.tensors).expect("goldens are safetensors");
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no golden tensor {name}"));
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    /// A value of `goldens.json`.
    ///
    /// # Panics
    /// If there is none of that name.
    pub fn value(&self, name: &str) -> &Value {
        self.values.get(name).unwrap_or_else(|| panic!("no golden value {name}"))
    }

    /// Whether `goldens.json` has a value.
    pub fn has(&self, name: &str) -> bool {
        self.values.get(name).is_some()
    }

    /// A list of numbers of `goldens.json`.
    ///
    /// # Panics
    /// If it is not one.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let list = self.value(name).as_array().unwrap_or_else(|| panic!("{name} is not a list"));
        list.iter().map(|number| number.as_f64().unwrap_or_else(|| panic!("{name} is not all numbers"))).collect()
    }

    /// A list of token ids of `goldens.json`.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.numbers(name).into_iter().map(|id| id as u32).collect()
    }

    /// The rows of `data/input_ids.json`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn input_ids() -> anyhow::Result<Vec<Vec<u32>>> {
        Ok(serde_json::from_slice(&std::fs::read(Self::data("input_ids.json"))?)?)
    }
}
