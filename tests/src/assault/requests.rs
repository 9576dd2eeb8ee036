//! Attackers that ask a server for all that it gives, on as many streams as it lets them have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use petals_protocol::{
    ForwardRequest, Injection, NextServer, PassLayout, Refusal, RelayToken, Request, Response, RowSource, RowTarget,
    SessionId, SessionOpen, StepRequest, TableSource, Tensor, WireDtype,
};

use super::{Assault, Orders, whereabouts};
use crate::attacker::{AttackStream, Attacker};
use crate::load::Target;

/// Streams that each id tries to hold.
const STREAMS: usize = 16;
/// Streams of an id that sends the largest passes: each has one under way all the time.
const STREAMS_OF_PASSES: usize = 4;
/// How long streams are held on which nothing is asked.
const HELD: Duration = Duration::from_secs(20);
/// Pause before an attacker begins again, whatever the server did about it.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest text, which is what the tiny model has positions for.
const TEXT: u32 = 512;
/// Rows that a session of [`Assault::Mates`] begins with, and steps of one row that follow.
const FIRST_ROWS: u32 = 128;
const MATES_STEPS: u32 = 300;

/// One of many that attack: a number of its own, whom it is after, and who comes behind that one in a chain.
struct Id<'a> {
    number: usize,
    target: &'a Target,
    next: Option<Vec<u8>>,
    done: &'a AtomicU64,
}

/// Attacks until the process ends.
pub(super) async fn ask_for_all(
    number: usize,
    assault: Assault,
    orders: &Orders,
    done: &AtomicU64,
) -> anyhow::Result<()> {
    // Only of the first one is it known who comes behind it.
    let place = if assault == Assault::HandOvers { 0 } else { number % orders.targets.len() };
    let target = &orders.targets[place];
    let next = orders.targets.get(place + 1).map(whereabouts).transpose()?.map(|(peer, _)| peer.to_bytes());
    let id = Id { number, target, next, done };
    let attacker = Attacker::after(&orders.own, whereabouts(target)?, &target.model).await?;
    let mut told = false;
    loop {
        // A server that ends it is right to. An attack that gets nothing at all is none, so the first end is told.
        if let Err(error) = id.round(&attacker, assault).await
            && !std::mem::replace(&mut told, true)
        {
            eprintln!("{assault:?}, id {number} at {}: {error:#}", orders.own);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Id<'_> {
    /// All the streams that it gets, and on each of them what takes most.
    async fn round(&self, attacker: &Attacker, assault: Assault) -> anyhow::Result<()> {
        let wanted = if assault == Assault::Passes { STREAMS_OF_PASSES } else { STREAMS };
        let mut streams = Vec::new();
        while streams.len() < wanted {
            match attacker.greeted().await {
                Ok(stream) => streams.push(stream),
                Err(_) => break,
            }
        }
        anyhow::ensure!(!streams.is_empty(), "no stream");
        let rounds = streams.iter_mut().enumerate().map(async |(place, stream)| match assault {
            Assault::Claims => self.claims(stream).await,
            Assault::Waits => self.waits(stream, place).await,
            Assault::Sessions => self.sessions(stream).await,
            Assault::HandOvers => self.hand_overs(stream, place).await,
            Assault::Passes => self.passes(stream).await,
            Assault::Mates => self.mates(stream, place).await,
            _ => {
                self.count();
                let _ = tokio::time::timeout(HELD, stream.ended()).await;
                Ok(())
            }
        });
        futures::future::join_all(rounds).await.into_iter().collect()
    }

    fn count(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    async fn claims(&self, stream: &mut AttackStream) -> anyhow::Result<()> {
        let rows = self.most_rows(stream);
        stream.claim(&Request::Forward(self.forward(rows)), self.values(rows), 400).await?;
        self.count();
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stream.send_raw(&[0]).await?;
        }
        Ok(())
    }

    async fn waits(&self, stream: &mut AttackStream, place: usize) -> anyhow::Result<()> {
        for number in 0..stream.limits.max_in_flight {
            let input = RowSource::Relay(self.token(place, number));
            let request = ForwardRequest { input, deadline_ms: 600_000, ..self.forward(self.most_rows(stream)) };
            stream.send(number.into(), &Request::Forward(request), &[]).await?;
            self.count();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        Ok(())
    }

    async fn sessions(&self, stream: &mut AttackStream) -> anyhow::Result<()> {
        for session in 0..200 {
            if !matches!(self.step(stream, session, 0, 1).await?, Response::Forward(_)) {
                break;
            }
            self.count();
        }
        for position in 1..20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.step(stream, 0, position, 1).await?;
        }
        Ok(())
    }

    /// Half of the streams ask for rows to be passed on, the others bring rows that nobody waits for.
    async fn hand_overs(&self, stream: &mut AttackStream, place: usize) -> anyhow::Result<()> {
        for number in 0..stream.limits.max_in_flight {
            let token = self.token(place, number);
            match &self.next {
                Some(peer) if place.is_multiple_of(2) => {
                    let output = RowTarget::Relay(NextServer { peer: peer.clone(), token });
                    let request = ForwardRequest { output, ..self.forward(1) };
                    stream.send(number.into(), &Request::Forward(request), &[self.values(1)]).await?;
                }
                _ => stream.send(number.into(), &Request::Relay { token }, &[self.values(64)]).await?,
            }
            self.count();
        }
        // As long as rows are kept for whoever may ask for them.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }

    async fn passes(&self, stream: &mut AttackStream) -> anyhow::Result<()> {
        let rows = self.most_rows(stream);
        let (request, values) = (Request::Forward(self.forward(rows)), self.values(rows));
        loop {
            self.answered(stream.ask(&request, std::slice::from_ref(&values)).await?).await?;
        }
    }

    async fn mates(&self, stream: &mut AttackStream, place: usize) -> anyhow::Result<()> {
        for session in (place as u64..).step_by(STREAMS) {
            self.answered(self.step(stream, session, 0, FIRST_ROWS).await?).await?;
            for position in FIRST_ROWS..FIRST_ROWS + MATES_STEPS {
                let answer = self.step(stream, session, position, 1).await?;
                // It made room for somebody who has less, or had no room for a step, behind which none can go on.
                if matches!(answer, Response::Refused(Refusal::SessionGone | Refusal::BadRequest { .. })) {
                    break;
                }
                self.answered(answer).await?;
            }
        }
        Ok(())
    }

    /// Counts an answer. Who is told to come later does so.
    async fn answered(&self, answer: Response) -> anyhow::Result<()> {
        match answer {
            Response::Forward(_) => self.count(),
            Response::Refused(Refusal::Busy { retry_after_ms }) => {
                tokio::time::sleep(Duration::from_millis(retry_after_ms.into())).await;
            }
            other => anyhow::bail!("not an answer: {other:?}"),
        }
        Ok(())
    }

    /// A step of so many rows; at position 0 it opens the session.
    async fn step(&self, stream: &mut AttackStream, session: u64, start: u32, rows: u32) -> anyhow::Result<Response> {
        let open = (start == 0).then_some(SessionOpen { max_sequences: 1, max_positions: 4096 });
        let (session, starts) = (SessionId(session), vec![start]);
        let step = StepRequest { session, forward: self.forward(rows), starts, order: None, open };
        stream.ask(&Request::Step(Box::new(step)), &[self.values(rows)]).await
    }

    /// Rows of the largest request.
    fn most_rows(&self, stream: &AttackStream) -> u32 {
        let of_bytes = stream.limits.max_body / (4 * self.target.hidden as u64);
        of_bytes.min(stream.limits.max_rows.into()) as u32
    }

    /// A token that nobody else has.
    fn token(&self, place: usize, number: u32) -> RelayToken {
        let mut token = [0; 16];
        token[..4].copy_from_slice(&std::process::id().to_le_bytes());
        token[4..8].copy_from_slice(&(self.number as u32).to_le_bytes());
        token[8..12].copy_from_slice(&(place as u32).to_le_bytes());
        token[12..].copy_from_slice(&number.to_le_bytes());
        RelayToken(token)
    }

    fn forward(&self, rows: u32) -> ForwardRequest {
        let layout = PassLayout {
            span: self.target.span,
            lengths: (0..rows).step_by(TEXT as usize).map(|start| TEXT.min(rows - start)).collect(),
            prefix_len: 0,
            injection: Injection::None,
            weights: Default::default(),
            read_rows: Some(vec![rows.saturating_sub(1)]),
        };
        let (input, output, tables) = (RowSource::Inline, RowTarget::Reply, TableSource::Inline);
        ForwardRequest { layout, tables, stash: None, input, output, reply_dtype: WireDtype::F32, deadline_ms: 10_000 }
    }

    fn values(&self, rows: u32) -> Tensor {
        let shape = [rows as usize, self.target.hidden];
        Tensor::from_f32(WireDtype::F32, &shape, &vec![0.1; shape[0] * shape[1]])
    }
}
