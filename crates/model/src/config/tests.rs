use serde_json::json;

use super::*;

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
    assert!(refusal(json!({"rope_scaling": {"type": "linear"}})).contains("no `factor`"));
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
    assert!(refusal(json!({"rms_norm_eps": null})).contains("no `rms_norm_eps`"));
    assert!(refusal(json!({"hidden_act": "gelu"})).contains("only silu"));
    assert!(refusal(json!({"eos_token_id": "x"})).contains("`eos_token_id`"));
    assert!(refusal(json!({"model_type": "qwen2"})).contains("no `num_key_value_heads`"));
    assert!(ModelConfig::from_json("[]").is_err() && ModelConfig::from_json("{").is_err());
}

#[test]
fn a_sliding_window_counts_only_if_it_can_hide_something() {
    let mistral = |window| with(json!({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": window}));
    assert!(mistral(json!(null)).is_ok() && mistral(json!(512)).is_ok());
    assert!(mistral(json!(511)).unwrap_err().to_string().contains("`sliding_window` = 511"));
    let qwen = |flag| {
        with(json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8, "use_sliding_window": flag}))
    };
    assert!(qwen(false).is_ok() && qwen(true).is_err());
}
