//! The rotary embedding: what metadata and tensors say of it, as `config.json` has it.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::value::decimal;
use crate::checkpoint::CheckpointError;

/// Llama 3's scaling, of which a file has only the divisors that came of it: its models have these two, and one of those lengths.
const LOW_FACTOR: f64 = 1.0;
const HIGH_FACTOR: f64 = 4.0;
const ORIGINAL: [u64; 1] = [8192];
/// How far divisors may be from those of Llama 3: they are of single precision.
const TOLERANCE: f64 = 1e-5;

/// Adds base and scaling.
pub(super) fn add(metadata: &Metadata<'_>, config: &mut Map<String, Value>) -> Result<(), CheckpointError> {
    let theta = metadata.number("rope.freq_base")?.unwrap_or(10_000.0);
    config.insert("rope_theta".to_owned(), json!(theta));
    if let Some(scaling) = scaling(metadata, theta)? {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok(())
}

/// How much of a head is rotated, under `key`.
pub(super) fn part(metadata: &Metadata<'_>, config: &mut Map<String, Value>, key: &str) -> Result<(), CheckpointError> {
    let Some(dim) = metadata.count("rope.dimension_count")? else { return Ok(()) };
    let whole = config.get("head_dim").and_then(Value::as_u64).unwrap_or(dim);
    config.insert(key.to_owned(), json!(dim as f64 / whole.max(1) as f64));
    Ok(())
}

fn scaling(metadata: &Metadata<'_>, theta: f64) -> Result<Option<Value>, CheckpointError> {
    const TYPE: &str = "rope.scaling.type";
    let number = |key: &str| metadata.number(&format!("rope.scaling.{key}"));
    let original = metadata.count("rope.scaling.original_context_length")?;
    if let Some(divisors) = metadata.vector("rope_freqs.weight")? {
        return Ok(Some(divided(metadata, &divisors, theta)?));
    }
    if let (Some(short), Some(long)) =
        (metadata.vector("rope_factors_short.weight")?, metadata.vector("rope_factors_long.weight")?)
    {
        let numbers = |list: Vec<f32>| list.into_iter().map(decimal).collect::<Vec<_>>();
        let original = original.unwrap_or(metadata.needed("context_length")?);
        let (short, long) = (numbers(short), numbers(long));
        return Ok(Some(json!({
            "type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
        })));
    }
    let old = metadata.number("rope.scale_linear")?.filter(|factor| *factor != 1.0);
    match metadata.text(&metadata.own(TYPE))? {
        None => Ok(old.map(|factor| json!({"type": "linear", "factor": factor}))),
        Some("none") => Ok(None),
        // Without lists the original length holds for all.
        Some("longrope") => Ok(None),
        Some("linear") => Ok(number("factor")?.or(old).map(|factor| json!({"type": "linear", "factor": factor}))),
        Some("yarn") => {
            let mut scaling = Map::new();
            scaling.insert("type".to_owned(), json!("yarn"));
            let given = [
                ("factor", number("factor")?),
                ("original_max_position_embeddings", original.map(|original| original as f64)),
                ("beta_fast", number("yarn_beta_fast")?),
                ("beta_slow", number("yarn_beta_slow")?),
                ("attention_factor", number("yarn_attn_factor")?),
            ];
            for (key, value) in given {
                scaling.extend(value.map(|value| (key.to_owned(), json!(value))));
            }
            // llama.cpp rounds the bounds in all models, which gpt-oss does not.
            scaling.insert("truncate".to_owned(), json!(metadata.architecture() != "gpt-oss"));
            Ok(Some(Value::Object(scaling)))
        }
        Some(other) => {
            let remedy = "use a model with linear, yarn or longrope scaling, or without any";
            Err(metadata.unsupported(&metadata.own(TYPE), format!("`{other}`"), remedy))
        }
    }
}

/// The scaling that divides each pair's frequency by its own number: Llama 3's if it is that, so that the model is the same as the one whose
/// `config.json` says so.
fn divided(metadata: &Metadata<'_>, divisors: &[f32], theta: f64) -> Result<Value, CheckpointError> {
    let factor = divisors.iter().copied().map(decimal).fold(1.0, f64::max);
    let pairs = divisors.len() as f64;
    let context = metadata.needed("context_length")?;
    let given = metadata.count("rope.scaling.original_context_length")?;
    for original in given.into_iter().chain(ORIGINAL).chain([context]) {
        let is_llama3 = divisors.iter().enumerate().all(|(pair, divisor)| {
            let turns = original as f64 * theta.powf(-(pair as f64) / pairs) / TAU;
            let smooth = ((turns - LOW_FACTOR) / (HIGH_FACTOR - LOW_FACTOR)).clamp(0.0, 1.0);
            let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
            (f64::from(*divisor) / expected - 1.0).abs() < TOLERANCE
        });
        if is_llama3 {
            return Ok(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW_FACTOR,
                "high_freq_factor": HIGH_FACTOR,
                "original_max_position_embeddings": original,
            }));
        }
    }
    let divisors: Vec<f64> = divisors.iter().copied().map(decimal).collect();
    Ok(json!({
        "type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "original_max_position_embeddings": context,
        "attention_factor": 1.0,
    }))
}
