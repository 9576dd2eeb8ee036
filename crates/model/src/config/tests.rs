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

fn rotary(config: &ModelConfig) -> (f64, RopeScaling) {
    (config.rotaries[0].theta, config.rotaries[0].scaling.clone())
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.window).collect()
}

fn refusal(changes: Value) -> String {
    with(changes).unwrap_err().to_string()
}

#[test]
fn an_old_llama_gets_the_defaults_of_its_time() {
    let config = with(json!({})).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (4, 8));
    assert_eq!(rotary(&config), (10_000.0, RopeScaling::Default));
    let attention = config.block.attention;
    assert!(!attention.qkv_bias && !config.head.tied && attention.head_norms == HeadNorms::None);
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(0), vec![1, 2]));
}

#[test]
fn families_differ_in_biases_and_norms() {
    let qwen2 = with(json!({"model_type": "qwen2", "num_key_value_heads": 2})).unwrap();
    let attention = qwen2.block.attention;
    assert!(attention.qkv_bias && !attention.output_bias && attention.head_norms == HeadNorms::None);
    let qwen3 = with(json!({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16})).unwrap();
    let attention = qwen3.block.attention;
    assert!(!attention.qkv_bias && attention.head_norms == HeadNorms::PerHead);
    let biased = with(json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    let attention = biased.block.attention;
    assert!(attention.qkv_bias && attention.output_bias && biased.block.mlp.bias);
}

#[test]
fn rope_is_read_from_the_old_and_the_new_place() {
    let scaling = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5});
    let new = with(json!({"rope_parameters": scaling})).unwrap();
    assert_eq!(rotary(&new), (5e5, RopeScaling::Linear { factor: 4.0 }));
    let old = with(json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
    assert_eq!(old.canonical(), new.canonical());
    assert!(refusal(json!({"rope_scaling": {"type": "ntk", "factor": 4.0}})).contains("`ntk`"));
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
    assert!(refusal(json!({"hidden_act": "mish"})).contains("`mish` is not supported"));
    assert!(refusal(json!({"eos_token_id": "x"})).contains("`eos_token_id`"));
    assert!(refusal(json!({"model_type": "qwen2"})).contains("`num_key_value_heads` is 32, as the key is missing"));
    assert!(ModelConfig::from_json("[]").is_err() && ModelConfig::from_json("{").is_err());
}

#[test]
fn a_sliding_window_counts_only_where_it_can_hide_something() {
    let mistral = |window| {
        windows(&with(json!({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": window})).unwrap())
    };
    assert_eq!(mistral(json!(null)), [None; 4]);
    assert_eq!(mistral(json!(512)), [None; 4]);
    assert_eq!(mistral(json!(511)), [Some(511); 4]);
    let qwen = |flag| {
        let keys = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8,
                          "use_sliding_window": flag, "max_window_layers": 1});
        windows(&with(keys).unwrap())
    };
    assert_eq!(qwen(false), [None; 4]);
    assert_eq!(qwen(true), [None, Some(8), Some(8), Some(8)]);
    let keys = json!({"model_type": "mistral", "max_position_embeddings": 32768, "num_key_value_heads": 4});
    assert_eq!(windows(&with(keys).unwrap()), [Some(4096); 4], "what a missing key means");
}

#[test]
fn methods_of_quantisation_that_are_not_read_are_refused_by_name() {
    let hqq = json!({"quant_method": "hqq", "bits": 4, "group_size": 128});
    let error = refusal(json!({"quantization_config": hqq}));
    assert!(error.contains("`quantization_config.quant_method` = `hqq` with 4 bits is not supported"), "{error}");
    assert!(error.contains("gptq, awq, compressed-tensors, fp8") && error.contains("made from"), "{error}");
    for method in ["bitsandbytes", "eetq", "quanto", "aqlm", "auto-round", "fbgemm_fp8", "mxfp4"] {
        let error = refusal(json!({"quantization_config": {"quant_method": method}}));
        assert!(error.contains(&format!("`quantization_config.quant_method` = `{method}`")), "{error}");
    }
    let old = refusal(json!({"quantization_config": {"load_in_4bit": true}}));
    assert!(old.contains("`bitsandbytes`"), "{old}");
    let early = refusal(json!({"compression_config": {"quant_method": "sparseml"}}));
    assert!(early.contains("`compression_config.quant_method` = `sparseml`"), "{early}");
    assert!(refusal(json!({"quantization_config": {}})).contains("a method without a name"));
    assert_eq!(with(json!({"quantization_config": null})).unwrap().quantisation, None);
    // Before anything else that may look odd in such a file.
    assert!(refusal(json!({"quantization_config": hqq, "hidden_act": "mish"})).contains("`hqq`"));
}

#[test]
fn methods_of_quantisation_that_are_read_change_nothing_else() {
    let plain = with(json!({})).unwrap();
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"});
    let quantised = with(json!({"quantization_config": awq})).unwrap();
    assert_eq!(quantised.quantisation, Some(Quantisation::Awq { group: Some(64) }));
    assert_eq!(quantised.canonical(), plain.canonical());
    let wrapper = json!({"model_type": "gemma3", "quantization_config": awq, "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 12}});
    let wrapper = ModelConfig::from_json(&wrapper.to_string()).unwrap();
    assert_eq!(wrapper.quantisation, Some(Quantisation::Awq { group: Some(64) }));
}

#[test]
fn the_text_part_of_a_wrapper_is_read_and_others_are_refused_by_name() {
    let gemma = json!({"model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"hidden_size": 1152}, "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 12,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}});
    let config = ModelConfig::from_json(&gemma.to_string()).unwrap();
    assert_eq!(
        (config.model_type.as_str(), config.num_attention_heads, config.vocab_size),
        ("gemma3_text", 8, 262_208)
    );
    assert_eq!(config.eos_token_ids, [1, 106], "what only the wrapper says");
    let (sliding, full) = (config.layers[0], config.layers[5]);
    assert_eq!((sliding.window, full.window), (Some(1024), None));
    assert_ne!(sliding.rotary, full.rotary);

    let qwen = json!({"model_type": "qwen2_5_vl", "num_key_value_heads": 2,
                      "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}});
    assert_eq!(with(qwen).unwrap().model_type, "qwen2");

    let wrapper = json!({"model_type": "mistral3", "text_config": {"model_type": "rwkv", "hidden_size": 32}});
    let error = ModelConfig::from_json(&wrapper.to_string()).unwrap_err().to_string();
    assert!(error.contains("`model_type` = `mistral3`, a wrapper around a `rwkv` language model"), "{error}");
    assert!(error.contains("of one of these families"), "{error}");
}

#[test]
fn what_a_missing_key_means_is_held_to_the_bounds_of_the_others() {
    let few = json!({"model_type": "qwen2_moe", "num_key_value_heads": 4, "num_experts": 2});
    assert!(refusal(few).contains("`num_experts_per_tok` is 4, as the key is missing, expected at most 2"));
    let longrope = json!({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [2.0]});
    let error = refusal(json!({"rope_scaling": longrope}));
    assert!(error.contains("`short_factor` is a list of 1, expected one number for each of 4 pairs"), "{error}");
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
