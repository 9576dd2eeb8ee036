//! Against what transformers 4.57 and 5 read (`tests/oracle/configs.py`).

use std::path::Path;

use serde_json::Value;

use super::super::ModelConfig;

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/configs").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The configuration of a variant: its base with keys dropped and set.
fn text(bases: &Value, variant: &Value) -> String {
    let mut config = bases[variant["base"].as_str().unwrap()].as_object().unwrap().clone();
    for key in variant["drop"].as_array().into_iter().flatten() {
        config.remove(key.as_str().unwrap());
    }
    config.extend(variant["set"].as_object().cloned().unwrap_or_default());
    Value::Object(config).to_string()
}

fn compare(name: &str, config: &ModelConfig, read: &Value) {
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
        ("max_position_embeddings", config.max_position_embeddings),
    ];
    for (key, value) in sizes {
        assert_eq!(read[key].as_f64(), Some(value as f64), "{name}: {key}");
    }
    assert_eq!(read["model_type"], config.model_type, "{name}");
    assert_eq!(read["rms_norm_eps"].as_f64().unwrap() as f32, config.block.norm_eps, "{name}: eps");
    assert_eq!(read["initializer_range"].as_f64().unwrap() as f32, config.initializer_range, "{name}");
    assert_eq!(read["rope_theta"].as_f64(), Some(config.rotaries[0].theta), "{name}: base");
    assert_eq!(read["tie_word_embeddings"], config.head.tied, "{name}: tie");
    // Which flag a family looks at stands in its model's code, not in its configuration.
    let flags = ["llama", "qwen3"].contains(&config.model_type.as_str());
    let biases = if flags { &read["attention_bias"] } else { &Value::Bool(config.model_type == "qwen2") };
    assert_eq!(*biases, config.block.attention.qkv_bias, "{name}: biases");
    assert_eq!(config.block.attention.output_bias, flags && read["attention_bias"] == true, "{name}: output bias");
    assert_eq!(config.block.mlp.bias, config.model_type == "llama" && read["mlp_bias"] == true, "{name}: MLP bias");
    // Ids below zero are what configurations say for none.
    let id = |id: &Value| id.as_u64().map(|id| id as u32);
    assert_eq!(config.bos_token_id, id(&read["bos_token_id"]), "{name}: bos");
    let ends: Vec<u32> = read["eos_token_ids"].as_array().unwrap().iter().filter_map(id).collect();
    assert_eq!(config.eos_token_ids, ends, "{name}: eos");

    // Of kinds that depend on more than the configuration only goldens of whole models say what they are.
    let depends = ["yarn", "dynamic", "longrope"].contains(&read["rope_type"].as_str().unwrap());
    let frequencies = read["frequencies"].as_array().map_or(&[][..], Vec::as_slice);
    assert!(depends || frequencies.len() == config.head_dim / 2, "{name}");
    for (i, (ours, expected)) in config.rotaries[0].frequencies(false).into_iter().zip(frequencies).enumerate() {
        let expected = expected.as_f64().unwrap();
        assert!((ours / expected - 1.0).abs() < 2e-6, "{name}: frequency {i} is {ours}, expected {expected}");
    }
    let hides = read["sliding_window"].as_f64().filter(|window| *window < config.max_position_embeddings as f64);
    let sliding: Vec<u64> = read["sliding_layers"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    for (number, layer) in config.layers.iter().enumerate() {
        let window = hides.filter(|_| sliding.contains(&(number as u64)));
        assert_eq!(layer.window.map(|window| window as f64), window, "{name}: window of layer {number}");
    }
}

#[test]
fn configurations_are_read_as_transformers_reads_them() {
    let (all, expected) = (golden("variants.json"), golden("expected.json"));
    let variants = all["variants"].as_array().unwrap();
    let (mut taken, mut refused) = (0, 0);
    for variant in variants {
        let name = variant["name"].as_str().unwrap();
        let (four, five) = (&expected["4"][name], &expected["5"][name]);
        assert!(four.is_object() && five.is_object(), "{name} is not recorded: run tests/oracle/configs.py");
        let ours = ModelConfig::from_json(&text(&all["bases"], variant));
        if let Some(key) = variant["refused"].as_str() {
            let reason = variant["why"].is_string() || [four, five].iter().all(|read| read["error"].is_string());
            assert!(reason, "{name}: transformers takes it");
            let error = ours.expect_err(name).to_string();
            assert!(error.contains(&format!("`{key}`")), "{name}: {error}");
            refused += 1;
            continue;
        }
        let followed = match variant["follow"].as_str() {
            Some(version) => &expected[version][name],
            None => {
                assert_eq!(four, five, "{name}: which version is followed?");
                four
            }
        };
        assert!(followed["error"].is_null(), "{name}: {}", followed["error"]);
        compare(name, &ours.unwrap_or_else(|error| panic!("{name}: {error}")), followed);
        taken += 1;
    }
    assert!(taken > 140 && refused > 25, "{taken} taken, {refused} refused");
}
