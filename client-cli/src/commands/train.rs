//! `petals-tune train`.

use anyhow::{Context, Error};
use petals_client::{
    Adapter, LearningRate, ModelFiles, PromptTuner, RemoteModel, TextRules, TrainingRecord, TrainingState, TunerConfig,
};

use super::{out, session, stop::StopSignal};
use crate::args::{Select, TrainArgs, TrainLength};
use crate::data::BatchPlan;
use crate::error::CliError;
use crate::output::{Done, EndedEarly, Estimated, Eval, Output, Resumed, Saved, Selected, Step};
use crate::progress::Progress;
use crate::text::TextTokenizer;

mod best;
pub(super) mod board;
mod journal;
mod material;
pub(super) mod metrics;
mod notes;
mod probe;
mod samples;
mod start;
mod teacher;

use best::Best;
use journal::Journal;
use material::Material;
use samples::Sampler;
pub(crate) use teacher::context;

/// Where the best adapter so far is kept within a run's directory.
const BEST: &str = "best";

/// A run between two steps.
struct Run<'a> {
    args: &'a TrainArgs,
    files: &'a ModelFiles,
    material: &'a Material,
    output: Output,
    rules: TextRules,
    record: TrainingRecord,
    tuner: PromptTuner,
    journal: Journal,
    sampler: Option<Sampler<'a>>,
    best: Best,
}

pub(crate) async fn run(mut args: TrainArgs, output: Output) -> Result<(), CliError> {
    // Whatever can be known without the swarm is found out first: what is wrong at some later step costs all steps before it.
    let files = session::open(&args.swarm)?;
    let tokenizer = TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config);
    let positions = files.config.max_position_embeddings;
    out::check_writable("--out", &args.out)?;
    let saved = TrainingState::load(&args.out).map_err(CliError::input)?;
    // A run that was told to cut shorter goes on to do so.
    let earlier = saved.as_ref().filter(|_| args.start.resume).and_then(|saved| start::max_length(&saved.record));
    let earlier = earlier.map(|max_length| TextRules { max_length: Some(max_length), append_eos: false });
    let given = args.start.init_from.as_deref().map(|directory| session::adapter(&files, directory)).transpose()?;
    let given = given.map(|given| given.tables);
    let known = given.as_ref().map(|given| given.shape().method());
    let method = args.method.method(&files.adapted.projections, known.as_ref());
    let method = method.map_err(CliError::Usage)?;
    args.start.check(args.method.mode).map_err(CliError::Usage)?;
    let shaping = args.shaping.check(args.method.mode, args.learning, given.as_ref(), args.start.prompts_flag());
    shaping.map_err(CliError::Usage)?;
    args.report.check(args.eval.is_some(), args.learning.task()).map_err(CliError::Usage)?;
    let context = args.teacher.context(args.learning).map_err(CliError::Usage)?;
    let context = context.map(|path| teacher::context(path, &tokenizer)).transpose()?;
    // The teacher has to have room for an example too.
    let in_front = context.as_ref().map_or(0, Vec::len).max(method.prefix_len);
    let rules = args.text.rules(positions, in_front, earlier).map_err(CliError::Usage)?;
    let mut material = Material::load(&args, rules, files.config.vocab_size, &tokenizer)?;
    let loss = args.shaping.loss(material.data.labels.as_ref(), &material.data.of_each_class());
    let loss = loss.map_err(CliError::Usage)?;
    let mut plan = BatchPlan::new(material.data.lengths(), args.optimiser.step_size(), args.optimiser.order());
    let total = match args.optimiser.length() {
        TrainLength::Epochs(epochs) => plan.steps_of(epochs),
        TrainLength::Steps(steps) => steps,
    };
    let earlier = saved.as_ref().filter(|_| args.start.resume).map(|saved| &saved.record.settings);
    args.settle(earlier, total, files.config.hidden_size);
    let mut fresh = TrainingRecord {
        model: files.adapted.id.clone(),
        step: 0,
        total_steps: total,
        seed: args.optimiser.seed,
        labels: material.data.labels.clone(),
        settings: args.settings(&method, &material.data.digest, material.max_length(), context.as_deref()),
    };
    if let Some(saved) = saved.as_ref().filter(|_| args.start.resume) {
        probe::recall(&saved.record.settings, &mut fresh.settings);
    }
    let (state, from_swarm) = start::state(
        &args,
        (&files, &tokenizer),
        (&material, context.as_deref()),
        (&method, given.as_ref()),
        (saved, fresh),
    )?;
    output.emit(&material.planned(&args, positions, &state.record, &plan))?;
    if args.validate {
        return Ok(());
    }
    let log = session::SwarmLog::default();
    let (sequence, swarm) = session::connect_noting(&files, &args.swarm, output, Some(log.clone())).await?;
    let TrainingState { record, tables, optimizer, aids } = tokio::select! {
        state = from_swarm.fill(&sequence, &files, &args, state) => state?,
        () = StopSignal::install()?.received() => return Err(anyhow::anyhow!("interrupted before the first step").into()),
    };
    let tuning = TunerConfig {
        micro_batch_tokens: args.passes.micro_batch_tokens,
        in_flight: args.passes.in_flight,
        clip: args.optimiser.clip,
        loss,
        dropout: args.shaping.dropout(args.optimiser.seed),
    };
    if let Some(context) = &context {
        tokio::select! {
            asked = teacher::ask(&sequence, (&files, &args), &tuning, context, &mut material, output) => asked?,
            () = StopSignal::install()?.received() => return Err(anyhow::anyhow!("interrupted before the first step").into()),
        }
    }
    let tuner = PromptTuner::new(sequence.clone(), files.local.clone(), tables, optimizer, tuning).with_aids(aids);
    let (journal, best) = Journal::open(&args, &record, &material, tuner.tables().shape().parameters(), log)?;
    let sampler = args.report.eval_generate.map(|texts| Sampler {
        model: RemoteModel::new(sequence.clone(), files.local.clone()),
        tokenizer: &tokenizer,
        positions,
        texts,
        tokens: args.report.eval_generate_tokens,
    });
    let (args, files, material) = (&args, &files, &material);
    let mut run = Run { args, files, material, output, rules, record, tuner, journal, sampler, best };
    if run.record.step > 0 {
        output.emit(&Resumed { step: run.record.step })?;
    }
    // Whoever cannot be found now is waited for when the first step is made.
    let left = total.saturating_sub(run.record.step);
    let estimate = run.tuner.estimate(material.tokens_per_step(&plan).ceil() as usize).await;
    if let Some(step) = estimate.ok().flatten().filter(|_| left > 0) {
        output.emit(&Estimated::new(step, left))?;
    }
    let finished = run.steps(material, &mut plan).await;
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    finished?;
    output.emit(&Done { adapter: args.out.clone() })
}

impl Run<'_> {
    async fn steps(&mut self, material: &Material, plan: &mut BatchPlan) -> Result<(), CliError> {
        let reports = self.args.report.clone();
        let total = self.record.total_steps;
        let stop = StopSignal::install()?;
        tokio::pin! {
            let stopped = stop.received();
        }
        tokio::select! {
            found = self.find_rate(material, plan) => found?,
            () = &mut stopped => return self.stopped(anyhow::anyhow!("interrupted")),
        }
        let rate = self.learning_rate();
        if reports.eval_first && self.record.step == 0 {
            tokio::select! {
                done = self.evaluate(material) => done?,
                () = &mut stopped => return self.stopped(anyhow::anyhow!("interrupted")),
            }
        }
        let mut progress = Progress::new(self.output, total, self.record.step, reports.log_every);
        let due = |step: u64, every: u64| every > 0 && step.is_multiple_of(every) && step < total;
        while self.record.step < total {
            let batch = material.batch(plan, self.record.step);
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
            let left_s = progress.left(report.elapsed, total - step);
            let made = Step { step, loss, lr, tokens_per_s, grad_norm, traffic, left_s };
            self.journal.step(&made, &report)?;
            progress.step(&made)?;
            if due(step, reports.save_every) {
                self.save()?;
            }
            if due(step, reports.eval_every) {
                tokio::select! {
                    done = self.evaluate(material) => done?,
                    () = &mut stopped => return self.stopped(anyhow::anyhow!("interrupted")),
                }
                if reports.patience.is_some_and(|patience| self.best.in_vain() >= patience) {
                    self.output.emit(&EndedEarly { step, in_vain: self.best.in_vain() })?;
                    break;
                }
            }
        }
        drop(progress);
        self.save()?;
        if self.record.step == total {
            tokio::select! {
                done = self.evaluate(material) => done?,
                () = &mut stopped => {
                    return Err(anyhow::anyhow!("interrupted while evaluating; the adapter is saved").into());
                }
            }
        }
        self.select()
    }

    /// Leaves the adapter that is wanted in the run's directory, where that of the last step is.
    fn select(&self) -> Result<(), CliError> {
        let (out, model, measured) = (&self.args.out, &self.files.adapted, self.journal.metrics());
        let card = |measured| notes::card(self.args, &self.record, self.material, measured);
        let Some(step) = self.best.step().filter(|_| self.args.report.select == Select::Best) else {
            // What was measured last was not known when it was saved.
            let described = self.adapter().describe(out, model, &card(measured.last.as_ref()));
            return Ok(described.map_err(Error::from)?);
        };
        let best = match step < self.record.step {
            true => Adapter::load(&out.join(BEST), model).map_err(Error::from)?,
            false => self.adapter(),
        };
        best.save_described(out, model, &card(measured.best.as_ref())).map_err(Error::from)?;
        self.output.emit(&Selected { step })
    }

    fn learning_rate(&self) -> LearningRate {
        let optimiser = &self.args.optimiser;
        LearningRate {
            peak: probe::peak(&self.record.settings).unwrap_or_else(|| self.args.lr()),
            schedule: optimiser.schedule(),
            warmup: optimiser.warmup(),
            total: self.record.total_steps,
        }
    }

    /// What was learnt is worth keeping whatever went wrong.
    fn stopped(&mut self, reason: Error) -> Result<(), CliError> {
        let step = self.record.step;
        // Why is the first thing that is asked, and a failure to write it down must not hide it.
        let _ = self.journal.happened(step);
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

    async fn evaluate(&mut self, material: &Material) -> Result<(), CliError> {
        let Some(eval) = &material.eval else { return Ok(()) };
        let score = self.tuner.evaluate(&eval.examples).await.map_err(Error::from)?;
        let step = self.record.step;
        let measured = Eval::new(step, &score, self.record.labels.as_ref());
        let measured = measured.context("the held-out data has no labels")?;
        let better = self.best.see(step, measured.loss);
        self.journal.measured(&measured, better)?;
        if better && self.args.report.select == Select::Best {
            let card = notes::card(self.args, &self.record, self.material, self.journal.metrics().best.as_ref());
            let saved = self.adapter().save_described(&self.args.out.join(BEST), &self.files.adapted, &card);
            saved.map_err(Error::from)?;
        }
        self.output.emit(&measured)?;
        let Some(sampler) = &self.sampler else { return Ok(()) };
        match sampler.samples(step, self.adapter().tables, &eval.examples).await {
            Ok(samples) => {
                self.journal.samples(&samples)?;
                self.output.emit(&samples)
            }
            // What is only looked at is nothing to end a run for.
            Err(error) => {
                tracing::warn!("--eval-generate: no texts after step {step}: {error:#}");
                Ok(())
            }
        }
    }

    /// The tables as they are.
    fn adapter(&self) -> Adapter {
        let (labels, tables) = (self.record.labels.clone(), self.tuner.judged().clone());
        Adapter::new(&self.files.adapted, tables, labels, self.rules, self.record.step)
    }

    /// Saves the training state and then the adapter: a run killed in between resumes and saves the adapter again.
    fn save(&self) -> Result<(), CliError> {
        let (out, tables) = (&self.args.out, self.tuner.tables());
        self.record.save(out, tables, self.tuner.optimizer(), self.tuner.aids()).map_err(Error::from)?;
        let card = notes::card(self.args, &self.record, self.material, self.journal.metrics().last.as_ref());
        self.adapter().save_described(out, &self.files.adapted, &card).map_err(Error::from)?;
        self.output.emit(&Saved { step: self.record.step })
    }
}
