//! Sampling against the distributions that transformers draws from.

use std::collections::BTreeMap;

use anyhow::Context;
use petals_client::{Sampler, Sampling};
use petals_e2e::Goldens;
use serde_json::Value;

const DRAWS: usize = 10_000;

struct Case {
    name: String,
    sampling: Sampling,
    logits: Vec<f32>,
    text: Vec<u32>,
    probabilities: BTreeMap<u32, f64>,
}

fn cases() -> anyhow::Result<Vec<Case>> {
    let golden: Value = serde_json::from_slice(&std::fs::read(Goldens::data("sampling.json"))?)?;
    let floats = |value: &Value| -> Vec<f32> {
        value.as_array().into_iter().flatten().filter_map(Value::as_f64).map(|number| number as f32).collect()
    };
    let cases = golden["cases"].as_array().context("no cases")?.iter().map(|case| {
        let options = &case["options"];
        let number = |name: &str, default: f32| options[name].as_f64().map_or(default, |number| number as f32);
        let pair = |pair: &Value| Some((pair[0].as_u64()? as u32, pair[1].as_f64()?));
        Case {
            name: format!("{options}, logits {}", case["logits"]),
            sampling: Sampling {
                temperature: number("temperature", 1.0),
                top_k: options["top_k"].as_u64().unwrap_or(0) as usize,
                top_p: number("top_p", 1.0),
                min_p: number("min_p", 0.0),
                repetition_penalty: number("repetition_penalty", 1.0),
                seed: 1,
                ..Sampling::default()
            },
            logits: floats(&golden["logits"][case["logits"].as_u64().unwrap_or(9) as usize]),
            text: floats(&golden["text"]).into_iter().map(|id| id as u32).collect(),
            probabilities: case["probabilities"].as_array().into_iter().flatten().filter_map(pair).collect(),
        }
    });
    Ok(cases.collect())
}

#[test]
fn distributions_equal_transformers() -> anyhow::Result<()> {
    for Case { name, sampling, logits, text, probabilities } in cases()? {
        let got: BTreeMap<u32, f64> = Sampler::new(sampling)?.distribution(&logits, &text).into_iter().collect();
        // In single precision the smallest probabilities are zeros.
        let missing: Vec<&u32> = probabilities.keys().filter(|token| !got.contains_key(token)).collect();
        assert!(missing.is_empty(), "{name}: {missing:?} are left out");
        for (token, p) in &got {
            let expected = probabilities.get(token).copied().unwrap_or(0.0);
            assert!((p - expected).abs() < 1e-5, "{name}: token {token} has {p}, not {expected}");
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_draws_pass_a_chi_square_test_against_transformers() -> anyhow::Result<()> {
    for Case { name, sampling, logits, text, probabilities } in cases()? {
        let mut sampler = Sampler::new(sampling)?;
        let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
        for _ in 0..DRAWS {
            *counts.entry(sampler.choose(&logits, &text).context("no token")?).or_default() += 1.0;
        }
        // Tokens that are expected less than five times count together.
        let (mut statistic, mut bins, mut rare) = (0.0, 0usize, (0.0, 0.0));
        let mut add = |expected: f64, seen: f64| {
            statistic += (seen - expected).powi(2) / expected;
            bins += 1;
        };
        for (token, p) in &probabilities {
            let (expected, seen) = (p * DRAWS as f64, counts.remove(token).unwrap_or_default());
            if expected >= 5.0 { add(expected, seen) } else { rare = (rare.0 + expected, rare.1 + seen) }
        }
        if rare.0 >= 5.0 {
            add(rare.0, rare.1);
        }
        assert!(counts.is_empty(), "{name}: {counts:?} cannot be drawn");
        // Wilson and Hilferty's approximation of the value that one in 10,000 right samplers exceeds.
        let freedom = bins.saturating_sub(1).max(1) as f64;
        let spread = 2.0 / (9.0 * freedom);
        let limit = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
        assert!(
            statistic < limit,
            "{name}: chi-square {statistic:.1} with {freedom} degrees of freedom, limit {limit:.1}"
        );
    }
    Ok(())
}
