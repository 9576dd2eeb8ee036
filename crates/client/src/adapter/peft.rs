//! The file of Hugging Face PEFT: `adapter_config.json`.
//!
//! Keys as PEFT 0.8 to 0.17 write them (`peft/config.py`, and `config.py` of each folder in `peft/tuners`).

use std::fs;
use std::io;
use std::path::Path;

use petals_protocol::{Injection, Module, WeightChange};
use serde_json::{Map, Value, json};

use super::names::{PrefixMode, Task, TuningMode, WeightMode};
use super::tables::{PromptTables, TableShape};
use super::tensor_file::{TensorFileError, is_lfs_pointer};
use super::{AdaptedModel, AdapterError, AdapterManifest, base, weights};

/// Name of PEFT's configuration file.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// Our type for deep prompts. PEFT has none, and refuses to load what it does not know.
const DEEP_TYPE: &str = "PETALS_DEEP_PROMPT_TUNING";
/// Our type for something in front of the text together with changes of weights.
const MIXED_TYPE: &str = "PETALS_MIXED";
/// Types whose tensor `prompt_embeddings` is a prompt.
const PROMPT_TYPES: [&str; 3] = ["PROMPT_TUNING", "P_TUNING", DEEP_TYPE];
/// Keys and values in front of the text.
const PREFIX_TYPE: &str = "PREFIX_TUNING";
/// Types that can be used besides those.
const OTHER_TYPES: [&str; 4] = [PREFIX_TYPE, "LORA", "IA3", MIXED_TYPE];

/// What a table can be trained for here.
const KNOWN_TASKS: [&str; 2] = ["CAUSAL_LM", "SEQ_CLS"];

/// The configuration that makes PEFT load an adapter, and refuse by its type what PEFT does not have.
pub(super) fn config(manifest: &AdapterManifest, tables: &PromptTables, model: &AdaptedModel) -> Value {
    let shape = tables.shape();
    let (task_type, modules_to_save) = match manifest.task {
        Task::CausalLm => ("CAUSAL_LM", Value::Null),
        Task::SeqCls => ("SEQ_CLS", json!(["classifier", "score"])),
    };
    let mut config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base::loadable(model),
        "inference_mode": true,
        "modules_to_save": modules_to_save,
        "peft_type": kind(shape),
        "revision": null,
        "task_type": task_type,
    });
    let mut add = |more: Value| {
        if let (Value::Object(all), Value::Object(more)) = (&mut config, more) {
            all.extend(more);
        }
    };
    if shape.prefix_len > 0 {
        let keys_values = shape.injection == Injection::KeysValues;
        let (heads, width) = keys(kind(shape), model);
        add(json!({
            "num_attention_heads": if keys_values { heads } else { model.attention_heads },
            "num_layers": model.blocks,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": manifest.prefix_len,
            "token_dim": if keys_values { width } else { model.widths.hidden },
        }));
        add(if keys_values {
            json!({"encoder_hidden_size": width, "prefix_projection": false})
        } else {
            json!({"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null, "tokenizer_name_or_path": null})
        });
    }
    match shape.weights {
        WeightChange::None => {}
        WeightChange::LowRank { rank, modules } => {
            let (mut targets, mut ranks, mut alphas) = (Vec::new(), Map::new(), Map::new());
            let alpha = |rank: u32| f64::from(shape.scale) * f64::from(rank);
            for own in weights::of(&model.projections, modules) {
                let name = own.0.name();
                targets.push(name);
                // Products are multiplied with alpha over the rank, which is the same for all of them.
                let times = weights::stored_times(tables, own);
                if times != 1 {
                    ranks.insert(name.to_owned(), json!(times * rank));
                    alphas.insert(name.to_owned(), json!(alpha(times * rank)));
                }
            }
            add(json!({
                "alpha_pattern": alphas, "bias": "none", "fan_in_fan_out": false, "init_lora_weights": true,
                "layers_pattern": null, "layers_to_transform": null, "lora_alpha": alpha(rank),
                "lora_dropout": 0.0, "r": rank, "rank_pattern": ranks,
                "target_modules": targets, "use_dora": false, "use_rslora": false,
            }));
        }
        WeightChange::Scales { modules } => {
            let (mut targets, mut feedforward) = (Vec::new(), Vec::new());
            for (projection, own) in weights::of(&model.projections, modules) {
                targets.push(projection.name());
                feedforward.extend(own.contains(Module::Down).then(|| projection.name()));
            }
            add(json!({
                "fan_in_fan_out": false, "feedforward_modules": feedforward, "init_ia3_weights": true,
                "target_modules": targets,
            }));
        }
    }
    config
}

/// Heads of the keys in a table of this type, and their width together.
fn keys(kind: &str, model: &AdaptedModel) -> (usize, usize) {
    let repeats = if kind == PREFIX_TYPE { model.repeats() } else { 1 };
    (model.key_heads * repeats, model.widths.key * repeats)
}

/// The type of these tables.
pub(super) fn kind(shape: &TableShape) -> &'static str {
    let TuningMode { prefix, weights } = shape.mode();
    match (prefix, weights) {
        (Some(PrefixMode::Ptune) | None, None) => "PROMPT_TUNING",
        (Some(PrefixMode::DeepPtune), None) => DEEP_TYPE,
        (Some(PrefixMode::Prefix), None) => PREFIX_TYPE,
        (None, Some(WeightMode::Lora)) => "LORA",
        (None, Some(WeightMode::Ia3)) => "IA3",
        (Some(_), Some(_)) => MIXED_TYPE,
    }
}

/// Whether what is in front of the text are keys and values.
pub(super) fn has_keys_values(config: &Value) -> bool {
    match config.get("peft_type").and_then(Value::as_str) {
        Some(PREFIX_TYPE) => true,
        Some(MIXED_TYPE) => config.get("prefix_projection").is_some(),
        _ => false,
    }
}

/// The configuration in an adapter's directory; null if there is none.
pub(super) fn read(directory: &Path) -> Result<Value, AdapterError> {
    let path = directory.join(CONFIG_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        // A path of which a part is no directory has no such file either.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Value::Null);
        }
        Err(source) => return Err(TensorFileError::Read { path, source }.into()),
    };
    if is_lfs_pointer(text.as_bytes()) {
        return Err(TensorFileError::LfsPointer { path }.into());
    }
    let malformed = |source| AdapterError::Json { what: CONFIG_FILE, path: directory.to_owned(), source };
    serde_json::from_str(&text).map_err(malformed)
}

/// Refuses adapters whose configuration says that they are something else than a prompt table, or of another model. PEFT
/// keeps no identity of the model: `base_model_name_or_path` is where it was on some machine. Its extents are kept.
pub(super) fn check(config: &Value, directory: &Path, model: &AdaptedModel) -> Result<(), AdapterError> {
    match config.get("peft_type").and_then(Value::as_str) {
        Some(unknown) if !PROMPT_TYPES.contains(&unknown) && !OTHER_TYPES.contains(&unknown) => {
            return Err(AdapterError::PeftType(unknown.to_owned()));
        }
        _ => {}
    }
    let wrong = |key, value: String, problem: String| {
        Err(AdapterError::PeftConfig { path: directory.to_owned(), key, value, problem })
    };
    if let Some(task) = config.get("task_type").and_then(Value::as_str).filter(|task| !KNOWN_TASKS.contains(task)) {
        return wrong("task_type", task.to_owned(), "only CAUSAL_LM and SEQ_CLS can be used".to_owned());
    }
    let number = |key| config.get(key).and_then(Value::as_u64);
    if let Some(submodules) = number("num_transformer_submodules").filter(|&submodules| submodules > 1) {
        let problem = "it is of a model with an encoder and a decoder, which have a table each".to_owned();
        return wrong("num_transformer_submodules", submodules.to_string(), problem);
    }
    if let Some(value) = config.get("fan_in_fan_out").filter(|value| !value.is_null() && **value != Value::Bool(false))
    {
        let problem = "it is of a model that keeps its matrices the other way round, and none of those runs here";
        return wrong("fan_in_fan_out", value.to_string(), problem.to_owned());
    }
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or_default();
    let (width, wide) = if has_keys_values(config) {
        ("width of cached keys", keys(kind, model).1)
    } else {
        ("width", model.widths.hidden)
    };
    for (key, what, ours) in [("token_dim", width, wide), ("num_layers", "number of blocks", model.blocks)] {
        if let Some(theirs) = number(key).filter(|&theirs| theirs != ours as u64) {
            let base = config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or("another model");
            let problem = format!("it was trained on {base}, the model given has a {what} of {ours}");
            return wrong(key, theirs.to_string(), problem);
        }
    }
    Ok(())
}

/// Refuses a configuration that is not that of the tables beside it.
pub(super) fn check_tables(config: &Value, directory: &Path, shape: &TableShape) -> Result<(), AdapterError> {
    let wrong = |key, value: String, problem: String| {
        Err(AdapterError::PeftConfig { path: directory.to_owned(), key, value, problem })
    };
    let rows = shape.prefix_len;
    if let Some(tokens) = config.get("num_virtual_tokens").and_then(Value::as_u64).filter(|&n| n != rows as u64) {
        let problem = format!("the table beside it has {rows} rows, so the two files are of different adapters");
        return wrong("num_virtual_tokens", tokens.to_string(), problem);
    }
    if config.get("task_type").and_then(Value::as_str) == Some("SEQ_CLS") && shape.labels.is_none() {
        let problem = "the tables beside it have no score head: save it with modules_to_save".to_owned();
        return wrong("task_type", "SEQ_CLS".to_owned(), problem);
    }
    Ok(())
}
