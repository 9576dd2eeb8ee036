//! What is lost by keeping a model's weights, and its sessions' keys and values, in less than f32: perplexity, differences of the logits, and how often the
//! likeliest token is the same.
//!
//! usage: quality_bench MODEL IDS.json [WINDOW [WINDOWS [ROWS]]]
//!
//! IDS.json is a list of token ids of a text. It is read in windows (512 tokens, 8 of them), once in passes, as training reads texts, and once in steps of
//! ROWS tokens (1), as sessions do.

use std::error::Error;

use petals_model::{
    BlockStack, CachedRows, Checkpoint, ClientModel, Device, Dtype, ForwardPass, Keep, KvDtype, KvMeter, LossRules,
};
use petals_protocol::{Injection, PassLayout};

/// What was kept how, and read how.
const KINDS: [(Dtype, KvDtype, bool); 13] = [
    (Dtype::F32, KvDtype::F32, false),
    (Dtype::Bf16, KvDtype::F32, false),
    (Dtype::F16, KvDtype::F32, false),
    (Dtype::Int8, KvDtype::F32, false),
    (Dtype::Int4, KvDtype::F32, false),
    (Dtype::F32, KvDtype::Bf16, true),
    (Dtype::F32, KvDtype::F16, true),
    (Dtype::F32, KvDtype::Int8, true),
    (Dtype::Int8, KvDtype::F32, true),
    (Dtype::Int8, KvDtype::F16, true),
    (Dtype::Int8, KvDtype::Int8, true),
    (Dtype::Int4, KvDtype::F32, true),
    (Dtype::Int4, KvDtype::F16, true),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, ids, sizes @ ..] = &arguments[..] else { return Err("usage: quality_bench MODEL IDS.json".into()) };
    let size = |at: usize, usual: usize| sizes.get(at).map_or(Ok(usual), |text| text.parse());
    let (window, count, rows) = (size(0, 512)?, size(1, 8)?, size(2, 1)?);
    let ids: Vec<u32> = serde_json::from_slice(&std::fs::read(ids)?)?;
    let windows: Vec<&[u32]> = ids.chunks_exact(window).take(count).collect();
    let checkpoint = Checkpoint::open(model)?;
    let client = checkpoint.load_client(Dtype::F32)?;
    println!("{} windows of {window} tokens, steps of {rows}", windows.len());
    println!("| weights | keys and values | read in | perplexity | change | logits off by | same token |");
    println!("|---|---|---|---:|---:|---:|---:|");
    let mut exact: Option<Outcome> = None;
    for (dtype, kv, steps) in KINDS {
        let stack = checkpoint.load_span(checkpoint.blocks(), &Device::cpu(), dtype)?.with_kv_dtype(kv)?;
        let outcome = outcome(&stack, &client, &windows, steps.then_some(rows.max(1)))?;
        let reference = exact.get_or_insert_with(|| outcome.clone());
        let (perplexity, before) = (outcome.perplexity(), reference.perplexity());
        let (apart, same) = outcome.beside(reference);
        println!(
            "| {dtype} | {} | {} | {perplexity:.3} | {:+.3} % | {apart:.2e} | {:.2} % |",
            if steps { kv.to_string() } else { "–".into() },
            if steps { "steps" } else { "passes" },
            100.0 * (perplexity / before - 1.0),
            100.0 * same
        );
    }
    Ok(())
}

/// What a model said of all windows.
#[derive(Clone, Default)]
struct Outcome {
    loss: f64,
    tokens: usize,
    logits: Vec<f32>,
    likeliest: Vec<usize>,
}

impl Outcome {
    fn perplexity(&self) -> f64 {
        (self.loss / self.tokens as f64).exp()
    }

    /// The norm of the difference of some logits in parts of theirs, and how often the likeliest token is the same.
    fn beside(&self, other: &Self) -> (f64, f64) {
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let apart = norm(&mut self.logits.iter().zip(&other.logits).map(|(a, b)| a - b));
        let same = self.likeliest.iter().zip(&other.likeliest).filter(|(a, b)| a == b).count();
        (apart / norm(&mut other.logits.iter().copied()), same as f64 / self.likeliest.len() as f64)
    }
}

fn outcome(
    stack: &BlockStack,
    client: &ClientModel,
    windows: &[&[u32]],
    steps: Option<usize>,
) -> Result<Outcome, Box<dyn Error>> {
    let (mut outcome, vocab) = (Outcome::default(), stack.config().vocab_size);
    for window in windows {
        let text = client.embed(window)?;
        let hidden = match steps {
            Some(rows) => in_steps(stack, &text, rows)?,
            None => in_one(stack, text, window.len())?,
        };
        let d = stack.config().hidden_size;
        let hidden = &hidden[..(window.len() - 1) * d];
        let loss = client.lm_loss(hidden, &window[1..], LossRules::default())?;
        outcome.loss += loss.loss_sum;
        outcome.tokens += window.len() - 1;
        for rows in hidden.chunks(64 * d) {
            let logits = client.lm_logits(rows)?;
            let best = |row: &[f32]| (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or_default();
            outcome.likeliest.extend(logits.chunks_exact(vocab).map(best));
            // A few rows of each window are enough for their difference.
            outcome.logits.extend_from_slice(&logits[..vocab.min(logits.len())]);
        }
    }
    Ok(outcome)
}

fn in_one(stack: &BlockStack, text: Vec<f32>, tokens: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    let layout = PassLayout {
        span: stack.span(),
        lengths: vec![u32::try_from(tokens)?],
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    };
    let pass = ForwardPass { layout: &layout, text, prefix: None, tables: None };
    Ok(stack.forward(pass, Keep::Nothing)?.text)
}

fn in_steps(stack: &BlockStack, text: &[f32], rows: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    let d = stack.config().hidden_size;
    let mut cache = stack.cache(stack.span(), text.len() / d, &KvMeter::default())?;
    let mut hidden = Vec::with_capacity(text.len());
    for rows in text.chunks(rows * d) {
        let sequence = CachedRows { cache: &mut cache, rows: rows.len() / d, tables: None };
        hidden.extend(stack.step(rows.to_vec(), &mut [sequence], None)?);
    }
    Ok(hidden)
}
