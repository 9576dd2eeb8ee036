//! From an accepted request to its answer: wait for rows that another server sends, compute, pass rows on.

use std::sync::Arc;
use std::time::Instant;

use petals_protocol::{Handover, Refusal, Response, Tensor};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use super::relay::{Delivery, Expected, Next};
use super::request::{Asked, Asker, Encoded, ReplyShape, micros};
use super::service::StreamService;
use crate::executor::Done;
use crate::machine::budget::{PartyBudget, Reserved};

/// A response with its tensors.
pub(crate) type Answer = (Response, Vec<Tensor>);

type Computed = tokio::sync::oneshot::Receiver<Result<Done, Refusal>>;

/// A request that is being worked on.
#[derive(Debug)]
pub(crate) struct Job {
    service: Arc<StreamService>,
    asker: Asker,
    stage: Stage,
    reply: ReplyShape,
    next: Option<Next>,
}

#[derive(Debug)]
enum Stage {
    /// In the executor's queue, or beyond.
    Queued(Computed),
    /// Waits for its rows, and takes no place in any queue. Most passes never do.
    Waiting(Box<(Expected, Asked, PartyBudget)>),
}

impl Job {
    /// Queues the pass, or begins to wait for its rows. Not async, so that passes are queued in the order of a stream.
    /// The memory of its reply is taken from `memory` where it was not before.
    pub(crate) fn begin(
        service: Arc<StreamService>,
        asker: Asker,
        memory: &PartyBudget,
        asked: Asked,
    ) -> Result<Self, Refusal> {
        let (reply, next) = (asked.reply.clone(), asked.next.clone());
        let stage = match asked.awaits {
            Some(token) => Stage::Waiting(Box::new((service.rendezvous.expect(token)?, asked, memory.clone()))),
            None => Stage::Queued(service.executor.submit(asked.into_pass(asker))?),
        };
        Ok(Self { service, asker, stage, reply, next })
    }

    /// The answer, and its memory where that was not known before; `None` if nobody waits for one any more. `closing` ends the wait for rows.
    pub(crate) async fn answer(self, closing: CancellationToken) -> Option<(Answer, Option<Reserved>)> {
        let Self { service, asker, stage, reply, next } = self;
        let (mut rows_of_another, mut room) = (None, None);
        let computed = match stage {
            Stage::Queued(computed) => computed,
            Stage::Waiting(waiting) => {
                let (mut expected, asked, memory) = *waiting;
                let delivery = tokio::select! {
                    () = closing.cancelled() => return None,
                    delivery = timeout_at(asker.deadline.into(), expected.delivery()) => delivery.ok()??,
                };
                match fill_and_submit(&service, asker, &memory, asked, delivery) {
                    Ok((computed, memory, of_reply)) => {
                        (rows_of_another, room) = (Some(memory), Some(of_reply));
                        computed
                    }
                    Err(refusal) => return Some((refused(refusal), None)),
                }
            }
        };
        // A dropped sender means that the deadline passed before the work began.
        let done = computed.await.ok()?;
        // Two servers that pass rows to each other must not keep the other's share while they wait for their own.
        drop(rows_of_another);
        let encoded = match done {
            Ok(done) => reply.encode(done),
            Err(refusal) => return Some((refused(refusal), room)),
        };
        let answer = match next {
            None => {
                let Encoded { response, mut rows, rest } = encoded;
                rows.extend(rest);
                (response, rows)
            }
            Some(next) => pass_on(&service, asker, &next, encoded).await,
        };
        Some((answer, room))
    }
}

/// Takes rows that arrived, if they are what the request needs. Their memory is the sender's until the pass is done; that of the reply is taken now.
fn fill_and_submit(
    service: &StreamService,
    asker: Asker,
    memory: &PartyBudget,
    mut asked: Asked,
    mut delivery: Delivery,
) -> Result<(Computed, Reserved, Reserved), Refusal> {
    let (held, decoded) = (delivery.memory.bytes(), delivery.tensors.iter().map(Tensor::f32_bytes).sum::<u64>());
    let grown = delivery.memory.grow(decoded.saturating_sub(held), 0);
    let room = grown.map_err(|no_room| service.no_room(no_room, decoded));
    let room = room.and_then(|()| service.room_for_reply(memory, asked.reply_bytes(), 0));
    let room = match room {
        Ok(room) => room,
        Err(refusal) => {
            delivery.refuse(refusal.clone());
            return Err(refusal);
        }
    };
    if let Err(refusal) = asked.fill(&delivery.tensors, service.hosted.widths) {
        // The client did nothing wrong, and the sender should know what it did.
        let what = refusal.to_string();
        delivery.refuse(refusal);
        return Err(Refusal::BadRelay { what });
    }
    // The time before is not this server's.
    let asker = Asker { arrived: Instant::now(), ..asker };
    match service.executor.submit(asked.into_pass(asker)) {
        Ok(computed) => Ok((computed, delivery.accept(), room)),
        Err(refusal) => {
            delivery.refuse(refusal.clone());
            Err(refusal)
        }
    }
}

async fn pass_on(service: &StreamService, asker: Asker, next: &Next, mut encoded: Encoded) -> Answer {
    let started = Instant::now();
    let Some(links) = &service.links else {
        return refused(Refusal::NextUnreachable { what: "this server passes nothing on".into() });
    };
    let patience = asker.deadline.saturating_duration_since(started);
    match links.pass_on(asker.party, next, std::mem::take(&mut encoded.rows), patience).await {
        Ok(bytes) => {
            service.speed.handed_over(bytes, started.elapsed());
            encoded.passed_on(Handover { us: micros(started.elapsed()), bytes });
            (encoded.response, encoded.rest)
        }
        Err(error) => {
            tracing::debug!(peer = %next.peer, %error, "rows not passed on");
            refused(Refusal::NextUnreachable { what: error.to_string() })
        }
    }
}

/// A refusal as an answer.
pub(crate) fn refused(refusal: Refusal) -> Answer {
    (Response::Refused(refusal), Vec::new())
}
