//! The teacher of a run that distils: the same model with a text in front.

use std::path::Path;
use std::sync::Arc;

use anyhow::Error;
use petals_client::{Example, ModelFiles, RemoteModel, RemoteSequence, TunerConfig, evaluate, teach};

use super::material::Material;
use crate::args::TrainArgs;
use crate::commands::given;
use crate::error::CliError;
use crate::output::{Output, Taught};
use crate::progress::Tokens;
use crate::text::TextTokenizer;

/// The tokens of a file that is to be distilled.
pub(crate) fn context(path: &Path, tokenizer: &TextTokenizer) -> Result<Vec<u32>, CliError> {
    let text = given::text("--context", path)?;
    let tokens = tokenizer.encode(&text)?;
    // Of nothing there may be a token that begins every text.
    if tokens.is_empty() || text.trim().is_empty() {
        return Err(CliError::Usage(format!("--context {} has no text", path.display())));
    }
    Ok(tokens)
}

/// Has the teacher, who has `context` in front, say what it takes for every token that is learnt, and measures it on the held-out texts.
pub(super) async fn ask(
    sequence: &Arc<RemoteSequence>,
    (files, args): (&ModelFiles, &TrainArgs),
    config: &TunerConfig,
    context: &[u32],
    material: &mut Material,
    output: Output,
) -> Result<(), CliError> {
    let model = RemoteModel::new(sequence.clone(), files.local.clone());
    let teacher = Arc::new(model.prefix_of_text(context).await.map_err(Error::from)?);
    let tokens = material.data.examples.iter().map(|example: &Example| example.tokens.len()).sum();
    let (mut progress, k) = (Tokens::new(output, tokens), args.teacher.teacher_top_k);
    let examples = &mut material.data.examples;
    let taught = teach(sequence, &files.local, &teacher, examples, (k, config), |done| progress.reached(done)).await;
    taught.map_err(Error::from)?;
    drop(progress);
    let (mut loss, mut loss_without) = (None, None);
    if let Some(eval) = &material.eval {
        let of = |tables| evaluate(sequence, &files.local, tables, &eval.examples, config);
        loss = of(Some(&teacher)).await.map_err(Error::from)?.loss();
        loss_without = of(None).await.map_err(Error::from)?.loss();
    }
    output.emit(&Taught { context_tokens: context.len(), loss, loss_without })
}
