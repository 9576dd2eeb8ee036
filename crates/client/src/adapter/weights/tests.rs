use std::collections::BTreeMap;
use std::fs;

use petals_protocol::{Injection, Module};
use serde_json::json;

use super::*;
use crate::adapter::tables::TableShape;
use crate::adapter::tensor_file::write_tensors;
use crate::adapter::tests::{named, of_family};
use crate::adapter::{Adapter, TENSORS_FILE, TextRules};

/// One of each way in which matrices lie in projections.
fn families() -> Vec<(&'static str, AdaptedModel)> {
    let model = |name, own| (name, of_family(name, "models/tiny", own));
    vec![
        ("llama", named("llama", "models/tiny")),
        model("bloom", json!({"model_type": "bloom"})),
        model("gpt_neox", json!({"model_type": "gpt_neox"})),
        model("falcon", json!({"model_type": "falcon"})),
        model("grouped", json!({"model_type": "falcon", "new_decoder_architecture": true, "num_kv_heads": 1})),
        model("phi3", json!({"model_type": "phi3"})),
        model("mixtral", json!({"model_type": "mixtral"})),
    ]
}

/// Tables that are all different.
fn tables(model: &AdaptedModel, weights: WeightChange) -> PromptTables {
    let scale = if matches!(weights, WeightChange::LowRank { .. }) { 0.3 } else { 1.0 };
    let (injection, blocks, widths) = (Injection::None, model.blocks, model.widths);
    let mut tables =
        PromptTables::zeros(TableShape { injection, weights, scale, blocks, prefix_len: 0, widths, labels: None });
    let mut next = 0.0;
    for value in tables.parts_mut().each_mut().flat_map(|(_, values)| values) {
        next += 1.0;
        *value = next;
    }
    tables
}

fn low_rank(rank: u32, modules: impl IntoIterator<Item = Module>) -> WeightChange {
    WeightChange::LowRank { rank, modules: modules.into_iter().collect() }
}

/// What a folder's tensors are, by name, and its configuration.
fn saved(directory: &Path) -> (BTreeMap<String, NamedTensor>, Value) {
    let file = TensorFile::read(&directory.join(TENSORS_FILE)).unwrap();
    let named = |name: String| (name.clone(), file.find(&name).unwrap().unwrap());
    let config = fs::read_to_string(directory.join("adapter_config.json")).unwrap();
    (file.names().unwrap().into_iter().map(named).collect(), serde_json::from_str(&config).unwrap())
}

fn save(model: &AdaptedModel, tables: &PromptTables) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let adapter = Adapter::new(model, tables.clone(), None, TextRules::default(), 1);
    adapter.save(root.path(), model).unwrap();
    root
}

/// The product that a module has of these tables in a block, `[output, input]`, with its factor.
fn product(model: &AdaptedModel, tables: &PromptTables, module: Module, block: usize) -> Vec<f32> {
    let [input, output] = module.extents(model.widths);
    let own = |table| {
        let len = tables.shape().block_len(table);
        &tables.table(table).unwrap()[block * len..][..len]
    };
    let (a, b) = (own(Table::LowRankA(module)), own(Table::LowRankB(module)));
    let rank = a.len() / input;
    let value = |row: usize, column: usize| (0..rank).map(|r| b[r * output + row] * a[r * input + column]).sum::<f32>();
    (0..output)
        .flat_map(|row| (0..input).map(move |column| (row, column)))
        .map(|(row, column)| value(row, column) * tables.shape().scale)
        .collect()
}

#[test]
fn tables_of_every_family_survive_saving_and_loading() {
    for (family, model) in families() {
        let (adaptable, scalable) = (model.projections.adaptable(), model.projections.scalable());
        let mut changes = vec![low_rank(2, adaptable.iter()), WeightChange::Scales { modules: scalable }];
        changes.extend(adaptable.iter().map(|module| low_rank(3, [module])));
        changes.extend(scalable.iter().map(|module| WeightChange::Scales { modules: [module].into_iter().collect() }));
        changes.push(low_rank(2, [Module::Query, Module::Value]));
        for change in changes {
            let tables = tables(&model, change);
            let loaded = Adapter::load(save(&model, &tables).path(), &model).unwrap();
            assert_eq!(loaded.tables, tables, "{family} {change:?}");
        }
    }
}

#[test]
fn what_is_saved_of_a_fused_matrix_has_the_same_product_for_peft() {
    for (family, model) in families() {
        let change = low_rank(2, model.projections.adaptable().iter());
        let tables = tables(&model, change);
        let root = save(&model, &tables);
        let (tensors, config) = saved(root.path());
        for projection in model.projections.iter() {
            assert!(config["target_modules"].as_array().unwrap().contains(&projection.name().into()), "{config}");
            // As PEFT finds them: by the name's end.
            let pattern = |key: &str, otherwise: &str| {
                config[key].get(projection.name()).unwrap_or(&config[otherwise]).as_f64().unwrap()
            };
            let (rank, alpha) = (pattern("rank_pattern", "r") as usize, pattern("alpha_pattern", "lora_alpha"));
            let scale = (alpha / rank as f64) as f32;
            assert_eq!(scale, 0.3, "{family}");
            let [input, output] = projection.extents();
            for block in 0..3 {
                let path = format!("base_model.model.{}", model.projections.path(block, projection));
                let (a, b) = (&tensors[&format!("{path}.lora_A.weight")], &tensors[&format!("{path}.lora_B.weight")]);
                assert_eq!((&a.shape, &b.shape), (&vec![rank, input], &vec![output, rank]), "{family}");
                for module in projection.modules().iter() {
                    let expected = product(&model, &tables, module, block);
                    for (number, row) in projection.rows(module).enumerate() {
                        for column in 0..input {
                            let own = |r: usize| b.values[row * rank + r] * a.values[r * input + column];
                            let got = (0..rank).map(own).sum::<f32>() * scale;
                            assert_eq!(got, expected[number * input + column], "{family} {module}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tables_of_peft_become_tables_of_each_matrix_and_go_back_as_they_came() {
    for (family, model) in families() {
        let root = tempfile::tempdir().unwrap();
        let rank = 2;
        let mut next = 0.0;
        let mut counted = |len: usize| -> Vec<f32> {
            let values = (0..len).map(|at| next + at as f32).collect();
            next += len as f32;
            values
        };
        let mut tensors = Vec::new();
        // Not in the first block.
        for block in 1..3 {
            for projection in model.projections.iter() {
                let ([input, output], path) = (projection.extents(), model.projections.path(block, projection));
                let name = |part: &str| format!("base_model.model.{path}.{part}.weight");
                tensors.push((name("lora_A"), vec![rank, input], counted(rank * input)));
                tensors.push((name("lora_B"), vec![output, rank], counted(output * rank)));
            }
        }
        write_tensors(&root.path().join(TENSORS_FILE), &tensors, Default::default()).unwrap();
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": false});
        fs::write(root.path().join("adapter_config.json"), config.to_string()).unwrap();
        let loaded = Adapter::load(root.path(), &model).unwrap().tables;
        assert_eq!(loaded.shape().weights, low_rank(2, model.projections.adaptable().iter()), "{family}");
        let given: BTreeMap<&str, &Vec<f32>> = tensors.iter().map(|(name, _, values)| (&**name, values)).collect();
        for projection in model.projections.iter() {
            let path = format!("base_model.model.{}", model.projections.path(2, projection));
            let (a, b) = (given[&*format!("{path}.lora_A.weight")], given[&*format!("{path}.lora_B.weight")]);
            for module in projection.modules().iter() {
                let [input, output] = module.extents(model.widths);
                assert_eq!(loaded.table(Table::LowRankA(module)).unwrap()[2 * rank * input..], a[..], "{family}");
                let own = &loaded.table(Table::LowRankB(module)).unwrap()[2 * rank * output..];
                for (column, row) in projection.rows(module).enumerate() {
                    assert_eq!([own[column], own[output + column]], b[row * rank..][..rank], "{family} {module}");
                }
            }
        }
        let (again, config) = saved(save(&model, &loaded).path());
        assert!(tensors.iter().all(|(name, _, values)| again[name].values == *values), "{family}");
        assert_eq!((&config["r"], &config["rank_pattern"]), (&json!(2), &json!({})), "{family}");
    }
}

#[test]
fn only_a_manifest_takes_tables_apart_and_only_where_the_zeros_are() {
    let model = of_family("bloom", "models/tiny", json!({"model_type": "bloom"}));
    let modules = [Module::Query, Module::Value];
    let tables = tables(&model, low_rank(2, modules));
    let root = save(&model, &tables);
    // As PEFT would save it: without our manifest.
    let (tensors, _) = saved(root.path());
    let all: Vec<(String, Vec<usize>, Vec<f32>)> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.values)).collect();
    write_tensors(&root.path().join(TENSORS_FILE), &all, Default::default()).unwrap();
    fs::remove_file(root.path().join("petals_adapter.json")).unwrap();
    let loaded = Adapter::load(root.path(), &model).unwrap().tables;
    let three = [Module::Query, Module::Key, Module::Value];
    assert_eq!(loaded.shape().weights, low_rank(4, three));
    for (module, block) in modules.into_iter().flat_map(|module| [0, 1, 2].map(|block| (module, block))) {
        let (got, expected) = (product(&model, &loaded, module, block), product(&model, &tables, module, block));
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()), "{got:?} {expected:?}");
    }
    assert!(product(&model, &loaded, Module::Key, 1).iter().all(|value| *value == 0.0));
    // With the manifest beside them but other values, they are PEFT's too.
    let root = save(&model, &tables);
    let mut changed = all;
    changed.iter_mut().filter(|(name, ..)| name.contains("lora_B")).for_each(|(.., values)| values.fill(1.0));
    write_tensors(&root.path().join(TENSORS_FILE), &changed, Default::default()).unwrap();
    let adapter = Adapter::load(root.path(), &model).unwrap();
    assert_eq!(adapter.tables.shape().weights, low_rank(4, three));
    assert_eq!(adapter.manifest.weights.unwrap().rank, Some(4));
}

#[test]
fn vectors_of_a_fused_matrix_are_ones_where_nothing_is_scaled() {
    let model = of_family("bloom", "models/tiny", json!({"model_type": "bloom"}));
    let tables = tables(&model, WeightChange::Scales { modules: Modules::SCALED });
    let root = save(&model, &tables);
    let (tensors, config) = saved(root.path());
    assert_eq!(config["target_modules"], json!(["query_key_value", "dense_4h_to_h"]));
    assert_eq!(config["feedforward_modules"], json!(["dense_4h_to_h"]));
    let name = "base_model.model.transformer.h.1.self_attention.query_key_value.ia3_l";
    // Two heads, each of two queries, keys and values; the second block's begin at 5 and, behind 12 keys, at 17.
    let expected = [1.0, 1.0, 5.0, 6.0, 17.0, 18.0, 1.0, 1.0, 7.0, 8.0, 19.0, 20.0];
    assert_eq!((&tensors[name].shape, &tensors[name].values[..]), (&vec![12, 1], &expected[..]));
    assert_eq!(tensors["base_model.model.transformer.h.1.mlp.dense_4h_to_h.ia3_l"].shape, [1, 16]);
    // What PEFT trained scales queries too.
    let mut all: Vec<(String, Vec<usize>, Vec<f32>)> =
        tensors.into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.values)).collect();
    let load = |all: &[(String, Vec<usize>, Vec<f32>)]| {
        write_tensors(&root.path().join(TENSORS_FILE), all, Default::default()).unwrap();
        Adapter::load(root.path(), &model)
    };
    assert_eq!(load(&all).unwrap().tables, tables);
    all.iter_mut().filter(|(own, ..)| own == name).for_each(|(.., values)| values[6] = 1.5);
    let refused = load(&all).unwrap_err().to_string();
    assert!(
        [name, "q_proj", "query_key_value (k_proj, v_proj)"].iter().all(|part| refused.contains(part)),
        "{refused}"
    );
}

#[test]
fn what_cannot_be_adapted_is_refused_by_its_name_and_with_what_can() {
    let model = of_family("mixtral", "models/tiny", json!({"model_type": "mixtral"}));
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("adapter_config.json"), r#"{"peft_type": "LORA", "fan_in_fan_out": false}"#).unwrap();
    let load = |tensors: &[(&str, [usize; 2])], model: &AdaptedModel| {
        let tensor =
            |(name, shape): &(&str, [usize; 2])| (name.to_string(), shape.to_vec(), vec![0.5; shape[0] * shape[1]]);
        let all: Vec<(String, Vec<usize>, Vec<f32>)> = tensors.iter().map(tensor).collect();
        write_tensors(&root.path().join(TENSORS_FILE), &all, Default::default()).unwrap();
        Adapter::load(root.path(), model).unwrap_err().to_string()
    };
    let expert = "base_model.model.model.layers.0.block_sparse_moe.experts.1.w2.lora_A.weight";
    let refused = load(&[(expert, [2, 6])], &model);
    assert!(refused.contains(expert) && refused.contains("o_proj; experts cannot be adapted"), "{refused}");
    let bloom = of_family("bloom", "models/tiny", json!({"model_type": "bloom"}));
    let refused = load(&[("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", [2, 4])], &bloom);
    assert!(refused.contains("query_key_value (q_proj, k_proj, v_proj)"), "{refused}");
    let scales = "base_model.model.model.layers.0.self_attn.q_proj.ia3_l";
    let refused = load(&[(scales, [4, 1])], &named("llama", "models/tiny"));
    assert!(refused.contains(scales) && refused.contains("k_proj, v_proj, down_proj"), "{refused}");
    // Of the right name and another width.
    let fused = "base_model.model.transformer.h.0.self_attention.query_key_value";
    let (a, b) = (format!("{fused}.lora_A.weight"), format!("{fused}.lora_B.weight"));
    assert!(load(&[(&a, [2, 4]), (&b, [11, 2])], &bloom).contains("[12, 2]"));
    assert!(load(&[(&a, [2, 5]), (&b, [12, 2])], &bloom).contains("[rank, 4]"));
    let both = load(&[(&a, [2, 4]), (&b, [12, 2]), (&format!("{fused}.ia3_l"), [12, 1])], &bloom);
    assert!(both.contains("ia3_l"), "{both}");
    let turned = r#"{"peft_type": "LORA", "fan_in_fan_out": true}"#;
    fs::write(root.path().join("adapter_config.json"), turned).unwrap();
    assert!(load(&[(&a, [2, 4]), (&b, [12, 2])], &bloom).contains("`fan_in_fan_out`"));
}
