//! A teacher's word on examples: the same model with something in front, asked once before a student learns from it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::TryStreamExt;
use petals_model::{ClientModel, TopTokens};

use super::passes::Passes;
use super::{Pacer, TuneError, TunerConfig, in_order, tokens};
use crate::adapter::tables::PromptTables;
use crate::sequence::RemoteSequence;
use crate::tuning::batch::{Example, Target};

/// Notes in every example that predicts tokens what the model with `teacher`'s tables takes for these: the `k` most probable ones
/// (context distillation; Askell et al. 2021, section 2.2; as cartridges in arXiv 2506.06266). `done` is told how many tokens have been through.
///
/// # Errors
/// [`TuneError`]; the examples are unchanged then.
pub async fn teach(
    sequence: &Arc<RemoteSequence>,
    model: &Arc<ClientModel>,
    teacher: &Arc<PromptTables>,
    examples: &mut [Example],
    (k, config): (usize, &TunerConfig),
    mut done: impl FnMut(usize),
) -> Result<(), TuneError> {
    let pace = config.pace(Pacer::default().pace(tokens(examples)));
    let passes = Passes::new(sequence.clone(), model.clone(), Some(teacher.clone()), false, pace.in_flight);
    let all = loop {
        let started = Instant::now();
        let (mut all, mut used, mut seen) = (TopTokens::default(), HashSet::new(), 0);
        let mut results = in_order(&passes, examples, pace, |passes, micro| passes.top_tokens(micro, k));
        while let Some((top, peers, tokens)) = results.try_next().await? {
            all.append(&top);
            used.extend(peers);
            seen += tokens;
            done(seen);
        }
        if !used.iter().any(|peer| sequence.found_wrong_since(*peer, started)) {
            break all;
        }
    };
    let mut row = 0;
    for example in examples.iter_mut().filter(|example| example.labels() > 0) {
        let rows = row..row + example.labels();
        row = rows.end;
        let plain = std::mem::replace(&mut example.target, Target::Class(0));
        example.target = match plain {
            Target::Taught(plain, _) => Target::Taught(plain, all.part(rows).into()),
            plain => Target::Taught(plain.into(), all.part(rows).into()),
        };
    }
    Ok(())
}
