//! Keys and values in front of the text as PEFT has them: for each row those of block after block, `[rows, blocks · 2 · heads · head width]`. Heads are
//! those of transformers' cache, which in some models has each key head once for every query head that attends to it.

use std::iter::repeat_n;

use super::tables::TableShape;
use super::tensor_file::{NamedTensor, TensorFile};
use super::{AdaptedModel, AdapterError};

/// Their tensor's name beside changes of weights, where there is no PEFT adapter that it could be taken for and heads are not repeated.
pub(super) const OWN_NAME: &str = "prefix_keys_values";

/// Name and values of the tensor of a table `[blocks, rows, 2·key]`.
pub(super) fn tensor(shape: &TableShape, values: &[f32], model: &AdaptedModel) -> (&'static str, Vec<f32>) {
    let (name, repeats) =
        if shape.mode().weights.is_some() { (OWN_NAME, 1) } else { ("prompt_embeddings", model.repeats()) };
    let (wide, head) = (2 * shape.widths.key, head_width(model));
    let row = |row: usize| {
        (0..shape.blocks).flat_map(move |block| &values[(block * shape.prefix_len + row) * wide..][..wide])
    };
    let turned: Vec<f32> = (0..shape.prefix_len).flat_map(row).copied().collect();
    (name, turned.chunks_exact(head).flat_map(|head| repeat_n(head, repeats)).flatten().copied().collect())
}

/// Rows and values `[blocks, rows, 2·key]` of the tensor of this name.
///
/// # Errors
/// If it has another shape, or repeated heads that differ.
pub(super) fn read(
    file: &TensorFile,
    name: &str,
    tensor: NamedTensor,
    model: &AdaptedModel,
) -> Result<(usize, Vec<f32>), AdapterError> {
    let repeats = if name == OWN_NAME { 1 } else { model.repeats() };
    let (blocks, wide, head) = (model.blocks, 2 * model.widths.key, head_width(model));
    let stored = blocks * wide * repeats;
    let rows = match tensor.shape[..] {
        [rows, width] if rows > 0 && width == stored => rows,
        _ => return Err(file.misshapen(name, tensor.shape, format!("[prefix length, {stored}]")).into()),
    };
    let mut values = Vec::with_capacity(tensor.values.len() / repeats.max(1));
    for same in tensor.values.chunks_exact(head * repeats) {
        let (first, others) = same.split_at(head);
        if others.chunks_exact(head).any(|other| other != first) {
            return Err(AdapterError::DifferentHeads { name: name.to_owned(), heads: model.cached_key_heads });
        }
        values.extend_from_slice(first);
    }
    let values = &values;
    let of_block = |block: usize| (0..rows).flat_map(move |row| &values[(row * blocks + block) * wide..][..wide]);
    Ok((rows, (0..blocks).flat_map(of_block).copied().collect()))
}

/// Width of a head of keys, at least 1.
fn head_width(model: &AdaptedModel) -> usize {
    (model.widths.key / model.key_heads.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use petals_protocol::{Injection, WeightChange};
    use serde_json::{Value, json};

    use crate::adapter::tables::{PromptTables, Table, TableShape};
    use crate::adapter::tensor_file::{TensorFile, write_tensors};
    use crate::adapter::tests::of_family;
    use crate::adapter::{AdaptedModel, Adapter, AdapterError, TENSORS_FILE, TextRules};

    /// Two query heads that share a key head, whose keys are cached once for each of them.
    fn model() -> AdaptedModel {
        let own = json!({"model_type": "falcon", "new_decoder_architecture": true, "num_kv_heads": 1});
        of_family("tiny", "models/tiny", own)
    }

    fn saved(weights: WeightChange) -> (Adapter, tempfile::TempDir) {
        let (blocks, widths) = (3, model().widths);
        let injection = Injection::KeysValues;
        let shape = TableShape { injection, weights, scale: 1.0, blocks, prefix_len: 2, widths, labels: None };
        let mut tables = PromptTables::zeros(shape);
        for value in tables.parts_mut().each_mut().flat_map(|(_, values)| values.iter_mut().enumerate()) {
            *value.1 = value.0 as f32;
        }
        let adapter = Adapter::new(&model(), tables, None, TextRules::default(), 1);
        let root = tempfile::tempdir().unwrap();
        adapter.save(root.path(), &model()).unwrap();
        (adapter, root)
    }

    #[test]
    fn heads_are_repeated_where_the_cache_has_them_so_and_nowhere_else() {
        let (adapter, root) = saved(WeightChange::None);
        let path = root.path().join(TENSORS_FILE);
        let stored = TensorFile::read(&path).unwrap().find("prompt_embeddings").unwrap().unwrap();
        assert_eq!(stored.shape, [2, 3 * 2 * 4]);
        // Of the first block and row, keys 0 and 1 and values 2 and 3; the next block's are 8 values further.
        assert_eq!(stored.values[..12], [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0, 8.0, 9.0, 8.0, 9.0]);
        let config = fs::read_to_string(root.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!((&config["num_attention_heads"], &config["token_dim"]), (&json!(2), &json!(4)));
        assert_eq!(Adapter::load(root.path(), &model()).unwrap(), adapter);
        // PEFT trains every head on its own.
        let mut values = stored.values;
        values[2] = 0.5;
        let tensors = [("prompt_embeddings".to_owned(), stored.shape, values)];
        write_tensors(&path, &tensors, Default::default()).unwrap();
        let refused = Adapter::load(root.path(), &model()).unwrap_err();
        assert!(matches!(refused, AdapterError::DifferentHeads { heads: 2, .. }), "{refused}");
    }

    #[test]
    fn beside_changes_of_weights_heads_are_as_servers_have_them() {
        let modules = [petals_protocol::Module::Value].into_iter().collect();
        let (adapter, root) = saved(WeightChange::LowRank { rank: 1, modules });
        let stored = TensorFile::read(&root.path().join(TENSORS_FILE)).unwrap().find(super::OWN_NAME).unwrap().unwrap();
        assert_eq!(stored.shape, [2, 3 * 2 * 2]);
        let loaded = Adapter::load(root.path(), &model()).unwrap();
        assert_eq!(loaded.tables.table(Table::KeysValues), adapter.tables.table(Table::KeysValues));
        assert_eq!(loaded, adapter);
    }
}
