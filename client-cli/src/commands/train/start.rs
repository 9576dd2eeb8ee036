//! Where a run starts: at its first step, or where it was saved.

use std::sync::Arc;

use petals_client::{
    AdamW, Aids, Average, DeepInit, Encoder, Injection, LabelMap, LogitsError, Method, ModelFiles, PromptTables,
    RemoteModel, RemoteSequence, SettingChange, Table, TableInit, Task, TrainingRecord, TrainingState,
};

use super::material::Material;
use crate::args::TrainArgs;
use crate::error::CliError;
use crate::text::TextTokenizer;

/// The longest example of a saved run.
pub(super) fn max_length(saved: &TrainingRecord) -> Option<usize> {
    saved.settings.get("--max-length").and_then(|text| text.parse().ok())
}

/// What first values have to be asked of the swarm: tables do not know the blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FromSwarm {
    /// The tokens whose keys and values the prefix starts as.
    prefix: Vec<u32>,
    /// Whether deep prompts start as the states of the input prompt.
    states: bool,
}

impl FromSwarm {
    /// Asks for the values, puts them in, and has what goes with the tables begin anew.
    ///
    /// # Errors
    /// If the swarm does not answer.
    pub(super) async fn fill(
        self,
        sequence: &Arc<RemoteSequence>,
        files: &ModelFiles,
        args: &TrainArgs,
        state: TrainingState,
    ) -> Result<TrainingState, CliError> {
        if self == Self::default() {
            return Ok(state);
        }
        let mut tables = self.values(sequence, files, state.tables).await.map_err(anyhow::Error::from)?;
        let aids = first_aids(args, &mut tables)?;
        Ok(TrainingState { tables, aids, ..state })
    }

    async fn values(
        self,
        sequence: &Arc<RemoteSequence>,
        files: &ModelFiles,
        mut tables: PromptTables,
    ) -> Result<PromptTables, LogitsError> {
        let model = RemoteModel::new(sequence.clone(), files.local.clone());
        if !self.prefix.is_empty() {
            let prefix = model.prefix_of_text(&self.prefix).await?;
            let values = prefix.table(Table::KeysValues);
            if let Some((own, values)) = tables.table_mut(Table::KeysValues).zip(values) {
                own.copy_from_slice(values);
            }
        }
        if self.states { model.with_prompt_states(tables).await } else { Ok(tables) }
    }
}

/// The saved run, if there is one and it is to be resumed, or the fresh one and what it has to ask for.
pub(super) fn state(
    args: &TrainArgs,
    (files, tokenizer): (&ModelFiles, &TextTokenizer),
    (material, context): (&Material, Option<&[u32]>),
    (method, given): (&Method, Option<&PromptTables>),
    (saved, fresh): (Option<TrainingState>, TrainingRecord),
) -> Result<(TrainingState, FromSwarm), CliError> {
    match saved {
        Some(mut saved) if args.start.resume => {
            check_same_run(&saved.record, &fresh, material.data.counts.longest)?;
            // More steps than planned are fine, they only change the schedule's end.
            saved.record.total_steps = fresh.total_steps;
            saved.record.settings = fresh.settings;
            return Ok((saved, FromSwarm::default()));
        }
        Some(saved) if saved.record.step < saved.record.total_steps => {
            let (step, total) = (saved.record.step, saved.record.total_steps);
            let message = format!(
                "{} has a run that stopped at step {step} of {total}: add --resume to go on with it, or choose another --out",
                args.out.display()
            );
            return Err(CliError::Usage(message));
        }
        _ => {}
    }
    let labels = fresh.labels.as_ref();
    let (mut tables, from_swarm) =
        first_tables(args, (files, tokenizer), (material, context), (method, given), labels)?;
    let optimizer = AdamW::new(tables.shape(), args.optimiser.weight_decay);
    // Whatever is wrong with it is found out before a swarm is joined.
    let aids = first_aids(args, &mut tables)?;
    Ok((TrainingState { record: fresh, tables, optimizer, aids }, from_swarm))
}

/// What the flags ask for beside the tables, which become what a network makes.
fn first_aids(args: &TrainArgs, tables: &mut PromptTables) -> Result<Aids, CliError> {
    let encoder = args.shaping.reparam().map(|reparam| Encoder::new(reparam, tables, args.optimiser.seed));
    let encoder = encoder.transpose().map_err(|error| CliError::Usage(format!("--reparam: {error}")))?;
    let average = args.shaping.ema.map(|decay| Average::new(decay, tables));
    Ok(Aids { encoder, average })
}

/// Checks that a run goes on with what it began with. `longest` is the longest example before it is cut.
fn check_same_run(saved: &TrainingRecord, now: &TrainingRecord, longest: usize) -> Result<(), CliError> {
    if saved.model != now.model {
        let message = format!("the saved run is of model {}, this one of {}", saved.model, now.model);
        return Err(CliError::Usage(message));
    }
    let step = |record: &TrainingRecord| {
        let number = |flag: &str| record.settings.get(flag).and_then(|text| text.parse::<u64>().ok());
        number("--batch-size").zip(number("--accumulation")).map(|(batch, times)| batch.saturating_mul(times))
    };
    let same_step = step(saved) == step(now);
    let changes = saved.changed_settings(&now.settings);
    let other: Vec<String> = changes
        .iter()
        .filter(|change| match change.flag.as_str() {
            "--max-length" => !is_shorter(change, longest),
            // Runs saved before it was written down: if it is another one, so is the data.
            "--append-eos" => change.was.is_some(),
            // A step is the mean over all of its batches, however many they are.
            "--batch-size" | "--accumulation" => !same_step,
            _ => true,
        })
        .map(description)
        .collect();
    if other.is_empty() {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "cannot resume with other settings: {}. Give them as they were, or start anew with another --out (a smaller \
         --max-length, more --steps or --epochs, and other --batch-size and --accumulation with the same product may change)",
        other.join("; ")
    )))
}

/// Whether a change of `--max-length` only shortens examples, or changes none.
fn is_shorter(change: &SettingChange, longest: usize) -> bool {
    let number = |value: &Option<String>| value.as_deref().and_then(|text| text.parse::<usize>().ok());
    match (number(&change.was), number(&change.now)) {
        (Some(was), Some(now)) => now <= was || longest <= was,
        // Runs saved before it was written down had their data cut already, so that it would be other data now.
        (None, Some(_)) => true,
        _ => false,
    }
}

fn description(change: &SettingChange) -> String {
    match (change.flag.as_str(), &change.was, &change.now) {
        ("--data", Some(was), Some(now)) => {
            format!(
                "--data was {was}, is now {now} (digests of the examples: the file, the tokenizer or the columns changed)"
            )
        }
        _ => change.to_string(),
    }
}

fn first_tables(
    args: &TrainArgs,
    (files, tokenizer): (&ModelFiles, &TextTokenizer),
    (material, context): (&Material, Option<&[u32]>),
    (method, given): (&Method, Option<&PromptTables>),
    labels: Option<&LabelMap>,
) -> Result<(PromptTables, FromSwarm), CliError> {
    let config = &files.config;
    let shape = method.shape(config, labels.filter(|_| args.learning.task() == Task::SeqCls).map(LabelMap::len));
    let init = TableInit {
        rule: args.start.init_rule(
            args.method.mode,
            tokenizer,
            || material.first_tokens(args, method.prefix_len),
            context,
        )?,
        deep: args.start.deep(method.injection),
        std: config.initializer_range,
        vocab_size: config.vocab_size as u32,
        seed: args.optimiser.seed,
    };
    let embed = |ids: &[u32]| files.local.embeddings(ids);
    let mut tables = PromptTables::initialise(shape, &init, embed).map_err(CliError::input)?;
    let has = |table| given.is_some_and(|given| given.table(table).is_some());
    let mut from_swarm = FromSwarm::default();
    if method.injection == Injection::KeysValues && !has(Table::KeysValues) {
        from_swarm.prefix = init.prefix_tokens(method.prefix_len);
    }
    from_swarm.states = init.deep == Some(DeepInit::States) && !has(Table::Deep);
    if from_swarm.states && method.injection != Injection::Replace {
        let message = "--init-deep states is for prompts that replace the prefix: those that are added start as zeros";
        return Err(CliError::Usage(message.to_owned()));
    }
    if let Some(given) = given {
        let kept = tables.start_from(given).map_err(CliError::input)?;
        for table in kept {
            tracing::warn!("--init-from has no `{}`: it starts as without --init-from", table.tensor_name());
        }
    }
    Ok((tables, from_swarm))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(was: Option<&str>, now: &str) -> SettingChange {
        let text = |text: &str| text.to_owned();
        SettingChange { flag: text("--max-length"), was: was.map(text), now: Some(text(now)) }
    }

    #[test]
    fn examples_may_become_shorter_but_not_longer() {
        assert!(is_shorter(&change(Some("512"), "496"), 600));
        assert!(!is_shorter(&change(Some("496"), "512"), 600));
        assert!(is_shorter(&change(Some("496"), "512"), 496), "nothing was cut, and nothing is");
        assert!(is_shorter(&change(None, "512"), 600));
    }
}
