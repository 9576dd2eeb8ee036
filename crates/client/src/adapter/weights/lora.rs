//! What PEFT's configuration says of low-rank tables (`peft/tuners/lora/config.py`, 0.8 to 0.17).

use std::path::Path;

use serde_json::Value;

use crate::adapter::AdapterError;

/// Starts of low-rank tables that change the weights which they are beside.
const CHANGING_STARTS: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

/// What a configuration says of low-rank tables.
#[derive(Debug)]
pub(super) struct Lora {
    alpha: f64,
    /// By module, where it is another one.
    alphas: Vec<(String, f64)>,
    /// Whether products are divided by the root of the rank (rslora, Kalajdzievski 2023).
    rooted: bool,
}

impl Lora {
    /// What products of this rank are multiplied with.
    pub(super) fn scale(&self, rank: usize) -> f32 {
        self.over(self.alpha, rank)
    }

    /// The same for one matrix, by its path in the model.
    pub(super) fn scale_of(&self, path: &str, rank: usize) -> f32 {
        let is = |key: &str| path == key || path.strip_suffix(key).is_some_and(|front| front.ends_with('.'));
        let own = self.alphas.iter().find(|(key, _)| is(key)).map(|(_, alpha)| *alpha);
        self.over(own.unwrap_or(self.alpha), rank)
    }

    fn over(&self, alpha: f64, rank: usize) -> f32 {
        let rank = rank.max(1) as f64;
        (alpha / if self.rooted { rank.sqrt() } else { rank }) as f32
    }
}

/// What the configuration in `directory` says of low-rank tables.
///
/// # Errors
/// [`AdapterError::PeftConfig`] for what other implementations of LoRA have and this one does not.
pub(super) fn read(config: &Value, directory: &Path) -> Result<Lora, AdapterError> {
    let wrong = |key, value: &Value, problem: &str| {
        let (value, problem) = (value.to_string(), problem.to_owned());
        Err(AdapterError::PeftConfig { path: directory.to_owned(), key, value, problem })
    };
    if config.is_null() {
        return wrong(
            "lora_alpha",
            config,
            "there is no such file, and nothing else says how the low-rank tables are scaled",
        );
    }
    let given = |key: &str| config.get(key).filter(|value| !value.is_null());
    for (key, problem) in [
        ("use_dora", "weights that are normed (DoRA) cannot be used"),
        ("lora_bias", "low-rank tables with a bias cannot be used"),
        ("layer_replication", "blocks that occur several times cannot be used"),
        ("use_qalora", "low-rank tables of groups (QALoRA) cannot be used"),
    ] {
        if let Some(value) = given(key).filter(|value| **value != Value::Bool(false)) {
            return wrong(key, value, problem);
        }
    }
    if let Some(bias) = given("bias").filter(|bias| bias.as_str() != Some("none")) {
        return wrong("bias", bias, "biases are frozen here: only `none` can be used");
    }
    let start = given("init_lora_weights");
    if let Some(start) = start.filter(|start| {
        start.as_str().is_some_and(|name| CHANGING_STARTS.iter().any(|changing| name.starts_with(changing)))
    }) {
        return wrong(
            "init_lora_weights",
            start,
            "the base's weights were changed with it: convert it to ordinary LoRA",
        );
    }
    // As f32, in which tables are scaled.
    let finite = |alpha: &f64| (*alpha as f32).is_finite();
    let alpha = given("lora_alpha").map_or(Some(8.0), Value::as_f64).filter(finite);
    let Some(alpha) = alpha.filter(|alpha| *alpha as f32 != 0.0) else {
        return wrong("lora_alpha", &config["lora_alpha"], "it must be a number other than 0");
    };
    let mut alphas = Vec::new();
    if let Some(pattern) = given("alpha_pattern") {
        let entries = pattern.as_object().map(|entries| entries.iter().collect::<Vec<_>>()).unwrap_or_default();
        for (key, value) in entries {
            let is_name = key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
            match value.as_f64().filter(finite).filter(|_| is_name) {
                Some(own) => alphas.push((key.clone(), own)),
                None => return wrong("alpha_pattern", pattern, "only names of modules with numbers can be used"),
            }
        }
    }
    let rooted = given("use_rslora").and_then(Value::as_bool).unwrap_or(false);
    Ok(Lora { alpha, alphas, rooted })
}
