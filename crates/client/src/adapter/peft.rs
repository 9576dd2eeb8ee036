//! The files of Hugging Face PEFT: `adapter_config.json` and the card.
//!
//! Keys as PEFT 0.8 to 0.17 write them for `PROMPT_TUNING` (`peft/config.py`, `peft/tuners/prompt_tuning/config.py`).

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::names::{Task, TuningMode};
use super::tables::TableShape;
use super::tensor_file::{TensorFileError, is_lfs_pointer};
use super::{AdaptedModel, AdapterError, AdapterManifest};

/// Name of PEFT's configuration file.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// Our type for deep prompts. PEFT has none, and refuses to load what it does not know.
const DEEP_TYPE: &str = "PETALS_DEEP_PROMPT_TUNING";
/// Types whose tensor `prompt_embeddings` is all that matters at inference.
const KNOWN_TYPES: [&str; 3] = ["PROMPT_TUNING", "P_TUNING", DEEP_TYPE];

/// What a prompt table can be trained for here.
const KNOWN_TASKS: [&str; 2] = ["CAUSAL_LM", "SEQ_CLS"];

/// The configuration that makes PEFT load a `ptune` adapter, and refuse a deep one by its type.
pub(super) fn config(manifest: &AdapterManifest, model: &AdaptedModel) -> Value {
    let (task_type, modules_to_save) = match manifest.task {
        Task::CausalLm => ("CAUSAL_LM", Value::Null),
        Task::SeqCls => ("SEQ_CLS", json!(["classifier", "score"])),
    };
    let peft_type = if manifest.mode == TuningMode::Ptune { "PROMPT_TUNING" } else { DEEP_TYPE };
    json!({
        "auto_mapping": null,
        "base_model_name_or_path": model.name_or_path,
        "inference_mode": true,
        "modules_to_save": modules_to_save,
        "num_attention_heads": model.attention_heads,
        "num_layers": model.blocks,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": manifest.prefix_len,
        "peft_type": peft_type,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": null,
        "revision": null,
        "task_type": task_type,
        "token_dim": model.hidden,
        "tokenizer_name_or_path": null,
    })
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
        Some(unknown) if !KNOWN_TYPES.contains(&unknown) => return Err(AdapterError::PeftType(unknown.to_owned())),
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
    for (key, what, ours) in [("token_dim", "width", model.hidden), ("num_layers", "number of blocks", model.blocks)] {
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

/// A short model card.
pub(super) fn card(manifest: &AdapterManifest, model: &AdaptedModel) -> String {
    let AdapterManifest { mode, prefix_len, task, step, .. } = manifest;
    let name = model.id.name();
    let use_with = match mode {
        TuningMode::Ptune => "It is a PEFT `PROMPT_TUNING` adapter and loads with `PeftModel.from_pretrained`.",
        TuningMode::DeepPtune => "Its deep prompts have no PEFT counterpart; use it with `petals-tune`.",
    };
    format!(
        "---\nlibrary_name: peft\n---\n\n# Prompt adapter for {name}\n\n\
         {prefix_len} trained prompt vectors (`{mode}`) for `{task}`, after {step} steps. {use_with}\n\n\
         `petals_adapter.json` says exactly what the tables in `adapter_model.safetensors` are.\n"
    )
}
