//! `/v1/embeddings`: texts as vectors.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::app::{App, blocking};
use super::error::ApiError;
use super::fields::Fields;
use super::models::ServedModel;
use super::prompts::{Prompt, prompts};

/// Most texts of a request, as with OpenAI.
const TEXTS: usize = 2048;
/// Tokens that go through the swarm at a time; a longer text goes alone.
const TOKENS: usize = 1024;

/// How a text's hidden states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// That of the last token, which has seen all of the text.
    Last,
    /// Their mean.
    Mean,
}

/// Answers a request; `model` is the model that it names.
pub(super) async fn embed(app: &Arc<App>, body: Bytes, model: &mut String) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(&body)?;
    drop(body);
    let served = app.models.find(&fields.text("model")?.unwrap_or_default())?;
    model.clone_from(&served.name);
    let hidden = app.engine.hidden_size();
    if fields.whole("dimensions", 1, i64::MAX)?.is_some_and(|dimensions| dimensions as usize != hidden) {
        return Err(ApiError::field("dimensions", format!("must be {hidden}: this model has no shorter vectors")));
    }
    let base64 = fields.one_of("encoding_format", &["float", "base64"])? == Some("base64");
    let pooling = match fields.one_of("pooling", &["last", "mean"])? {
        Some("mean") => Pooling::Mean,
        _ => Pooling::Last,
    };
    let normalize = fields.choice("normalize")?.unwrap_or(true);
    let special = fields.choice("add_special_tokens")?.unwrap_or(true);
    fields.refuse("truncate_prompt_tokens", &[Value::from(0)])?;
    let inputs = prompts(fields.take("input"), "input", app.engine.vocabulary())?;
    if inputs.len() > TEXTS {
        return Err(ApiError::field("input", format!("has {} texts, {TEXTS} are allowed", inputs.len())));
    }
    let tokenizer = app.engine.tokenizer().clone();
    let encoded = blocking(move || {
        let encode = |input: Prompt| Ok(input.encode(&tokenizer, "input", special, false)?.1.to_vec());
        inputs.into_iter().map(encode).collect::<Result<Vec<Vec<u32>>, ApiError>>()
    });
    let texts = encoded.await?;
    for text in &texts {
        if text.is_empty() {
            return Err(ApiError::field("input", "has a text without tokens"));
        }
        if text.len() > served.room {
            return Err(ApiError::too_long("input", text.len(), served.room, 0));
        }
    }
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let mut data = Vec::with_capacity(texts.len());
    for vector in vectors(app, &served, texts, pooling, normalize).await? {
        let embedding = if base64 { base64_of(&vector).into() } else { Value::from(vector) };
        data.push(json!({ "object": "embedding", "index": data.len(), "embedding": embedding }));
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    let body = json!({ "object": "list", "data": data, "model": served.name, "usage": usage });
    Ok(([(CONTENT_TYPE, "application/json")], body.to_string()).into_response())
}

async fn vectors(
    app: &App,
    served: &ServedModel,
    texts: Vec<Vec<u32>>,
    pooling: Pooling,
    normalize: bool,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let _place = app.engine.gate().enter(1).await?;
    let model = app.engine.model().clone().with_tables(served.tables.clone());
    let mut vectors = Vec::with_capacity(texts.len());
    let mut rest = texts.as_slice();
    while !rest.is_empty() {
        let mut sum = 0;
        let count = rest.iter().take_while(|text| {
            sum += text.len();
            sum <= TOKENS
        });
        let (batch, others) = rest.split_at(count.count().clamp(1, rest.len()));
        rest = others;
        let states = model.final_states(batch, pooling == Pooling::Last).await;
        let states = states.map_err(|error| ApiError::of_generation(error.into()))?;
        let hidden = app.engine.hidden_size().max(1);
        let mut rows = states.chunks_exact(hidden);
        for text in batch {
            let count = if pooling == Pooling::Last { 1 } else { text.len() };
            vectors.push(pooled(rows.by_ref().take(count), hidden, normalize));
        }
    }
    Ok(vectors)
}

/// The mean of rows, of length 1 if that is wanted.
fn pooled<'a>(rows: impl Iterator<Item = &'a [f32]>, hidden: usize, normalize: bool) -> Vec<f32> {
    let (mut sums, mut count) = (vec![0.0_f64; hidden], 0_usize);
    for row in rows {
        count += 1;
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let norm = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
    let divisor = if normalize { norm } else { count as f64 };
    sums.iter().map(|sum| if divisor > 0.0 { (sum / divisor) as f32 } else { 0.0 }).collect()
}

/// Little-endian floats in base64, which OpenAI's clients ask for.
fn base64_of(vector: &[f32]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() { '=' } else { char::from(letter) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_means_of_length_one() {
        let rows = [[3.0_f32, 0.0], [3.0, 8.0]];
        let of = |normalize| pooled(rows.iter().map(<[f32; 2]>::as_slice), 2, normalize);
        assert_eq!((of(false), of(true)), (vec![3.0, 4.0], vec![0.6, 0.8]));
        assert_eq!(pooled(std::iter::empty(), 2, true), [0.0, 0.0]);
    }

    #[test]
    fn base64_is_that_of_other_programs() {
        // `base64.b64encode(numpy.array(…, "<f4").tobytes())`
        assert_eq!(base64_of(&[1.0]), "AACAPw==");
        assert_eq!(base64_of(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64_of(&[1.0, -2.5, 0.1]), "AACAPwAAIMDNzMw9");
    }
}
