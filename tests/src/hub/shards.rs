//! Checkpoints in as many files as they have blocks.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::json;

const INDEX: &str = "model.safetensors.index.json";

/// Writes a model anew, with a file for the embeddings, one for each block, and one for final norm and head; returns how
/// many these are.
///
/// # Errors
/// If it cannot be read or written.
pub fn write_shards(model: &Path, to: &Path) -> anyhow::Result<usize> {
    std::fs::create_dir_all(to)?;
    let mut weights = Vec::new();
    for entry in std::fs::read_dir(model)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().ends_with(".safetensors") {
            weights.push(entry.path());
        } else if name != INDEX {
            std::fs::copy(entry.path(), to.join(name))?;
        }
    }
    let files = weights.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let files = files.iter().map(|bytes| SafeTensors::deserialize(bytes)).collect::<Result<Vec<_>, _>>()?;
    let tensors: BTreeMap<&str, _> = files.iter().flat_map(SafeTensors::iter).collect();
    let number = |name: &str| match name.split('.').find_map(|part| part.parse::<usize>().ok()) {
        Some(block) => block + 2,
        None if name.contains("embed") => 1,
        None => usize::MAX,
    };
    let mut shards: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for name in tensors.keys() {
        shards.entry(number(name)).or_default().push((*name).to_owned());
    }
    let count = shards.len();
    let mut map = BTreeMap::new();
    for (at, names) in shards.into_values().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", at + 1);
        let views = names.iter().filter_map(|name| Some((name.clone(), tensors.get(name.as_str())?)));
        std::fs::write(to.join(&file), safetensors::serialize(views, None)?)?;
        map.extend(names.into_iter().map(|name| (name, file.clone())));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(to.join(INDEX), serde_json::to_vec_pretty(&index)?)?;
    Ok(count)
}
