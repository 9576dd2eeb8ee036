//! What is where an adapter was looked for, and how it becomes one.

use std::path::Path;

use serde_json::Value;

use super::TENSORS_FILE;

/// The file that PEFT wrote before version 0.7: a pickle, which is a program and is never opened.
const PICKLE_FILE: &str = "adapter_model.bin";

/// What `directory`, which has no file of tables, has instead, and what to do. `config` is its `adapter_config.json`.
pub(super) fn found(directory: &Path, config: &Value) -> String {
    if directory.is_file() {
        return format!("it is a file; give the directory that has {TENSORS_FILE}");
    }
    if !directory.is_dir() {
        return "there is no such directory".to_owned();
    }
    if directory.join(PICKLE_FILE).is_file() {
        return format!(
            "it has only {PICKLE_FILE}, a pickle, which is a program and is not opened. Convert it where you trust it: {}",
            conversion(directory, config)
        );
    }
    let is_model = directory.join("config.json").is_file() || directory.join("model.safetensors").is_file();
    let instead = if is_model { "; it looks like a whole model, which goes to --model" } else { "" };
    format!("it has no {TENSORS_FILE}{instead}")
}

/// The command that converts a pickled adapter with PEFT.
fn conversion(directory: &Path, config: &Value) -> String {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let class = match text("task_type") {
        Some("SEQ_CLS") => "AutoModelForSequenceClassification",
        _ => "AutoModelForCausalLM",
    };
    let base = text("base_model_name_or_path").unwrap_or("BASE_MODEL");
    let directory = directory.display();
    format!(
        "python -c \"from peft import PeftModel; from transformers import {class} as M; \
         PeftModel.from_pretrained(M.from_pretrained('{base}'), '{directory}').save_pretrained('{directory}', \
         safe_serialization=True)\""
    )
}
