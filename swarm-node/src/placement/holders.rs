//! Who holds blocks that this node would leave.
//!
//! Records are words. Before a server leaves blocks it asks others who say that they hold them for a few rows through the blocks that both have, made up
//! this moment, and compares their answers with its own. Who answers rightly has the weights, or somebody at hand who has: while answers are
//! waited for this node computes for nobody, so that it is not this node itself that answers through them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use petals_protocol::{
    ForwardRequest, Injection, PassLayout, Refusal, Request, Response, RowSource, RowTarget, ServerState, Span,
    TableSource, Tensor, WireDtype,
};
use petals_swarm::{DirectoryEntry, Party, PeerId, RequestStream, SwarmHandle};

use super::hosted::Hosted;
use crate::executor::{ExecutorHandle, Inputs, Output, Pass, Work};
use crate::lock::lock;

/// Rows of a question, in two texts.
const ROWS: usize = 8;
const TEXTS: [u32; 2] = [4, 4];
/// Rows that must be right. Where experts are chosen a score that is rounded otherwise may choose another one.
const RIGHT_ROWS: usize = 6;
/// Values of a question are up to this. Small, so that what the blocks add is larger than what enters: whoever returns what it is given is not near.
const SCALE: f32 = 0.02;
/// Servers that are asked at a time; two are wanted.
const MOST_ASKED: usize = 16;
/// Longest wait for a connection and its greeting, and for an answer. Meanwhile this node computes for nobody.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(3);
/// Longest wait for this node's own result, behind whatever others have asked it.
const OWN: Duration = Duration::from_secs(30);
/// How long a right answer counts: a move is confirmed after some seconds.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long somebody does not count who was silent, or wrong.
const SILENT: Duration = Duration::from_secs(600);
const WRONG: Duration = Duration::from_secs(3600);
/// Servers that are remembered.
const MOST_KNOWN: usize = 4096;

/// Asks others for what they say they hold, and remembers what came of it.
#[derive(Debug)]
pub(crate) struct Holders {
    swarm: SwarmHandle,
    hosted: Arc<Hosted>,
    executor: ExecutorHandle,
    known: Mutex<HashMap<PeerId, (Instant, Found)>>,
}

/// What was found out about a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It holds these blocks.
    Holds(Span),
    /// It does not hold what it claims, or is not there.
    Not,
}

/// What is asked, and what is right.
#[derive(Debug)]
struct Question {
    layout: PassLayout,
    rows: Vec<f32>,
    answer: Vec<f32>,
    hidden: usize,
}

impl Holders {
    /// Of whom nothing is known yet.
    pub(crate) fn new(swarm: SwarmHandle, hosted: Arc<Hosted>, executor: ExecutorHandle) -> Self {
        Self { swarm, hosted, executor, known: Mutex::default() }
    }

    /// What is known of a server now.
    pub(crate) fn found(&self, peer: &PeerId) -> Option<Found> {
        let now = Instant::now();
        lock(&self.known).get(peer).filter(|(until, _)| *until > now).map(|(_, found)| *found)
    }

    /// Asks those of `entries` that claim to hold and to keep blocks that this node would leave, as far as nothing is known of them.
    pub(crate) async fn ask(&self, entries: &[DirectoryEntry], here: Span, there: Span) {
        let local = self.swarm.local_peer();
        let left = |span: Span| span.blocks().any(|block| here.contains(block) && !there.contains(block));
        let mut asked: Vec<(&DirectoryEntry, Span)> = entries
            .iter()
            .filter(|entry| {
                entry.peer != local && entry.info.state == ServerState::Online && entry.info.moving_to.is_none()
            })
            .filter_map(|entry| Some((entry, entry.info.span.intersect(here)?)))
            .filter(|(entry, both)| left(*both) && self.found(&entry.peer).is_none())
            .collect();
        // Any of them, and not those whose ids or speeds come first.
        let order = RandomState::new();
        asked.sort_by_cached_key(|(entry, _)| order.hash_one(entry.peer));
        asked.truncate(MOST_ASKED);
        if asked.is_empty() {
            return;
        }
        let mut questions: HashMap<Span, Question> = HashMap::new();
        for (_, both) in &asked {
            if !questions.contains_key(both) {
                match self.question(*both).await {
                    Ok(question) => drop(questions.insert(*both, question)),
                    Err(error) => {
                        tracing::warn!("cannot check who else holds blocks {both}: {error}");
                        return;
                    }
                }
            }
        }
        let mut connecting = Vec::with_capacity(asked.len());
        for (entry, _) in &asked {
            connecting.push(self.connect(entry));
        }
        let streams = futures::future::join_all(connecting).await;
        let own = self.hosted.info().dtype;
        let results = {
            let _alone = self.executor.compute_for_nobody();
            let mut answers = Vec::with_capacity(asked.len());
            for ((_, both), stream) in asked.iter().zip(&streams) {
                answers.push(answer(questions.get(both), stream.as_ref(), &own));
            }
            futures::future::join_all(answers).await
        };
        for ((entry, both), result) in asked.into_iter().zip(results) {
            let (lasts, found) = match result {
                Ok(Verdict::Right) => (REMEMBERED, Found::Holds(both)),
                Ok(Verdict::Unknown) => continue,
                Ok(Verdict::Wrong(what)) => {
                    tracing::warn!(peer = %entry.peer, blocks = %both, what, "a server does not hold the blocks that it announces");
                    (WRONG, Found::Not)
                }
                Err(error) => {
                    tracing::info!(peer = %entry.peer, blocks = %both, error, "a server does not show that it holds its blocks");
                    (SILENT, Found::Not)
                }
            };
            self.remember(entry.peer, lasts, found);
        }
    }

    fn remember(&self, peer: PeerId, lasts: Duration, found: Found) {
        let (mut known, now) = (lock(&self.known), Instant::now());
        known.retain(|_, (until, _)| *until > now);
        if known.len() < MOST_KNOWN || known.contains_key(&peer) {
            known.insert(peer, (now + lasts, found));
        }
    }

    /// A question about blocks of this node, and its own answer.
    async fn question(&self, span: Span) -> Result<Question, String> {
        let hidden = self.executor.blocks().ok_or("no blocks are loaded")?.config().hidden_size;
        let (layout, rows) = (layout(span), made_up(ROWS * hidden));
        let now = Instant::now();
        let pass = Pass {
            party: Party::unplaced(self.swarm.local_peer()),
            stream: u64::MAX,
            layout: layout.clone(),
            work: Work::Forward { inputs: Inputs { text: rows.clone(), prefix: None, tables: None }, stash: None },
            rounded: false,
            arrived: now,
            deadline: now + OWN,
        };
        let result = self.executor.submit(pass).map_err(|refusal| refusal.to_string())?;
        let done = tokio::time::timeout(OWN, result).await.map_err(|_| "this node is too busy")?;
        let done = done.map_err(|_| "the pass was dropped")?.map_err(|refusal| refusal.to_string())?;
        let Output::Forward { text: answer, .. } = done.output else { return Err("no rows came back".to_owned()) };
        if answer.len() != rows.len() || !answer.iter().all(|value| value.is_finite()) {
            return Err("its own rows are of no use".to_owned());
        }
        Ok(Question { layout, rows, answer, hidden })
    }

    /// A stream to a server, greetings exchanged.
    async fn connect(&self, entry: &DirectoryEntry) -> Option<(RequestStream, String)> {
        let connected = async {
            let stream = self.swarm.open_stream(entry.peer, &entry.addresses, CONNECT).await.ok()?;
            let stream = RequestStream::new(stream);
            let hello = Request::Hello { model: self.hosted.model() };
            match stream.request(hello, Vec::new(), 0, CONNECT).await.ok()?.0 {
                Response::Welcome(_) => Some((stream, entry.info.dtype.clone())),
                _ => None,
            }
        };
        tokio::time::timeout(CONNECT, connected).await.ok()?
    }
}

/// What a server answers that was reached.
async fn answer(
    question: Option<&Question>,
    stream: Option<&(RequestStream, String)>,
    own: &str,
) -> Result<Verdict, String> {
    match (question, stream) {
        (Some(question), Some(stream)) => question.put_to(stream, own).await,
        _ => Err("not reached".to_owned()),
    }
}

/// What an answer says.
#[derive(Debug, PartialEq)]
enum Verdict {
    Right,
    /// It could not be asked now.
    Unknown,
    Wrong(String),
}

impl Question {
    async fn put_to(&self, (stream, dtype): &(RequestStream, String), own: &str) -> Result<Verdict, String> {
        let request = Request::Forward(ForwardRequest {
            layout: self.layout.clone(),
            tables: TableSource::Inline,
            stash: None,
            input: RowSource::Inline,
            output: RowTarget::Reply,
            reply_dtype: WireDtype::F32,
            deadline_ms: ANSWER.as_millis() as u32,
        });
        let shape = [ROWS, self.hidden];
        let rows = Tensor::from_f32(WireDtype::F32, &shape, &self.rows);
        let most = (size_of::<f32>() * self.rows.len()) as u64;
        match stream.request(request, vec![rows], most, ANSWER).await {
            Err(error) => Err(error.to_string()),
            Ok((Response::Refused(Refusal::Busy { .. } | Refusal::Draining | Refusal::WrongSpan { .. }), _)) => {
                Ok(Verdict::Unknown)
            }
            Ok((Response::Refused(refusal), _)) => Err(refusal.to_string()),
            Ok((Response::Forward(_), tensors)) => {
                let [tensor] = tensors.as_slice() else { return Ok(Verdict::Wrong("other tensors".to_owned())) };
                match tensor.to_f32("the rows", &shape) {
                    Ok(rows) => Ok(self.judge(&rows, tolerance(own).max(tolerance(dtype)))),
                    Err(error) => Ok(Verdict::Wrong(error.to_string())),
                }
            }
            Ok(_) => Ok(Verdict::Wrong("an answer to another question".to_owned())),
        }
    }

    /// Whether rows are right, within `tolerance` of what the blocks add to them: nobody who just returns the rows comes near.
    fn judge(&self, rows: &[f32], tolerance: f64) -> Verdict {
        let size = |one: &[f32], other: &[f32]| {
            one.iter().zip(other).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum::<f64>().sqrt()
        };
        let of_row = |row: usize| {
            let row = row * self.hidden..(row + 1) * self.hidden;
            size(&rows[row.clone()], &self.answer[row.clone()]) / size(&self.answer[row.clone()], &self.rows[row])
        };
        let mut apart: Vec<f64> = (0..ROWS).map(of_row).collect();
        apart.sort_by(f64::total_cmp);
        match apart[RIGHT_ROWS - 1] {
            most if most <= tolerance => Verdict::Right,
            most => {
                Verdict::Wrong(format!("rows differ by {most:.1e} of what the blocks add, {tolerance:.1e} is usual"))
            }
        }
    }
}

fn layout(span: Span) -> PassLayout {
    let lengths = TEXTS.to_vec();
    PassLayout {
        span,
        lengths,
        prefix_len: 0,
        injection: Injection::None,
        weights: Default::default(),
        read_rows: None,
    }
}

/// What computing in a dtype may do to a row, over many blocks, as a part of what they add to it. Whoever claims a coarse one is forgiven no more
/// than half.
fn tolerance(dtype: &str) -> f64 {
    match dtype {
        "f32" => 1e-2,
        "f16" => 5e-2,
        "int4" => 0.5,
        _ => 0.25,
    }
}

/// Values that nobody else can know.
fn made_up(count: usize) -> Vec<f32> {
    // The standard library asks the system for the keys of its hashes.
    let seed: Vec<u8> = (0u64..8).flat_map(|n| RandomState::new().hash_one(n).to_le_bytes()).collect();
    let mut bytes = vec![0; 4 * count];
    blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
    let value = |bytes: &[u8]| {
        let bits = bytes.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        (f64::from(bits) / f64::from(u32::MAX) * 2.0 - 1.0) as f32 * SCALE
    };
    bytes.chunks(4).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_weights_does_not_answer_rightly() {
        let hidden = 64;
        let rows = made_up(ROWS * hidden);
        assert_ne!(rows, made_up(ROWS * hidden));
        assert!(rows.iter().all(|value| value.abs() <= SCALE));
        let added = made_up(ROWS * hidden);
        let answer: Vec<f32> = rows.iter().zip(&added).map(|(x, y)| x + 3.0 * y).collect();
        let question = Question { layout: layout(Span::new(0, 2).unwrap()), rows: rows.clone(), answer, hidden };
        let right = question.answer.clone();
        assert_eq!(question.judge(&right, tolerance("f32")), Verdict::Right);
        let coarse: Vec<f32> = right.iter().map(|x| x * 1.02).collect();
        assert!(matches!(question.judge(&coarse, tolerance("f32")), Verdict::Wrong(_)));
        assert_eq!(question.judge(&coarse, tolerance("bf16")), Verdict::Right);
        let guesses = [rows, vec![0.0; right.len()], made_up(right.len()), right.iter().map(|x| -x).collect()];
        for guess in guesses {
            assert!(matches!(question.judge(&guess, tolerance("int4")), Verdict::Wrong(_)));
        }
        // A quarter of the rows may go another way.
        let mut flipped = right;
        flipped[..2 * hidden].iter_mut().for_each(|x| *x = -*x);
        assert_eq!(question.judge(&flipped, tolerance("f32")), Verdict::Right);
        flipped[..3 * hidden].fill(0.0);
        assert!(matches!(question.judge(&flipped, tolerance("f32")), Verdict::Wrong(_)));
    }
}
