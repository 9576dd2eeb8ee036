//! `petals-tune eval`.

use std::sync::Arc;

use anyhow::{Context, Error};
use petals_client::{TunerConfig, evaluate};

use super::session;
use crate::args::EvalArgs;
use crate::data::{DataRules, Dataset};
use crate::error::CliError;
use crate::output::{Eval, Measured, Output, ReadData};
use crate::text::TextTokenizer;

pub(crate) async fn run(args: EvalArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config);
    let adapter = session::adapter(&files, &args.adapter)?;
    let manifest = &adapter.manifest;
    let positions = files.config.max_position_embeddings;
    let text = args.text.rules(positions, manifest.prefix_len, Some(manifest.text)).map_err(CliError::Usage)?;
    let rules = DataRules {
        task: manifest.task,
        text,
        labels: manifest.labels.as_ref(),
        columns: &args.text.columns(manifest.task).map_err(CliError::Usage)?,
        templates: &args.text.templates(&args.swarm.model),
        vocab_size: files.config.vocab_size,
    };
    let dataset = Dataset::load(&args.data, &rules, &tokenizer)?;
    let read = ReadData::new(args.data.clone(), &dataset);
    output.emit(&Measured { eval: read, max_length: text.max_length.unwrap_or(positions) })?;
    let (step, labels) = (manifest.step, manifest.labels.clone());
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let config = TunerConfig {
        micro_batch_tokens: args.passes.micro_batch_tokens,
        in_flight: args.passes.in_flight,
        ..TunerConfig::default()
    };
    let tables = Arc::new(adapter.tables);
    let score = evaluate(&sequence, &files.local, Some(&tables), &dataset.examples, &config).await;
    let score = score.map_err(Error::from)?;
    output.emit(&Eval::new(step, &score, labels.as_ref()).context("the data has no labels")?)?;
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    Ok(())
}
