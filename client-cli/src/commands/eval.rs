//! `petals-tune eval`.

use std::sync::Arc;

use anyhow::{Context, Error};
use petals_client::{Task, TunerConfig, evaluate};

use super::session;
use crate::args::EvalArgs;
use crate::data::{DataRules, Dataset};
use crate::error::CliError;
use crate::output::{Eval, Measured, Output, ReadData};
use crate::text::TextTokenizer;

pub(crate) async fn run(args: EvalArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config);
    let adapter = args.adapter.as_deref().map(|directory| session::adapter(&files, directory)).transpose()?;
    let manifest = adapter.as_ref().map(|adapter| &adapter.manifest);
    let (task, prefix_len) = manifest.map_or((Task::CausalLm, 0), |manifest| (manifest.task, manifest.prefix_len));
    let labels = manifest.and_then(|manifest| manifest.labels.clone());
    let step = manifest.map_or(0, |manifest| manifest.step);
    let positions = files.config.max_position_embeddings;
    let text =
        args.text.rules(positions, prefix_len, manifest.map(|manifest| manifest.text)).map_err(CliError::Usage)?;
    let rules = DataRules {
        task,
        text,
        labels: labels.as_ref(),
        columns: &args.text.columns(task).map_err(CliError::Usage)?,
        templates: &args.text.templates(&args.swarm.model),
        vocab_size: files.config.vocab_size,
    };
    let dataset = Dataset::load(&args.data, &rules, &tokenizer)?;
    let read = ReadData::new(args.data.clone(), &dataset);
    output.emit(&Measured { eval: read, max_length: text.max_length.unwrap_or(positions) })?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let config = TunerConfig {
        micro_batch_tokens: args.passes.micro_batch_tokens,
        in_flight: args.passes.in_flight,
        ..TunerConfig::default()
    };
    let tables = adapter.map(|adapter| Arc::new(adapter.tables));
    let score = evaluate(&sequence, &files.local, tables.as_ref(), &dataset.examples, &config).await;
    let score = score.map_err(Error::from)?;
    output.emit(&Eval::new(step, &score, labels.as_ref()).context("the data has no labels")?)?;
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    Ok(())
}
