use petals_model::ModelConfig;
use serde_json::json;

use super::*;
use crate::adapter::tables::TableShape;

fn falcon() -> ModelConfig {
    let config = json!({
        "model_type": "falcon", "vocab_size": 16, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "new_decoder_architecture": true, "num_kv_heads": 2, "ffn_hidden_size": 6, "bias": true,
    });
    ModelConfig::from_json(&config.to_string()).unwrap()
}

/// Tables that count.
fn tables(config: &ModelConfig, weights: WeightChange) -> PromptTables {
    let shape = TableShape {
        injection: petals_protocol::Injection::None,
        weights,
        scale: 0.5,
        blocks: 1,
        prefix_len: 0,
        widths: config.block_widths(),
        labels: None,
    };
    let mut tables = PromptTables::zeros(shape);
    for (_, values) in tables.parts_mut().each_mut() {
        values.iter_mut().enumerate().for_each(|(at, value)| *value = (at + 1) as f32);
    }
    tables
}

/// What becomes of a tensor of ones, if anything does.
fn merged(config: &ModelConfig, change: WeightChange, name: &str, len: usize) -> Option<Vec<f32>> {
    let (tables, projections) = (tables(config, change), config.projections());
    let (WeightChange::LowRank { modules, .. } | WeightChange::Scales { modules }) = change else { return None };
    let changed: Vec<_> = weights::of(&projections, modules).collect();
    let changes = Changes { tables: &tables, projections: &projections, changed: &changed };
    changes.of(name).map(|change| {
        let mut values = vec![1.0; len];
        change.apply(&mut values);
        values
    })
}

#[test]
fn rows_of_a_fused_matrix_change_where_they_lie() {
    let config = falcon();
    let name = "transformer.h.0.self_attention.query_key_value";
    // Each group has two rows of queries, two of keys, two of values.
    let low_rank = WeightChange::LowRank { rank: 1, modules: [Module::Key].into_iter().collect() };
    let weight = merged(&config, low_rank, &format!("{name}.weight"), 12 * 4).unwrap();
    let expected = |row: usize, column: usize| match [2, 3, 8, 9].iter().position(|key| *key == row) {
        Some(number) => 1.0 + 0.5 * (number + 1) as f32 * (column + 1) as f32,
        None => 1.0,
    };
    let all: Vec<f32> = (0..12).flat_map(|row| (0..4).map(move |column| expected(row, column))).collect();
    assert_eq!(weight, all);
    assert_eq!(merged(&config, low_rank, &format!("{name}.bias"), 12), None, "a product leaves biases");
    let scales = WeightChange::Scales { modules: Modules::SCALED };
    let bias = merged(&config, scales, &format!("{name}.bias"), 12).unwrap();
    assert_eq!(bias, [1.0, 1.0, 1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 3.0, 4.0, 3.0, 4.0]);
    let down = merged(&config, scales, "h.0.mlp.dense_4h_to_h.weight", 4 * 6).unwrap();
    assert!(down.chunks_exact(6).all(|row| row == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    assert_eq!(merged(&config, scales, "h.0.mlp.dense_4h_to_h.bias", 4), None);
    for other in
        ["transformer.h.0.self_attention.dense.weight", "lm_head.weight", "transformer.h.x.mlp.dense.weight", ""]
    {
        assert_eq!(merged(&config, scales, other, 1), None, "{other}");
    }
    assert_eq!(merged(&config, low_rank, "transformer.h.1.self_attention.query_key_value.weight", 48), None);
}

#[test]
fn what_the_model_does_not_have_is_refused_by_name() {
    let config = falcon();
    let root = tempfile::tempdir().unwrap();
    let change = WeightChange::LowRank { rank: 1, modules: [Module::Gate].into_iter().collect() };
    let out = root.path().join("out");
    let refused = merge(&tables(&config, change), &config.projections(), root.path(), &out).unwrap_err().to_string();
    assert!(refused.contains("gate_proj") && refused.contains("dense_4h_to_h"), "{refused}");
    let change = WeightChange::LowRank { rank: 1, modules: [Module::Value].into_iter().collect() };
    let missing = merge(&tables(&config, change), &config.projections(), root.path(), &out).unwrap_err().to_string();
    assert!(missing.contains("transformer.h.0.self_attention.query_key_value"), "{missing}");
}
