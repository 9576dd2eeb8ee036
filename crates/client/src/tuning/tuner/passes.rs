//! One micro-batch through embedding, blocks, head and back, beside the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_model::{ClientModel, TopTokens};
use petals_swarm::PeerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::{Score, TuneError};
use crate::adapter::tables::PromptTables;
use crate::planner::Hop;
use crate::sequence::{HopTiming, PassGradients, PassInput, RemoteSequence, Trace};
use crate::tuning::batch::MicroBatch;
use crate::tuning::confusion::Confusion;
use crate::tuning::loss::TrainingLoss;
use crate::tuning::pacer::Measured;

/// Heads that compute at a time. Each uses every core, and one after the other the first backward begins sooner than side
/// by side.
const HEADS: usize = 1;

/// What the micro-batches of a batch share.
#[derive(Debug, Clone)]
pub(super) struct Passes {
    pub(super) sequence: Arc<RemoteSequence>,
    pub(super) model: Arc<ClientModel>,
    pub(super) tables: Option<Arc<PromptTables>>,
    /// Whether classes are learnt, and not next tokens.
    pub(super) class: bool,
    loss: TrainingLoss,
    under_way: Arc<Semaphore>,
    heads: Arc<Semaphore>,
}

/// Gradients of one micro-batch, of the loss's sum.
#[derive(Debug)]
pub(super) struct MicroGradients {
    pub(super) score: Score,
    pub(super) pass: PassGradients,
    pub(super) head: Option<Vec<f32>>,
    pub(super) measured: Measured,
    /// Who computed it.
    pub(super) peers: Vec<PeerId>,
    /// Who ran it forward.
    pub(super) hops: Vec<Hop>,
}

/// Loss of one micro-batch with its gradients at the rows read and at the score head, both of the sum over labels.
struct LocalLoss {
    score: Score,
    hidden_grad: Vec<f32>,
    head_grad: Option<Vec<f32>>,
}

impl Passes {
    /// Micro-batches through `sequence`, `in_flight` of them at a time.
    pub(super) fn new(
        sequence: Arc<RemoteSequence>,
        model: Arc<ClientModel>,
        tables: Option<Arc<PromptTables>>,
        class: bool,
        in_flight: usize,
    ) -> Self {
        let tables = tables.map(|tables| tables.entered(&model));
        let (under_way, heads) = (Arc::new(Semaphore::new(in_flight.max(1))), Arc::new(Semaphore::new(HEADS)));
        Self { sequence, model, tables, class, loss: TrainingLoss::default(), under_way, heads }
    }

    /// The same with another loss than a plain cross-entropy.
    pub(super) fn with_loss(self, loss: TrainingLoss) -> Self {
        Self { loss, ..self }
    }

    /// Waits for the place of one more micro-batch. It is free again when another has gone all the way: forwards never run
    /// ahead of backwards by more than the window.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.under_way.clone().acquire_owned().await.ok()
    }

    /// Forward, loss and backward. Gradients are multiplied by `scale`.
    pub(super) async fn train(self, micro: MicroBatch, scale: f32) -> Result<MicroGradients, TuneError> {
        let (started, tokens) = (Instant::now(), micro.tokens.len());
        let (output, trace) = self.forward(&micro, true).await?;
        let forward: Vec<(Hop, HopTiming)> = trace.hops().zip(trace.timings()).collect();
        let local = self.local_loss(micro, output, scale).await?;
        let pass = self.sequence.backward(trace, local.hidden_grad).await?;
        let measured = measured(tokens, started.elapsed(), &forward, &pass.timings);
        let peers = forward.iter().chain(&pass.timings).map(|(hop, _)| hop.peer).collect();
        let hops = forward.iter().map(|(hop, _)| *hop).collect();
        Ok(MicroGradients { score: local.score, pass, head: local.head_grad, measured, peers, hops })
    }

    /// Forward and loss, and who computed it.
    pub(super) async fn evaluate(self, micro: MicroBatch) -> Result<(Score, Vec<PeerId>), TuneError> {
        let (output, trace) = self.forward(&micro, false).await?;
        let peers = trace.hops().map(|hop| hop.peer).collect();
        Ok((self.local_loss(micro, output, 1.0).await?.score, peers))
    }

    /// The `k` tokens that are taken for each label, who computed it, and how many tokens went through.
    pub(super) async fn top_tokens(
        self,
        micro: MicroBatch,
        k: usize,
    ) -> Result<(TopTokens, Vec<PeerId>, usize), TuneError> {
        let (output, trace) = self.forward(&micro, false).await?;
        let peers = trace.hops().map(|hop| hop.peer).collect();
        let _turn = self.heads.acquire().await;
        let model = self.model.clone();
        let top = tokio::task::spawn_blocking(move || model.top_tokens(&output, k)).await??;
        Ok((top, peers, micro.tokens.len()))
    }

    async fn forward(&self, micro: &MicroBatch, keep: bool) -> Result<(Vec<f32>, Trace), TuneError> {
        let input = PassInput {
            lengths: micro.lengths.clone(),
            // A copy of a few rows for each token: nothing that others would notice on this thread.
            text: self.model.embed(&micro.tokens)?,
            read_rows: Some(micro.read_rows.clone()),
            tables: self.tables.clone(),
        };
        Ok(self.sequence.forward_one_of_many(input, keep).await?)
    }

    /// Head and loss on a thread of their own, while other micro-batches are on their way.
    async fn local_loss(&self, micro: MicroBatch, hidden: Vec<f32>, scale: f32) -> Result<LocalLoss, TuneError> {
        let _turn = self.heads.acquire().await;
        let (model, tables, class, loss) = (self.model.clone(), self.tables.clone(), self.class, self.loss.clone());
        tokio::task::spawn_blocking(move || {
            let (labels, tokens, rules) = (&micro.labels, micro.tokens.len(), loss.rules(class));
            let mut local = if class {
                let head = tables.as_ref().and_then(|tables| tables.score()).ok_or(TuneError::NoScoreHead)?;
                let loss = model.class_loss(&hidden, head, labels, rules)?;
                let confusion = Confusion::of(labels, &loss.logits);
                let correct = confusion.correct() as usize;
                let score = Score { loss_sum: loss.loss_sum, correct, labels: labels.len(), tokens, confusion };
                LocalLoss { score, hidden_grad: loss.hidden_grad, head_grad: Some(loss.score_grad) }
            } else {
                let loss = match &micro.taught {
                    Some(taught) => model.distillation_loss(&hidden, labels, taught)?,
                    None => model.lm_loss(&hidden, labels, rules)?,
                };
                let confusion = Confusion::default();
                let score =
                    Score { loss_sum: loss.loss_sum, correct: loss.correct, labels: labels.len(), tokens, confusion };
                LocalLoss { score, hidden_grad: loss.grad, head_grad: None }
            };
            local.hidden_grad.iter_mut().chain(local.head_grad.iter_mut().flatten()).for_each(|g| *g *= scale);
            Ok(local)
        })
        .await?
    }
}

/// What the pacer learns: each hop's computation both ways, and the whole without what was waited for others.
fn measured(tokens: usize, elapsed: Duration, forward: &[(Hop, HopTiming)], backward: &[(Hop, HopTiming)]) -> Measured {
    let back = |hop| backward.iter().find(|(other, _)| *other == hop).map_or(Duration::ZERO, |(_, t)| t.computed);
    let hops = forward.iter().map(|(hop, timing)| (hop.span, timing.computed + back(*hop))).collect();
    let queued: Duration = forward.iter().chain(backward).map(|(_, timing)| timing.queued).sum();
    Measured { tokens, hops, cycle: elapsed.saturating_sub(queued) }
}

/// A task that ends when nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    /// `place` is given back when the work is done.
    pub(super) fn spawn(place: Option<OwnedSemaphorePermit>, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(async move {
            let _place = place;
            work.await
        }))
    }

    pub(super) async fn join(mut self) -> Result<T, tokio::task::JoinError> {
        (&mut self.0).await
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
