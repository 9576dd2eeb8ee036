//! `petals-tune logits`.

use anyhow::Context;
use petals_client::RemoteModel;
use safetensors::tensor::{Dtype, TensorView};

use super::session;
use crate::args::LogitsArgs;
use crate::data::read_input_ids;
use crate::error::CliError;
use crate::output::{LogitsWritten, Output};

pub(crate) async fn run(args: LogitsArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let vocab = files.config.vocab_size;
    let rows = read_input_ids(&args.input_ids, vocab as u32)?;
    let adapter = args.adapter.as_deref().map(|directory| session::adapter(&files, directory)).transpose()?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let tables = adapter.map(|adapter| adapter.tables.into());
    let model = RemoteModel::new(sequence, files.local).with_tables(tables);
    let logits = model.logits(&rows).await.map_err(anyhow::Error::from)?;
    let shape = [rows.len(), rows.first().map_or(0, Vec::len), vocab];
    let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).context("the logits have another shape")?;
    let file = safetensors::serialize([("logits", tensor)], None).context("cannot encode the logits")?;
    std::fs::write(&args.out, file).with_context(|| format!("cannot write {}", args.out.display()))?;
    output.emit(&LogitsWritten { out: args.out, shape })?;
    swarm.shutdown().await;
    Ok(())
}
