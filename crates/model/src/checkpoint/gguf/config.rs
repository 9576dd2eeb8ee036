//! From metadata to the `config.json` that the model has, or would have, at Hugging Face's, so that there is one reader of configurations.
//!
//! Metadata say less: what llama.cpp has in its source for an architecture is here for it too.

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::rope;
use crate::checkpoint::CheckpointError;

/// An architecture of llama.cpp's that is a family here.
pub(super) struct Architecture {
    name: &'static str,
    /// `model_type`.
    family: &'static str,
    /// What the common keys do not say.
    add: fn(&Metadata<'_>, &mut Map<String, Value>) -> Result<(), CheckpointError>,
    /// Whether its rotary embedding turns neighbours where Hugging Face's turns halves, so that queries and keys were reordered.
    pub(super) turns: bool,
    /// Whether it has windows of attention.
    windows: bool,
}

/// Blocks that are listed: of more a configuration is refused.
const MAX_BLOCKS: u64 = 1 << 10;

const PLAIN: Architecture = Architecture { name: "", family: "", add: |_, _| Ok(()), turns: false, windows: false };

const ALL: [Architecture; 15] = [
    Architecture { name: "llama", family: "llama", add: llama, turns: true, ..PLAIN },
    Architecture { name: "qwen2", family: "qwen2", ..PLAIN },
    Architecture { name: "qwen3", family: "qwen3", add: attention_bias, ..PLAIN },
    Architecture { name: "qwen2moe", family: "qwen2_moe", add: qwen2_moe, ..PLAIN },
    Architecture { name: "qwen3moe", family: "qwen3_moe", add: qwen3_moe, ..PLAIN },
    Architecture { name: "gemma", family: "gemma", ..PLAIN },
    Architecture { name: "gemma2", family: "gemma2", add: gemma2, windows: true, ..PLAIN },
    Architecture { name: "gemma3", family: "gemma3_text", add: gemma3, windows: true, ..PLAIN },
    Architecture { name: "phi3", family: "phi3", add: phi3, windows: true, ..PLAIN },
    Architecture { name: "gptneox", family: "gpt_neox", add: gpt_neox, ..PLAIN },
    Architecture { name: "falcon", family: "falcon", add: falcon, ..PLAIN },
    Architecture { name: "bloom", family: "bloom", ..PLAIN },
    Architecture { name: "olmo2", family: "olmo2", add: attention_bias, ..PLAIN },
    Architecture { name: "smollm3", family: "smollm3", add: smollm3, turns: true, ..PLAIN },
    Architecture { name: "glm4", family: "glm4", add: glm4, ..PLAIN },
];
/// Beside the others, as it has more keys.
const GPT_OSS: Architecture = Architecture { name: "gpt-oss", family: "gpt_oss", add: gpt_oss, windows: true, ..PLAIN };

/// The architecture of a file.
pub(super) fn architecture(metadata: &Metadata<'_>) -> Result<&'static Architecture, CheckpointError> {
    let all = || ALL.iter().chain([&GPT_OSS]);
    all().find(|known| known.name == metadata.architecture()).ok_or_else(|| {
        let names: Vec<&str> = all().map(|known| known.name).collect();
        let remedy = format!("use a model of one of the architectures {}", names.join(", "));
        metadata.unsupported("general.architecture", format!("`{}`", metadata.architecture()), &remedy)
    })
}

/// The configuration as `config.json` has it.
pub(super) fn json(metadata: &Metadata<'_>, architecture: &Architecture) -> Result<Value, CheckpointError> {
    const EMBEDDINGS: &str = "token_embd.weight";
    let embeddings = metadata.tensor(EMBEDDINGS).and_then(|(_, tensor)| tensor.shape.first());
    let vocabulary = embeddings.ok_or_else(|| metadata.wrong(format!("it has no tensor `{EMBEDDINGS}`")))?;
    let (hidden, heads) = (metadata.needed("embedding_length")?, metadata.needed("attention.head_count")?);
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    set("model_type", json!(architecture.family));
    set("vocab_size", json!(vocabulary));
    set("hidden_size", json!(hidden));
    set("num_hidden_layers", json!(metadata.needed("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(metadata.count("attention.head_count_kv")?.unwrap_or(heads)));
    set("intermediate_size", json!(metadata.needed("feed_forward_length")?));
    set("max_position_embeddings", json!(metadata.needed("context_length")?));
    set("tie_word_embeddings", json!(!metadata.has_tensor("output.weight")));
    set("head_dim", json!(head_dim(metadata)?));
    if let Some(eps) = metadata.number("attention.layer_norm_rms_epsilon")? {
        set("rms_norm_eps", json!(eps));
    }
    if let Some(eps) = metadata.number("attention.layer_norm_epsilon")? {
        // GPT-NeoX, and the others.
        set("layer_norm_eps", json!(eps));
        set("layer_norm_epsilon", json!(eps));
    }
    set("bos_token_id", json!(metadata.token("tokenizer.ggml.bos_token_id")?));
    let ends = ["eos", "eot", "eom"].map(|end| metadata.token(&format!("tokenizer.ggml.{end}_token_id")));
    let mut all = Vec::new();
    for end in ends {
        all.extend(end?.filter(|end| !all.contains(end)));
    }
    set("eos_token_id", json!(all));
    rope::add(metadata, &mut config)?;
    let window = metadata.count("attention.sliding_window")?.filter(|window| *window > 0);
    if let Some(window) = window.filter(|_| !architecture.windows) {
        let (key, remedy) = (metadata.own("attention.sliding_window"), "use a model without windows");
        return Err(metadata.unsupported(&key, window.to_string(), remedy));
    }
    if architecture.windows {
        config.insert("sliding_window".to_owned(), json!(window));
    }
    (architecture.add)(metadata, &mut config)?;
    Ok(Value::Object(config))
}

/// Width of a head.
fn head_dim(metadata: &Metadata<'_>) -> Result<u64, CheckpointError> {
    let (keys, values) = (metadata.count("attention.key_length")?, metadata.count("attention.value_length")?);
    if let (Some(keys), Some(values)) = (keys, values)
        && keys != values
    {
        let key = metadata.own("attention.value_length");
        return Err(metadata.unsupported(&key, values.to_string(), "use a model whose keys and values are as wide"));
    }
    let (hidden, heads) = (metadata.needed("embedding_length")?, metadata.needed("attention.head_count")?);
    let whole = || hidden.checked_div(heads).filter(|dim| dim.checked_mul(heads) == Some(hidden));
    keys.or_else(whole).ok_or_else(|| {
        let [key, of] = [metadata.own("attention.head_count"), metadata.own("embedding_length")];
        metadata.wrong(format!("`{key}` = {heads} does not divide `{of}` = {hidden}"))
    })
}

type Add = Result<(), CheckpointError>;

fn set(config: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    config.insert(key.to_owned(), value.into());
}

fn attention_bias(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    let biases = ["blk.0.attn_q.bias", "blk.0.attn_qkv.bias"];
    set(config, "attention_bias", biases.iter().any(|name| metadata.has_tensor(name)));
    Ok(())
}

fn llama(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    if metadata.count("expert_count")?.is_some_and(|count| count > 0) {
        set(config, "model_type", "mixtral");
        // Null is none; a missing one is not.
        set(config, "sliding_window", Value::Null);
        return experts(metadata, config, "num_local_experts");
    }
    set(config, "mlp_bias", metadata.has_tensor("blk.0.ffn_down.bias"));
    attention_bias(metadata, config)
}

/// How many experts there are, and how many are used.
fn experts(metadata: &Metadata<'_>, config: &mut Map<String, Value>, key: &str) -> Add {
    const GATING: &str = "expert_gating_func";
    if let Some(function) = metadata.count(GATING)?.filter(|function| ![0, 1].contains(function)) {
        let remedy = "use a model whose router has a softmax";
        return Err(metadata.unsupported(&metadata.own(GATING), function.to_string(), remedy));
    }
    set(config, key, metadata.needed("expert_count")?);
    set(config, "num_experts_per_tok", metadata.needed("expert_used_count")?);
    Ok(())
}

fn qwen2_moe(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    const SHARED: &str = "blk.0.ffn_gate_shexp.weight";
    // Old files have only the tensor.
    let width = match metadata.count("expert_shared_feed_forward_length")? {
        Some(width) => width,
        None => metadata.tensor(SHARED).map_or(0, |(_, tensor)| tensor.shape[0] as u64),
    };
    set(config, "shared_expert_intermediate_size", width);
    qwen_experts(metadata, config, false)
}

fn qwen3_moe(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    attention_bias(metadata, config)?;
    qwen_experts(metadata, config, true)
}

fn qwen_experts(metadata: &Metadata<'_>, config: &mut Map<String, Value>, normed: bool) -> Add {
    experts(metadata, config, "num_experts")?;
    let blocks = metadata.needed("block_count")?.min(MAX_BLOCKS);
    let dense: Vec<u64> =
        (0..blocks).filter(|block| !metadata.has_tensor(&format!("blk.{block}.ffn_gate_inp.weight"))).collect();
    let first = (0..blocks).find_map(|block| metadata.tensor(&format!("blk.{block}.ffn_gate_exps.weight")));
    let width = match metadata.count("expert_feed_forward_length")? {
        Some(width) => Some(width),
        None => first.and_then(|(_, tensor)| tensor.shape.get(1)).map(|width| *width as u64),
    };
    set(config, "moe_intermediate_size", width);
    set(config, "mlp_only_layers", dense);
    set(config, "norm_topk_prob", normed);
    Ok(())
}

/// What scores are divided by the root of: llama.cpp knows the largest models by their depth.
fn gemma_scalar(metadata: &Metadata<'_>, config: &mut Map<String, Value>, deepest: u64) -> Add {
    let (hidden, heads) = (metadata.needed("embedding_length")?, metadata.needed("attention.head_count")?);
    let largest = metadata.needed("block_count")? == deepest;
    let scalar = hidden.checked_div(heads).filter(|_| largest);
    set(config, "query_pre_attn_scalar", scalar.map_or_else(|| head_dim(metadata), Ok)?);
    Ok(())
}

fn soft_cap(metadata: &Metadata<'_>, config: &mut Map<String, Value>, key: &str, own: &str) -> Add {
    set(config, key, metadata.number(own)?.filter(|cap| *cap > 0.0));
    Ok(())
}

fn gemma2(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    gemma_scalar(metadata, config, 46)?;
    if !metadata.has(&metadata.own("attention.sliding_window")) {
        set(config, "sliding_window", 4096);
    }
    for (key, own, usual) in [
        ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", "final_logit_softcapping", 30.0),
    ] {
        // The first files had no caps.
        set(config, key, metadata.number(own)?.unwrap_or(usual));
    }
    Ok(())
}

fn gemma3(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    gemma_scalar(metadata, config, 62)?;
    set(config, "rope_local_base_freq", metadata.number("rope.freq_base_swa")?.unwrap_or(10_000.0));
    layer_types(metadata, config, 6)?;
    soft_cap(metadata, config, "final_logit_softcapping", "final_logit_softcapping")
}

/// Which layers have a window: as a list says, or all but every so manieth.
fn layer_types(metadata: &Metadata<'_>, config: &mut Map<String, Value>, usual: u64) -> Add {
    const KEY: &str = "attention.sliding_window_pattern";
    let key = metadata.own(KEY);
    let blocks = metadata.needed("block_count")?.min(MAX_BLOCKS);
    let mut slides = Vec::new();
    match metadata.list(&key) {
        Ok(Some(list)) if list.len() as u64 == blocks => {
            for value in metadata.values(list) {
                slides.push(matches!(value?, super::value::Value::Flag(true)));
            }
        }
        Ok(Some(_)) => return Err(metadata.wrong(format!("`{key}` is not of as many blocks as there are"))),
        // A number.
        _ => {
            let every = metadata.count(KEY)?.unwrap_or(usual).max(1);
            slides.extend((1..=blocks).map(|block| block % every != 0));
        }
    }
    let named = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
    set(config, "layer_types", slides.iter().map(named).collect::<Vec<_>>());
    Ok(())
}

fn phi3(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    rope::part(metadata, config, "partial_rotary_factor")
}

fn gpt_neox(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    let parallel = metadata.flag(&metadata.own("use_parallel_residual"))?.unwrap_or(true);
    set(config, "use_parallel_residual", parallel);
    set(config, "attention_bias", metadata.has_tensor("blk.0.attn_qkv.bias"));
    rope::part(metadata, config, "rotary_pct")
}

/// llama.cpp has the families of 7B, of 40B and of 11B, which are told apart by their key heads and norms.
fn falcon(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    let two_norms = metadata.has_tensor("blk.0.attn_norm_2.weight");
    let one_key_head = metadata.count("attention.head_count_kv")?.is_none_or(|heads| heads == 1) && !two_norms;
    const BASE: &str = "rope.freq_base";
    if !two_norms && !one_key_head && !metadata.has(&metadata.own(BASE)) {
        // Falcon2-11B has another base than the others, which llama.cpp's converter does not write.
        let remedy = "use the model in Hugging Face's layout";
        return Err(metadata.unsupported(
            &metadata.own(BASE),
            "missing in a Falcon with one norm and several key heads",
            remedy,
        ));
    }
    set(config, "new_decoder_architecture", !one_key_head);
    set(config, "multi_query", one_key_head);
    set(config, "parallel_attn", true);
    set(config, "alibi", false);
    set(config, "bias", metadata.has_tensor("blk.0.attn_qkv.bias"));
    set(config, "num_ln_in_parallel_attn", if two_norms { 2 } else { 1 });
    set(config, "num_kv_heads", metadata.count("attention.head_count_kv")?.unwrap_or(1));
    // What is written for all of Falcon is four times the width, whatever the model has.
    let up = metadata.tensor("blk.0.ffn_up.weight").and_then(|(_, tensor)| tensor.shape.first());
    set(config, "ffn_hidden_size", up.map_or(metadata.needed("feed_forward_length")?, |rows| *rows as u64));
    Ok(())
}

fn smollm3(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    // In llama.cpp's source: every fourth layer does not rotate, and none has a window.
    set(config, "no_rope_layer_interval", 4);
    set(config, "use_sliding_window", false);
    set(config, "mlp_bias", metadata.has_tensor("blk.0.ffn_down.bias"));
    attention_bias(metadata, config)
}

fn glm4(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    const SECTIONS: &str = "rope.dimension_sections";
    if metadata.has(&metadata.own(SECTIONS)) {
        let remedy = "use a model of texts alone";
        return Err(metadata.unsupported(&metadata.own(SECTIONS), "positions of images", remedy));
    }
    attention_bias(metadata, config)?;
    rope::part(metadata, config, "partial_rotary_factor")
}

fn gpt_oss(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Add {
    let width = metadata.count("expert_feed_forward_length")?;
    if let Some(width) = width {
        set(config, "intermediate_size", width);
    }
    layer_types(metadata, config, 2)?;
    experts(metadata, config, "num_local_experts")
}
