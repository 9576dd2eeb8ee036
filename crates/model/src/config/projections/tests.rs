use serde_json::{Value, json};

use super::*;

fn model(own: Value) -> ModelConfig {
    let mut config = json!({
        "vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "rotary_pct": 1.0,
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut config, own) {
        all.extend(own);
    }
    ModelConfig::from_json(&config.to_string()).unwrap()
}

fn names(modules: Modules) -> String {
    modules.iter().map(Module::name).collect::<Vec<_>>().join(" ")
}

/// The rows of queries, keys and values in the projection that has all three.
fn rows(config: &ModelConfig) -> [Vec<usize>; 3] {
    let projections = config.projections();
    let fused = projections.iter().next().unwrap();
    assert!(fused.is_fused());
    [Module::Query, Module::Key, Module::Value].map(|module| fused.rows(module).collect())
}

#[test]
fn what_can_be_adapted_is_what_every_block_has() {
    let all = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj";
    let gateless = "q_proj k_proj v_proj o_proj up_proj down_proj";
    let attention = "q_proj k_proj v_proj o_proj";
    for (family, adaptable, scalable) in [
        ("llama", all, "k_proj v_proj down_proj"),
        ("phi3", all, "k_proj v_proj down_proj"),
        ("bloom", gateless, "k_proj v_proj down_proj"),
        ("falcon", gateless, "k_proj v_proj down_proj"),
        ("gpt_neox", gateless, "k_proj v_proj down_proj"),
        ("mixtral", attention, "k_proj v_proj"),
        ("gpt_oss", attention, "k_proj v_proj"),
    ] {
        let config = model(json!({"model_type": family, "num_key_value_heads": 2, "head_dim": 2}));
        assert_eq!((names(config.adaptable()).as_str(), names(config.scalable()).as_str()), (adaptable, scalable));
        let projections = config.projections();
        assert_eq!(projections.adaptable(), config.adaptable(), "{family}");
        assert_eq!(projections.scalable(), config.scalable(), "{family}");
        // Every row is one of exactly one matrix.
        for projection in projections.iter() {
            let mut rows: Vec<usize> = projection.modules().iter().flat_map(|module| projection.rows(module)).collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..projection.extents()[1]), "{family} {projection:?}");
            for module in projection.modules().iter() {
                let [input, output] = module.extents(config.block_widths());
                assert_eq!((projection.extents()[0], projection.rows(module).count()), (input, output));
            }
        }
    }
    // One layer with experts is enough.
    let mixed =
        model(json!({"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 1, "mlp_only_layers": [0]}));
    assert_eq!(names(mixed.adaptable()), attention);
    assert_eq!(model(json!({"model_type": "qwen3_moe", "mlp_only_layers": [0, 1]})).adaptable().iter().count(), 7);
}

#[test]
fn rows_lie_as_transformers_takes_them_apart() {
    // `view(heads, 3, dim)`.
    let by_head =
        [vec![0, 1, 6, 7, 12, 13, 18, 19], vec![2, 3, 8, 9, 14, 15, 20, 21], vec![4, 5, 10, 11, 16, 17, 22, 23]];
    assert_eq!(rows(&model(json!({"model_type": "bloom"}))), by_head);
    assert_eq!(rows(&model(json!({"model_type": "gpt_neox"}))), by_head);
    let one_key = [(0..8).collect(), vec![8, 9], vec![10, 11]];
    assert_eq!(rows(&model(json!({"model_type": "falcon"}))), one_key);
    // `view(groups, heads / groups + 2, dim)`.
    let grouped = model(json!({"model_type": "falcon", "new_decoder_architecture": true, "num_kv_heads": 2}));
    let by_group = [vec![0, 1, 2, 3, 8, 9, 10, 11], vec![4, 5, 12, 13], vec![6, 7, 14, 15]];
    assert_eq!(rows(&grouped), by_group);
    assert_eq!((grouped.cached_key_heads(), model(json!({"model_type": "falcon"})).cached_key_heads()), (4, 1));
    let phi3 = model(json!({"model_type": "phi3", "num_key_value_heads": 2}));
    assert_eq!(rows(&phi3), [(0..8).collect(), (8..12).collect::<Vec<_>>(), (12..16).collect()]);
    assert_eq!(phi3.cached_key_heads(), 2);
    for family in ["phi3", "glm4"] {
        let own = json!({"model_type": family, "head_dim": 2, "num_key_value_heads": 2, "partial_rotary_factor": 1.0});
        let projections = model(own).projections();
        let both = projections.iter().find(|projection| projection.name() == "gate_up_proj").unwrap();
        assert!(both.rows(Module::Gate).eq(0..12) && both.rows(Module::Up).eq(12..24));
    }
}

#[test]
fn names_are_those_of_the_family_and_ours() {
    let bloom = model(json!({"model_type": "bloom"})).projections();
    let named = |name: &str| bloom.named(name).map(names);
    assert_eq!(named("query_key_value").as_deref(), Some("q_proj k_proj v_proj"));
    assert_eq!(named("self_attention.dense").as_deref(), Some("o_proj"));
    assert_eq!(named("dense_h_to_4h").as_deref(), Some("up_proj"));
    assert_eq!((named("down_proj").as_deref(), named("k_proj").as_deref()), (Some("down_proj"), Some("k_proj")));
    for unknown in ["gate_proj", "", "value", "lm_head", "attention.dense"] {
        assert_eq!(named(unknown), None, "{unknown}");
    }
    let phi3 = model(json!({"model_type": "phi3"})).projections();
    assert_eq!(phi3.named("gate_up_proj").map(names).as_deref(), Some("gate_proj up_proj"));
    let mixtral = model(json!({"model_type": "mixtral", "num_key_value_heads": 2})).projections();
    assert!(mixtral.named("w2").is_none() && mixtral.named("down_proj").is_none());
    let said = mixtral.describe(mixtral.adaptable());
    assert_eq!(said, "q_proj, k_proj, v_proj, o_proj; experts cannot be adapted");
    assert_eq!(bloom.describe(bloom.scalable()), "query_key_value (k_proj, v_proj), dense_4h_to_h (down_proj)");
}

#[test]
fn a_path_is_found_in_whatever_peft_and_checkpoints_call_it() {
    for (own, path) in [
        (json!({"model_type": "llama"}), "model.layers.1.self_attn.q_proj"),
        (json!({"model_type": "bloom"}), "transformer.h.1.self_attention.query_key_value"),
        (json!({"model_type": "gpt_neox"}), "gpt_neox.layers.1.attention.query_key_value"),
    ] {
        let projections = model(own).projections();
        let first = projections.iter().next().unwrap();
        assert_eq!(projections.path(1, first), path);
        let found = |name: &str| {
            projections.find(name).map(|(block, projection, rest)| (block, projection == first, rest.to_owned()))
        };
        let expected = Some((1, true, "lora_A.weight".to_owned()));
        let bare = path.split_once('.').unwrap().1;
        for front in ["base_model.model.", ""] {
            assert_eq!(found(&format!("{front}{path}.lora_A.weight")), expected, "{path}");
            assert_eq!(found(&format!("{front}{bare}.lora_A.weight")), expected, "{path}");
        }
        for other in [
            path.to_owned(),
            format!("{path}x.weight"),
            format!("vision_tower.{bare}.weight"),
            format!("{}.weight", path.replace(".1.", ".01.")),
            format!("{}.weight", path.replace(".1.", ".x.")),
            String::new(),
        ] {
            assert_eq!(found(&other), None, "{other}");
        }
    }
}

#[test]
fn a_change_of_what_is_not_there_is_named() {
    let bloom = model(json!({"model_type": "bloom"}));
    let low_rank = |module: Module| WeightChange::LowRank { rank: 1, modules: [module].into_iter().collect() };
    assert_eq!(bloom.lacks(low_rank(Module::Gate)).map(|(module, _)| module), Some(Module::Gate));
    assert!(
        Module::ALL.into_iter().filter(|module| *module != Module::Gate).all(|m| bloom.lacks(low_rank(m)).is_none())
    );
    let mixtral = model(json!({"model_type": "mixtral", "num_key_value_heads": 2}));
    let scales = WeightChange::Scales { modules: Modules::SCALED };
    assert_eq!(mixtral.lacks(scales), Some((Module::Down, mixtral.scalable())));
    assert_eq!((bloom.lacks(scales), bloom.lacks(WeightChange::None)), (None, None));
}
