//! The files of Hugging Face PEFT: `adapter_config.json` and the card.
//!
//! Keys as PEFT 0.8 to 0.17 write them for `PROMPT_TUNING` (`peft/config.py`, `peft/tuners/prompt_tuning/config.py`).

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::names::{Task, TuningMode};
use super::tensor_file::TensorFileError;
use super::{AdaptedModel, AdapterError, AdapterManifest};

/// Name of PEFT's configuration file.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// Our type for deep prompts. PEFT has none, and refuses to load what it does not know.
const DEEP_TYPE: &str = "PETALS_DEEP_PROMPT_TUNING";
/// Types whose tensor `prompt_embeddings` is all that matters at inference.
const KNOWN_TYPES: [&str; 3] = ["PROMPT_TUNING", "P_TUNING", DEEP_TYPE];

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

/// Refuses adapters whose configuration says that they are something else than a prompt table.
pub(super) fn check_type(directory: &Path) -> Result<(), AdapterError> {
    let path = directory.join(CONFIG_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(TensorFileError::Read { path, source }.into()),
    };
    let malformed = |source| AdapterError::Json { what: CONFIG_FILE, path: directory.to_owned(), source };
    let config: Value = serde_json::from_str(&text).map_err(malformed)?;
    match config.get("peft_type").and_then(Value::as_str) {
        Some(unknown) if !KNOWN_TYPES.contains(&unknown) => Err(AdapterError::PeftType(unknown.to_owned())),
        _ => Ok(()),
    }
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
