use serde_json::json;

use super::*;

mod transformers;

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "eos_token_id": [1, 2], "bos_token_id": 0, "torch_dtype": "float32",
    })
}

fn with(changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config.to_string())
}

fn refusal(changes: Value) -> String {
    with(changes).unwrap_err().to_string()
}

#[test]
fn an_old_llama_gets_the_defaults_of_its_time() {
    let config = with(json!({})).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 8));
    assert_eq!((config.rope_theta, config.rope_scaling), (10_000.0, RopeScaling::Default));
    assert!(!config.qkv_bias && !config.tie_word_embeddings && !config.qk_norm);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(0), vec![1, 2]));
}

#[test]
fn families_differ_in_biases_and_norms() {
    let qwen2 = with(json!({"model_type": "qwen2", "num_key_value_heads": 2})).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
    let qwen3 = with(json!({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16})).unwrap();
    assert!(!qwen3.qkv_bias && qwen3.qk_norm);
    let biased = with(json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(biased.qkv_bias && biased.output_bias && biased.mlp_bias);
}

#[test]
fn rope_is_read_from_the_old_and_the_new_place() {
    let scaling = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    let new = with(json!({"rope_parameters": scaling})).unwrap();
    assert_eq!((new.rope_theta, new.rope_scaling), (5e5, RopeScaling::Linear { factor: 4.0 }));
    let old = with(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
    assert_eq!(old.canonical(), new.canonical());
    assert!(refusal(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})).contains("`yarn`"));
    assert!(refusal(json!({"rope_scaling": {"type": "linear"}})).contains("no `rope_scaling.factor`"));
}

#[test]
fn nonsense_is_refused_by_the_name_of_its_key() {
    assert!(refusal(json!({"model_type": "gpt2"})).contains("`gpt2` is not supported"));
    assert!(refusal(json!({"num_attention_heads": 0})).contains("`num_attention_heads` is 0"));
    assert!(refusal(json!({"num_attention_heads": 3})).contains("divisor of hidden_size"));
    assert!(refusal(json!({"num_key_value_heads": 3})).contains("divisor of num_attention_heads"));
    assert!(refusal(json!({"vocab_size": 1u64 << 60})).contains("`vocab_size`"));
    assert!(refusal(json!({"hidden_size": -4})).contains("`hidden_size` is -4"));
    assert!(refusal(json!({"head_dim": 7})).contains("even"));
    assert!(refusal(json!({"rms_norm_eps": null})).contains("`rms_norm_eps` is null"));
    assert!(refusal(json!({"hidden_act": "gelu"})).contains("only silu"));
    assert!(refusal(json!({"eos_token_id": "x"})).contains("`eos_token_id`"));
    assert!(refusal(json!({"model_type": "qwen2"})).contains("`num_key_value_heads` is 32, as the key is missing"));
    assert!(ModelConfig::from_json("[]").is_err() && ModelConfig::from_json("{").is_err());
}

#[test]
fn a_sliding_window_counts_only_if_it_can_hide_something() {
    let mistral = |window| with(json!({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": window}));
    assert!(mistral(json!(null)).is_ok() && mistral(json!(512)).is_ok());
    assert!(mistral(json!(511)).unwrap_err().to_string().contains("`sliding_window` = 511"));
    let qwen = |flag| {
        with(json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8, "use_sliding_window": flag,
                    "max_window_layers": 0}))
    };
    assert!(qwen(false).is_ok() && qwen(true).is_err());
}

#[test]
fn quantised_weights_are_refused_by_their_method() {
    let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": 128});
    let error = refusal(json!({"quantization_config": gptq}));
    assert!(error.contains("`quantization_config.quant_method` = `gptq` with 4 bits is not supported"), "{error}");
    assert!(error.contains("made from"), "{error}");
    let old = refusal(json!({"quantization_config": {"load_in_4bit": true}}));
    assert!(old.contains("`bitsandbytes`"), "{old}");
    let early = refusal(json!({"compression_config": {"quant_method": "compressed-tensors"}}));
    assert!(early.contains("`compression_config.quant_method` = `compressed-tensors`"), "{early}");
    assert!(refusal(json!({"quantization_config": {}})).contains("a method without a name"));
    assert!(with(json!({"quantization_config": null})).is_ok());
    // Before anything else that may look odd in such a file.
    assert!(refusal(json!({"quantization_config": gptq, "hidden_act": "gelu"})).contains("`gptq`"));
}

#[test]
fn wrappers_are_refused_by_name_and_by_what_they_wrap() {
    let wrapper = json!({"model_type": "mistral3", "text_config": {"model_type": "mistral", "hidden_size": 32}});
    let error = ModelConfig::from_json(&wrapper.to_string()).unwrap_err().to_string();
    assert!(error.contains("`model_type` = `mistral3`, a wrapper around a `mistral` language model"), "{error}");
    assert!(error.contains("language model alone"), "{error}");
}

#[test]
fn ways_out_say_what_to_change_and_lead_there() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
    let error = refusal(json!({"rope_scaling": yarn}));
    let way = "remove `rope_scaling` and set `max_position_embeddings` to 128, on all servers and clients alike";
    assert!(error.contains("`rope_scaling.rope_type` = `yarn`") && error.contains(way), "{error}");
    assert_eq!(with(json!({"max_position_embeddings": 128})).unwrap().max_position_embeddings, 128);

    let error = refusal(json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}}));
    let way = r#"set `rope_parameters` to {"rope_type": "default", "rope_theta": 500000.0}, on all"#;
    assert!(error.contains(way) && error.contains("up to 512 positions"), "{error}");
    let taken = with(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}})).unwrap();
    assert_eq!((taken.rope_theta, taken.rope_scaling), (5e5, RopeScaling::Default));

    let mistral = |changes: Value| {
        let mut all = json!({"model_type": "mistral", "max_position_embeddings": 32768, "num_key_value_heads": 4});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        with(all)
    };
    let error = mistral(json!({})).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("`sliding_window` = 4096 (what it means if the key is missing) in 4 of 4 blocks"), "{text}");
    assert!(error.remedy().starts_with("set `max_position_embeddings` to 4096"), "{text}");
    assert!(mistral(json!({"max_position_embeddings": 4096})).is_ok());
}

#[test]
fn a_null_head_width_of_qwen2_is_a_missing_one() {
    let changes = json!({"model_type": "qwen2", "num_key_value_heads": 4, "head_dim": null});
    assert_eq!(with(changes).unwrap().head_dim, 8);
}

#[test]
fn numbers_that_json_does_not_have_are_refused_where_they_count() {
    let text = |key: &str| llama().to_string().replacen('{', &format!("\u{feff}{{\"{key}\": NaN, "), 1);
    assert!(ModelConfig::from_json(&text("router_jitter_noise")).is_ok());
    let error = ModelConfig::from_json(&text("rope_theta")).unwrap_err().to_string();
    assert!(error.contains("`rope_theta` is \"NaN\""), "{error}");
}
