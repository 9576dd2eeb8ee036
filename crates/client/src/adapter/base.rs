//! The model that an adapter was made for, by its name. Prompts mean something to one model only, and nothing but names tells models of one
//! shape apart: a fingerprint says nothing of the weights' values, and PEFT keeps only where the model was.

use serde_json::Value;

use super::manifest::AdapterManifest;
use super::tensor_file::TensorFileError;
use super::{AdaptedModel, AdapterError};

/// The name of the model that an adapter was made for, if it is another one than that of the model at hand. Names are compared as far as
/// they can be the same on two machines: without the folders or the organisation in front, whatever their case.
pub(super) fn other(manifest: Option<&AdapterManifest>, config: &Value, model: &AdaptedModel) -> Option<String> {
    let trained = manifest.and_then(|manifest| manifest.model.as_ref());
    let base = match trained {
        Some(id) => id.name(),
        None => config.get("base_model_name_or_path").and_then(Value::as_str)?,
    };
    let name = last(base);
    let is = |other: &str| last(other).eq_ignore_ascii_case(name);
    let same = name.is_empty() || is(model.id.name()) || is(&model.name_or_path);
    (!same).then(|| base.to_owned())
}

/// The name of a model on Hugging Face's hub, as far as it is known: with its organisation where the name in the swarm or a folder of the hub's
/// cache has it.
pub(super) fn hub_name(model: &AdaptedModel) -> String {
    let name = model.id.name();
    let folders = model.name_or_path.split(['/', '\\']);
    let cached = folders.filter_map(|folder| folder.strip_prefix("models--")).find_map(|found| found.split_once("--"));
    match cached {
        Some((organisation, model)) if !name.contains('/') && model.eq_ignore_ascii_case(last(name)) => {
            format!("{organisation}/{model}")
        }
        _ => name.to_owned(),
    }
}

/// Where PEFT finds the model: its directory, or the name of one in the hub's cache, which other machines know too.
pub(super) fn loadable(model: &AdaptedModel) -> String {
    let mut folders = model.name_or_path.rsplit('/').skip(1);
    let repository = match (folders.next(), folders.next()) {
        (Some("snapshots"), Some(folder)) => folder.strip_prefix("models--"),
        _ => None,
    };
    match repository {
        Some(repository) if !repository.is_empty() => repository.replacen("--", "/", 1),
        _ => model.name_or_path.clone(),
    }
}

/// The part of a name or path that is a model's own: the last one, but for revisions in Hugging Face's cache.
fn last(path: &str) -> &str {
    let mut parts = path.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".").rev();
    let last = parts.next().unwrap_or_default();
    match (parts.next(), parts.next().and_then(|folder| folder.strip_prefix("models--"))) {
        (Some("snapshots"), Some(repository)) => repository.rsplit("--").next().unwrap_or(repository),
        _ => last,
    }
}

/// An error of tables, as that of an adapter of another model if it is one.
pub(super) fn explained(error: AdapterError, base: Option<&String>, model: &AdaptedModel) -> AdapterError {
    match (error, base) {
        (AdapterError::Tensors(source @ TensorFileError::Shape { .. }), Some(base)) => {
            let (base, model) = (base.clone(), model.id.name().to_owned());
            AdapterError::OtherBase { base, model, source: Box::new(source) }
        }
        (error, _) => error,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::adapter::tests::named;

    fn other_than(name: &str, path: &str, base: &str) -> Option<String> {
        other(None, &json!({"base_model_name_or_path": base}), &named(name, path))
    }

    #[test]
    fn peft_is_told_where_every_machine_finds_the_model() {
        let at = |path: &str| loadable(&named("org/tiny", path));
        assert_eq!(at("/home/me/hub/models--org--tiny/snapshots/0123"), "org/tiny");
        assert_eq!(at("/models/tiny"), "/models/tiny");
        assert_eq!(at("models--org--tiny"), "models--org--tiny");
    }

    #[test]
    fn names_are_the_same_wherever_the_model_lies() {
        let same = [
            "org/Llama-3.2-1B",
            "/home/someone/models/llama-3.2-1b/",
            "C:\\models\\Llama-3.2-1B",
            "./Llama-3.2-1B",
            "/cache/hub/models--org--Llama-3.2-1B/snapshots/0123abcd",
            "",
        ];
        for base in same {
            assert_eq!(other_than("Llama-3.2-1B", "/data/Llama-3.2-1B", base), None, "{base}");
        }
        assert_eq!(other_than("served-name", "models/Llama-3.2-1B/", "org/Llama-3.2-1B"), None, "--model-name");
        let snapshot = "/c/models--org--Llama-3.2-1B/snapshots/ff00";
        assert_eq!(other_than("org/Llama-3.2-1B", snapshot, "Llama-3.2-1B"), None);
    }

    #[test]
    fn another_model_is_named() {
        for base in ["org/Llama-3.2-1B-Instruct", "/m/models--org--other/snapshots/ff00", "Llama-3.2"] {
            assert_eq!(other_than("Llama-3.2-1B", "/data/Llama-3.2-1B", base).as_deref(), Some(base));
        }
    }
}
