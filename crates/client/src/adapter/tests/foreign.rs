//! Directories that PEFT or git left, and what is said of them.

use super::*;

/// What PEFT 0.17 writes for prompt tuning of [`model`].
fn peft_config() -> Value {
    json!({
        "auto_mapping": null, "base_model_name_or_path": "org/tiny", "inference_mode": true, "num_attention_heads": 2,
        "num_layers": 3, "num_transformer_submodules": 1, "num_virtual_tokens": 5, "peft_type": "PROMPT_TUNING",
        "peft_version": "0.17.1", "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "Classify:",
        "revision": null, "task_type": "CAUSAL_LM", "token_dim": 4, "tokenizer_kwargs": null,
        "tokenizer_name_or_path": "org/tiny"
    })
}

/// What loading says of a table of five rows beside this configuration.
fn load_with(change: impl FnOnce(&mut Value)) -> Result<Adapter, AdapterError> {
    let root = tempfile::tempdir().unwrap();
    let mut config = peft_config();
    change(&mut config);
    write_foreign(root.path(), &[("prompt_embeddings", &[5, 4])]);
    fs::write(root.path().join("adapter_config.json"), config.to_string()).unwrap();
    Adapter::load(root.path(), &model())
}

#[test]
fn prompt_tuning_of_any_version_of_peft_loads() {
    assert_eq!(load_with(|_| ()).unwrap().manifest.prefix_len, 5);
    assert!(load_with(|config| config["num_transformer_submodules"] = Value::Null).is_ok());
    assert!(load_with(|config| config["inference_mode"] = false.into()).is_ok());
    assert!(load_with(|config| config["peft_type"] = "P_TUNING".into()).is_ok());
    assert!(load_with(|config| config["base_model_name_or_path"] = "/somewhere/else".into()).is_ok());
    assert!(load_with(|config| config["a_key_of_later"] = json!({"with": ["anything"]})).is_ok());
    assert!(load_with(|config| *config = json!({})).is_ok());
}

#[test]
fn other_kinds_of_peft_adapters_are_refused_by_type() {
    for kind in ["ADALORA", "LOHA", "VERA", "OFT", "MULTITASK_PROMPT_TUNING"] {
        let error = load_with(|config| config["peft_type"] = kind.into()).unwrap_err();
        assert!(matches!(&error, AdapterError::PeftType(name) if name == kind), "{error}");
    }
}

#[test]
fn a_configuration_that_does_not_fit_is_refused_by_its_key() {
    let cases: [(&str, Value, &str); 6] = [
        ("token_dim", 8.into(), "org/tiny"),
        ("num_layers", 4.into(), "number of blocks of 3"),
        ("num_transformer_submodules", 2.into(), "an encoder and a decoder"),
        ("num_virtual_tokens", 6.into(), "has 5 rows"),
        ("task_type", "SEQ_2_SEQ_LM".into(), "only CAUSAL_LM and SEQ_CLS"),
        ("task_type", "SEQ_CLS".into(), "no score head"),
    ];
    for (key, value, words) in cases {
        let message = load_with(|config| config[key] = value).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")) && message.contains(words), "{message}");
    }
}

#[test]
fn a_pickle_is_not_opened_but_comes_with_the_line_that_converts_it() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("adapter_model.bin"), b"PK\x03\x04 not even a pickle").unwrap();
    fs::write(root.path().join("adapter_config.json"), peft_config().to_string()).unwrap();
    let message = Adapter::load(root.path(), &model()).unwrap_err().to_string();
    for words in ["adapter_model.bin", "AutoModelForCausalLM", "'org/tiny'", "safe_serialization=True"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    let other = json!({"peft_type": "LOHA"});
    fs::write(root.path().join("adapter_config.json"), other.to_string()).unwrap();
    let error = Adapter::load(root.path(), &model()).unwrap_err();
    assert!(matches!(error, AdapterError::PeftType(_)), "converting would not help: {error}");
}

#[test]
fn what_is_no_adapter_is_said_to_be_what_it_is() {
    let root = tempfile::tempdir().unwrap();
    let refused = |path: &Path| Adapter::load(path, &model()).unwrap_err().to_string();
    assert!(refused(root.path()).contains("no adapter_model.safetensors"));
    assert!(refused(&root.path().join("none")).contains("no such directory"));
    fs::write(root.path().join("config.json"), "{}").unwrap();
    assert!(refused(root.path()).contains("a whole model"));
    let tables = root.path().join(TENSORS_FILE);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
    fs::write(&tables, pointer).unwrap();
    assert!(refused(root.path()).contains("git lfs pull"));
    assert!(refused(&tables).contains("give the directory"));
    write_foreign(root.path(), &[("base_model.model.lm_head.lora_A.weight", &[2, 4])]);
    assert!(refused(root.path()).contains("lm_head.lora_A"));
    write_foreign(root.path(), &[("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 4])]);
    fs::write(root.path().join("adapter_config.json"), r#"{"peft_type": "LORA"}"#).unwrap();
    assert!(refused(root.path()).contains("not the other one of its pair"));
    write_foreign(root.path(), &[("prompt_embeddings", &[5, 4])]);
    fs::write(root.path().join("adapter_config.json"), pointer).unwrap();
    assert!(refused(root.path()).contains("git lfs pull"));
}

#[test]
fn an_adapter_of_another_model_that_does_not_fit_names_both() {
    let root = tempfile::tempdir().unwrap();
    let mut config = peft_config();
    (config["base_model_name_or_path"], config["token_dim"]) = ("org/large".into(), Value::Null);
    write_foreign(root.path(), &[("prompt_embeddings", &[5, 8])]);
    fs::write(root.path().join("adapter_config.json"), config.to_string()).unwrap();
    let error = Adapter::load(root.path(), &model()).unwrap_err();
    assert!(
        matches!(&error, AdapterError::OtherBase { base, model, .. } if base == "org/large" && model == "tiny"),
        "{error}"
    );
    config["base_model_name_or_path"] = "org/tiny".into();
    fs::write(root.path().join("adapter_config.json"), config.to_string()).unwrap();
    assert!(matches!(Adapter::load(root.path(), &model()).unwrap_err(), AdapterError::Tensors(_)));
}

/// What loading says of rank-2 tables of one matrix beside this configuration.
fn low_rank_with(config: Value) -> Result<Adapter, AdapterError> {
    let root = tempfile::tempdir().unwrap();
    let tensor = |part: &str| format!("base_model.model.model.layers.1.self_attn.v_proj.lora_{part}.weight");
    write_foreign(root.path(), &[(&tensor("A"), &[2, 4]), (&tensor("B"), &[2, 2])]);
    fs::write(root.path().join("adapter_config.json"), config.to_string()).unwrap();
    Adapter::load(root.path(), &model())
}

#[test]
fn a_rank_that_no_data_stands_behind_allocates_nothing() {
    let root = tempfile::tempdir().unwrap();
    let tensor = |part: &str| format!("base_model.model.model.layers.1.self_attn.v_proj.lora_{part}.weight");
    fs::write(root.path().join("adapter_config.json"), r#"{"peft_type": "LORA"}"#).unwrap();
    for shape in [[1 << 40, 0], [0, 4]] {
        write_foreign(root.path(), &[(&tensor("A"), &shape), (&tensor("B"), &[2, 0])]);
        assert!(Adapter::load(root.path(), &model()).is_err(), "{shape:?}");
    }
}

#[test]
fn low_rank_tables_without_a_configuration_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let tensor = |part: &str| format!("base_model.model.model.layers.1.self_attn.v_proj.lora_{part}.weight");
    write_foreign(root.path(), &[(&tensor("A"), &[2, 4]), (&tensor("B"), &[2, 2])]);
    let message = Adapter::load(root.path(), &model()).unwrap_err().to_string();
    assert!(message.contains("adapter_config.json") && message.contains("lora_alpha"), "{message}");
}

#[test]
fn low_rank_tables_are_scaled_as_their_configuration_says() {
    let scale = |config| low_rank_with(config).unwrap().tables.shape().scale;
    assert_eq!(scale(json!({"peft_type": "LORA", "r": 2, "lora_alpha": 16})), 8.0);
    assert_eq!(scale(json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": true})), 4.0 / 2f32.sqrt());
    let pattern = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 16, "alpha_pattern": {"v_proj": 4}});
    let adapter = low_rank_with(pattern).unwrap();
    let plain = low_rank_with(json!({"peft_type": "LORA", "r": 2, "lora_alpha": 16})).unwrap();
    let b = |adapter: &Adapter| adapter.tables.table(Table::LowRankB(petals_protocol::Module::Value)).unwrap().to_vec();
    let quarter: Vec<f32> = b(&plain).iter().map(|value| value / 4.0).collect();
    assert_eq!((adapter.tables.shape().scale, b(&adapter)), (8.0, quarter));
}

#[test]
fn what_other_implementations_of_low_rank_tables_have_is_refused_by_its_key() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("alpha_pattern", json!({"^model.*": 3})),
        ("lora_alpha", json!("much")),
        ("lora_alpha", json!(0)),
        ("lora_alpha", json!(1e300)),
        ("alpha_pattern", json!({"v_proj": 1e300})),
    ] {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 16});
        config[key] = value;
        let message = low_rank_with(config).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
    }
}
