//! What lies in a directory that is no checkpoint, and what to do about it.

use std::path::Path;

use super::CheckpointError;

/// Files of a directory that are looked at.
const LISTED: usize = 10_000;

const REPOSITORY: &str =
    "download the model in Hugging Face's layout: config.json, tokenizer.json and its safetensors with their index";
const CONVERT: &str = "convert them where you trust their source: python3 -c \"from transformers import AutoModelForCausalLM as M; \
                       M.from_pretrained('DIR', dtype='auto').save_pretrained('NEW_DIR')\"";

/// What the name of a file tells of a directory.
struct Sign {
    is: fn(&str) -> bool,
    what: &'static str,
    remedy: &'static str,
}

/// The first one that fits counts.
const SIGNS: [Sign; 8] = [
    Sign {
        is: |name| name == "adapter_config.json",
        what: "that is an adapter",
        remedy: "give the model that it was made for, which `base_model_name_or_path` in adapter_config.json names",
    },
    Sign {
        is: |name| name == "snapshots",
        what: "that is a folder of Hugging Face's cache",
        remedy: "give the folder of a revision in it",
    },
    Sign {
        is: |name| [".incomplete", ".part", ".crdownload", ".aria2"].iter().any(|end| name.ends_with(end)),
        what: "that is a download which has not ended",
        remedy: "download the model again",
    },
    Sign {
        is: |name| name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors"),
        what: "that is a part of the weights without the index of all",
        remedy: "download model.safetensors.index.json from the same place",
    },
    Sign {
        is: |name| name.starts_with("pytorch_model") && (name.ends_with(".bin") || name.ends_with(".bin.index.json")),
        what: "those are weights as pickles, which are not read, since reading them runs what is in them",
        remedy: CONVERT,
    },
    Sign {
        is: |name| name.starts_with("consolidated.") || name == "params.json",
        what: "that is the layout of the makers' own programs",
        remedy: REPOSITORY,
    },
    Sign {
        is: |name| name.to_ascii_lowercase().ends_with(".gguf"),
        what: "a model in GGUF is a file",
        remedy: "give --model that file itself, the first one of several",
    },
    Sign {
        is: |name| name.ends_with(".safetensors"),
        what: "which is not the name that weights have",
        remedy: "rename it to model.safetensors if it has all weights of the model",
    },
];

/// Looks for what there is in the place of `wanted`, one of which a checkpoint must have.
pub(super) fn instead(dir: &Path, wanted: &[&str]) -> CheckpointError {
    let incomplete = |missing, remedy: &str| CheckpointError::Incomplete {
        path: dir.to_owned(),
        missing,
        remedy: remedy.to_owned(),
    };
    let without = match wanted {
        [one] => format!("no {one}"),
        several => format!("neither {}", several.join(" nor ")),
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().take(LISTED).flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    for name in &names {
        if wanted.contains(&name.as_str()) {
            let missing = format!("{without}: `{name}` is a link to a file that is not there");
            return incomplete(missing, "download the model again, or copy it with what its links lead to");
        }
        if let Some(wanted) = wanted.iter().find(|wanted| wanted.eq_ignore_ascii_case(name)) {
            return incomplete(format!("{without}, but `{name}`"), &format!("rename it to {wanted}"));
        }
    }
    for sign in &SIGNS {
        if let Some(name) = names.iter().find(|name| (sign.is)(name)) {
            return incomplete(format!("{without}, but `{}`: {}", name.escape_debug(), sign.what), sign.remedy);
        }
    }
    incomplete(without, "give --model the directory with config.json and the safetensors, or a GGUF")
}
