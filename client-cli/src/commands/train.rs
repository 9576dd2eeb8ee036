//! `petals-tune train`.

use std::path::Path;

use anyhow::{Context, Error};
use petals_client::{
    AdamW, Adapter, Example, LabelMap, LearningRate, ModelFiles, PromptTables, PromptTuner, TableInit, TableShape,
    Task, TrainingRecord, TrainingState, TunerConfig,
};

use super::{session, stop::StopSignal};
use crate::args::{TrainArgs, TrainLength};
use crate::data::{BatchPlan, DataRules, Dataset};
use crate::error::CliError;
use crate::output::{Done, Eval, Output, Resumed, Saved, Step};
use crate::progress::Progress;
use crate::text::TextTokenizer;

/// What a run learns from.
struct Material {
    data: Dataset,
    eval: Option<Dataset>,
}

/// A run between two steps.
struct Run<'a> {
    args: &'a TrainArgs,
    files: &'a ModelFiles,
    output: Output,
    record: TrainingRecord,
    tuner: PromptTuner,
}

pub(crate) async fn run(args: TrainArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?;
    let material = Material::load(&args, &tokenizer)?;
    let mut plan = BatchPlan::new(material.data.lengths(), args.optimiser.step_size(), args.optimiser.order());
    let total = match args.optimiser.length() {
        TrainLength::Epochs(epochs) => plan.steps_of(epochs),
        TrainLength::Steps(steps) => steps,
    };
    let fresh = TrainingRecord {
        model: files.adapted.id.clone(),
        step: 0,
        total_steps: total,
        seed: args.optimiser.seed,
        labels: material.data.labels.clone(),
        settings: args.settings(&material.data.digest()),
    };
    let state = start(&args, &files, &tokenizer, fresh)?;
    let (sequence, swarm) = session::connect(&files, &args.swarm, output).await?;
    let tuning = TunerConfig {
        micro_batch_tokens: args.passes.micro_batch_tokens,
        in_flight: args.passes.in_flight,
        clip: args.optimiser.clip,
    };
    let TrainingState { record, tables, optimizer } = state;
    let tuner = PromptTuner::new(sequence.clone(), files.local.clone(), tables, optimizer, tuning);
    let mut run = Run { args: &args, files: &files, output, record, tuner };
    if run.record.step > 0 {
        output.emit(&Resumed { step: run.record.step })?;
    }
    let finished = run.steps(&material, &mut plan).await;
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    finished?;
    output.emit(&Done { adapter: args.out })
}

impl Material {
    fn load(args: &TrainArgs, tokenizer: &TextTokenizer) -> Result<Self, CliError> {
        let load = |path: &Path, labels: Option<&LabelMap>| {
            let data = Dataset::load(path, &DataRules { task: args.task, text: args.text.rules(), labels }, tokenizer)?;
            if data.dropped > 0 {
                tracing::warn!("{}: {} examples have nothing to learn from, left out", path.display(), data.dropped);
            }
            Ok::<_, CliError>(data)
        };
        let data = load(&args.data, None)?;
        let eval = args.eval.as_deref().map(|path| load(path, data.labels.as_ref())).transpose()?;
        Ok(Self { data, eval })
    }
}

/// The saved run, if it is to be resumed, or a new one.
fn start(
    args: &TrainArgs,
    files: &ModelFiles,
    tokenizer: &TextTokenizer,
    fresh: TrainingRecord,
) -> Result<TrainingState, CliError> {
    let saved = TrainingState::load(&args.out).map_err(CliError::input)?;
    match saved {
        Some(mut saved) if args.start.resume => {
            check_same_run(&saved.record, &fresh)?;
            // More steps than planned are fine, they only change the schedule's end.
            saved.record.total_steps = fresh.total_steps;
            return Ok(saved);
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
    let tables = first_tables(args, files, tokenizer, fresh.labels.as_ref())?;
    let optimizer = AdamW::new(tables.shape(), args.optimiser.weight_decay);
    Ok(TrainingState { record: fresh, tables, optimizer })
}

fn check_same_run(saved: &TrainingRecord, now: &TrainingRecord) -> Result<(), CliError> {
    if saved.model != now.model {
        let message = format!("the saved run is of model {}, this one of {}", saved.model, now.model);
        return Err(CliError::Usage(message));
    }
    let changes = saved.changed_settings(&now.settings);
    if changes.is_empty() {
        return Ok(());
    }
    let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
    Err(CliError::Usage(format!("cannot resume with other settings: {}", changes.join("; "))))
}

fn first_tables(
    args: &TrainArgs,
    files: &ModelFiles,
    tokenizer: &TextTokenizer,
    labels: Option<&LabelMap>,
) -> Result<PromptTables, CliError> {
    let config = &files.config;
    let (prefix_len, longest) = (args.prefix_len, config.max_position_embeddings);
    if prefix_len >= longest {
        let message = format!("--prefix-len {prefix_len} leaves no room for text: the model has {longest} positions");
        return Err(CliError::Usage(message));
    }
    let shape = TableShape {
        injection: args.injection(),
        blocks: config.num_hidden_layers,
        prefix_len,
        hidden: config.hidden_size,
        labels: labels.filter(|_| args.task == Task::SeqCls).map(LabelMap::len),
    };
    let init = TableInit {
        rule: args.start.init_rule(tokenizer)?,
        deep: args.start.init_deep,
        std: config.initializer_range,
        vocab_size: config.vocab_size as u32,
        seed: args.optimiser.seed,
    };
    let embed = |ids: &[u32]| files.local.embed(ids);
    let mut tables = PromptTables::initialise(shape, &init, embed).map_err(CliError::input)?;
    if let Some(directory) = &args.start.init_from {
        let given = session::adapter(files, directory)?.tables;
        let kept = tables.start_from(&given).map_err(CliError::input)?;
        for table in kept {
            tracing::warn!("--init-from has no `{}`: it starts as without --init-from", table.tensor_name());
        }
    }
    Ok(tables)
}

impl Run<'_> {
    async fn steps(&mut self, material: &Material, plan: &mut BatchPlan) -> Result<(), CliError> {
        let reports = self.args.report.clone();
        let total = self.record.total_steps;
        let rate = self.learning_rate();
        let stop = StopSignal::install()?;
        tokio::pin! {
            let stopped = stop.received();
        }
        if reports.eval_first && self.record.step == 0 {
            tokio::select! {
                done = self.evaluate(material) => done?,
                () = &mut stopped => return self.stopped(anyhow::anyhow!("interrupted")),
            }
        }
        let mut progress = Progress::new(self.output, total, self.record.step, reports.log_every);
        let due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every) && step < total;
        while self.record.step < total {
            let indices = plan.batch(self.record.step);
            let examples = indices.iter().filter_map(|&index| material.data.examples.get(index));
            let batch: Vec<Example> = examples.cloned().collect();
            let lr = rate.at(self.record.step);
            let report = tokio::select! {
                report = self.tuner.step(&batch, lr) => report,
                () = &mut stopped => return self.stopped(anyhow::anyhow!("interrupted")),
            };
            let report = match report {
                Ok(report) => report,
                Err(error) => return self.stopped(error.into()),
            };
            self.record.step += 1;
            let step = self.record.step;
            let tokens_per_s = report.tokens as f64 / report.elapsed.as_secs_f64().max(1e-9);
            let (loss, grad_norm, traffic) = (report.loss, report.grad_norm, report.traffic);
            progress.step(&Step { step, loss, lr, tokens_per_s, grad_norm, traffic })?;
            if due(step, reports.save_every) {
                self.save()?;
            }
            if due(step, reports.eval_every) {
                tokio::select! {
                    done = self.evaluate(material) => done?,
                    () = &mut stopped => return self.stopped(anyhow::anyhow!("interrupted")),
                }
            }
        }
        drop(progress);
        self.save()?;
        tokio::select! {
            done = self.evaluate(material) => done,
            () = &mut stopped => Err(anyhow::anyhow!("interrupted while evaluating; the adapter is saved").into()),
        }
    }

    fn learning_rate(&self) -> LearningRate {
        let optimiser = &self.args.optimiser;
        LearningRate {
            peak: optimiser.lr,
            schedule: optimiser.schedule,
            warmup: optimiser.warmup,
            total: self.record.total_steps,
        }
    }

    /// What was learnt is worth keeping whatever went wrong.
    fn stopped(&self, reason: Error) -> Result<(), CliError> {
        let step = self.record.step;
        if step == 0 {
            return Err(reason.context("stopped before the first step").into());
        }
        if let Err(failure) = self.save() {
            return Err(reason
                .context(format!("stopped after step {step}, which could not be saved ({failure})"))
                .into());
        }
        Err(reason.context(format!("stopped after step {step}, which is saved: add --resume to go on")).into())
    }

    async fn evaluate(&self, material: &Material) -> Result<(), CliError> {
        let Some(eval) = &material.eval else { return Ok(()) };
        let score = self.tuner.evaluate(&eval.examples).await.map_err(Error::from)?;
        let loss = score.loss().context("the held-out data has no labels")?;
        let accuracy = score.accuracy().filter(|_| self.args.task == Task::SeqCls);
        self.output.emit(&Eval { step: self.record.step, loss, accuracy })
    }

    /// Saves the training state and then the adapter: a run killed in between resumes and saves the adapter again.
    fn save(&self) -> Result<(), CliError> {
        let (out, tables) = (&self.args.out, self.tuner.tables());
        self.record.save(out, tables, self.tuner.optimizer()).map_err(Error::from)?;
        let labels = self.record.labels.clone();
        let (model, rules, step) = (&self.files.adapted, self.args.text.rules(), self.record.step);
        let adapter = Adapter::new(model, tables.clone(), labels, rules, step);
        adapter.save(out, model).map_err(Error::from)?;
        self.output.emit(&Saved { step })
    }
}
