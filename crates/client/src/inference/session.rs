//! Inference sessions over a chain of servers, which keep keys and values of what they have seen.
//!
//! Rows go from server to server, and only the last one answers with any (`pushed`): the client keeps what enters block 0, from which
//! all caches can be built again. Where two servers do not reach each other, rows go through the client, which then keeps what enters
//! each hop and builds the cache of a replacement alone. Whoever reads the outputs notices nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use petals_protocol::{Injection, PassLayout, Refusal, Request, SessionId, SessionOpen, Span, WeightChange};

use crate::adapter::tables::PromptTables;
use crate::planner::Hop;
use crate::sequence::{HopTiming, RemoteSequence, SequenceError, Way};
use crate::servers::exchange::{Ends, Flow, HopInput, StepPart};
use crate::servers::hop::{HopConnection, HopError};
use crate::servers::peers::{Measurement, PassSize};
use crate::servers::retry::Retry;

mod chunk;
mod local;
mod pushed;
mod whole;

use chunk::{Chunk, Wanted};
use local::LocalCaches;

/// Sequences in progress, all behind the same prompts.
#[derive(Debug)]
pub struct InferenceSession {
    sequence: Arc<RemoteSequence>,
    tables: Option<Arc<PromptTables>>,
    cache_salt: u32,
    limits: SessionOpen,
    hops: Vec<SessionHop>,
    /// Of the blocks that are not asked of servers.
    local: Option<LocalCaches>,
    /// What entered the span that begins at a block, for the spans of the hops and for the local blocks.
    inputs: BTreeMap<u32, Inputs>,
    /// Text positions of each sequence.
    lengths: Vec<usize>,
    timings: Vec<(Hop, HopTiming)>,
    /// What each hop of a chain took when it last answered, which may be after its step.
    recent: Arc<Mutex<HashMap<Hop, Measurement>>>,
}

/// Hidden states in front of a span.
#[derive(Debug, Default)]
struct Inputs {
    /// Of each sequence's text, `[positions, hidden]`.
    rows: Vec<Vec<f32>>,
    prefix: Option<Vec<f32>>,
}

#[derive(Debug)]
struct SessionHop {
    hop: Hop,
    /// What the server has; nothing before its first step.
    open: Option<OpenHop>,
}

/// A session on a server. Dropping it ends it there.
#[derive(Debug)]
struct OpenHop {
    connection: Arc<HopConnection>,
    id: SessionId,
    /// Text positions of each sequence that the server has, in the session's order at the time of its last step.
    known: Vec<usize>,
    /// Which of those sequences each of the session's continues, if that has changed since.
    order: Option<Vec<u32>>,
}

impl Drop for OpenHop {
    fn drop(&mut self) {
        self.connection.notify(Request::EndSession { session: self.id });
    }
}

impl OpenHop {
    /// Positions of each of the session's sequences that the server has.
    fn kept(&self, sequence: usize) -> usize {
        let from = self.order.as_ref().map_or(sequence, |order| order[sequence] as usize);
        self.known.get(from).copied().unwrap_or_default()
    }
}

impl InferenceSession {
    /// A session of `sequences` empty sequences that may grow to `max_tokens` text positions each. Nothing is asked of any server
    /// before the first step. Pages that servers keep of how it begins are for sessions with this salt.
    pub fn new(
        sequence: Arc<RemoteSequence>,
        tables: Option<Arc<PromptTables>>,
        cache_salt: u32,
        sequences: usize,
        max_tokens: usize,
    ) -> Self {
        let prefix = tables.as_ref().map_or(0, |tables| tables.shape().prefix_len);
        let bounded = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let limits = SessionOpen { max_sequences: bounded(sequences), max_positions: bounded(max_tokens + prefix) };
        let first = Inputs {
            rows: vec![Vec::new(); sequences],
            prefix: tables.as_ref().filter(|tables| tables.carries_prefix()).map(|tables| tables.input().to_vec()),
        };
        let inputs = BTreeMap::from([(sequence.blocks().start(), first)]);
        let local = sequence.config().local.clone().map(LocalCaches::new);
        let (hops, timings, lengths, recent) = (Vec::new(), Vec::new(), vec![0; sequences], Arc::default());
        Self { sequence, tables, cache_salt, limits, hops, local, inputs, lengths, timings, recent }
    }

    /// Text positions of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The hops of the last step and how long each took. In a chain the answer of a hop in front may come after the step; it then
    /// stands here after the next one.
    pub fn timings(&self) -> &[(Hop, HopTiming)] {
        &self.timings
    }

    /// Forgets what is behind the first `lengths[i]` positions of sequence `i`.
    pub fn rollback(&mut self, lengths: &[usize]) {
        for (length, &kept) in self.lengths.iter_mut().zip(lengths) {
            *length = (*length).min(kept);
        }
    }

    /// Sequence `i` goes on from what sequence `order[i]` was; numbers that do not exist are left out.
    pub fn reorder(&mut self, order: &[u32]) {
        self.settle();
        let order: Vec<u32> = order.iter().copied().filter(|&from| (from as usize) < self.lengths.len()).collect();
        self.lengths = order.iter().map(|&from| self.lengths[from as usize]).collect();
        for inputs in self.inputs.values_mut() {
            inputs.rows = order.iter().map(|&from| inputs.rows[from as usize].clone()).collect();
        }
        if let Some(local) = &mut self.local {
            local.reorder(&order);
        }
        for open in self.hops.iter_mut().filter_map(|hop| hop.open.as_mut()) {
            let before = open.order.take();
            let from = |&from: &u32| before.as_ref().map_or(from, |before| before[from as usize]);
            open.order = Some(order.iter().map(from).collect());
        }
    }

    /// Runs new rows through all blocks: `lengths[i]` (0 or more) of sequence `i`, packed in `text` `[new rows, hidden]`. Returns the
    /// output of those that `read` names, ascending, `[read, hidden]`.
    ///
    /// # Errors
    /// See [`SequenceError`]; a server's failure is not an error. After an error the session is as before.
    pub async fn step(&mut self, text: &[f32], lengths: &[usize], read: &[u32]) -> Result<Vec<f32>, SequenceError> {
        self.settle();
        let (hidden, blocks) = (self.sequence.hidden(), self.sequence.served());
        let target: Vec<usize> = self.lengths.iter().zip(lengths).map(|(old, new)| old + new).collect();
        let mut rest = text;
        if let Some(first) = self.inputs.get_mut(&self.sequence.blocks().start()) {
            for (rows, &new) in first.rows.iter_mut().zip(lengths) {
                let (own, others) = rest.split_at((new * hidden).min(rest.len()));
                rows.extend_from_slice(own);
                rest = others;
            }
        }
        let read = self.positions(lengths, read);
        self.timings.clear();
        if self.sequence.config().verify > 0.0 {
            let output = self.run_whole(&target, &read).await?;
            self.lengths = target;
            return Ok(output);
        }
        self.enter(&target).await?;
        let mut retry = Retry::new(self.sequence.config().give_up_after);
        let way = Way { relay: self.sequence.config().relay, purpose: None };
        if self.hops.is_empty() {
            let hops = self.sequence.plan(blocks, self.pass(), way, &mut retry).await?;
            self.hops.extend(hops.into_iter().map(|hop| SessionHop { hop, open: None }));
        }
        if let Some(output) = self.push(&target, &read, way, &mut retry).await? {
            self.lengths = target;
            return Ok(output);
        }
        let (mut number, mut at) = (0, blocks.start());
        let mut output = Vec::new();
        while let Ok(rest) = Span::new(at, blocks.end()) {
            let Some(hop) = self.hops.get(number).map(|hop| hop.hop) else {
                let hops = self.sequence.plan(rest, self.pass(), Way::STAR, &mut retry).await?;
                self.hops.extend(hops.into_iter().map(|hop| SessionHop { hop, open: None }));
                continue;
            };
            let next = hop.span.end();
            let last = next == blocks.end();
            let (wanted, prefix) = if last { (read.clone(), false) } else { self.wanted_at(next, &target) };
            match self.feed(number, &target, &wanted, prefix, last).await {
                Ok((rows, _)) if last => output = rows.concat(),
                Ok((rows, prefix)) => self.keep(next, rows, prefix),
                Err(error) => {
                    // A server that dropped an idle session is as good as before.
                    if let HopError::Refused(Refusal::SessionGone) = error
                        && let Some(wait) = retry.next_wait(Instant::now())
                    {
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    self.sequence.recover(self.pass(), hop, error, &mut retry).await?;
                    let hops = self.sequence.plan(hop.span, self.pass(), Way::STAR, &mut retry).await?;
                    if hops == [hop] {
                        continue;
                    }
                    self.hops.splice(number..=number, hops.into_iter().map(|hop| SessionHop { hop, open: None }));
                    continue;
                }
            }
            retry = Retry::new(self.sequence.config().give_up_after);
            (number, at) = (number + 1, next);
        }
        self.lengths = target;
        Ok(output)
    }

    /// Undoes what a failed step or a rollback left behind.
    fn settle(&mut self) {
        let hidden = self.sequence.hidden();
        let begins: Vec<u32> = self.hops.iter().map(|hop| hop.hop.span.start()).collect();
        let first = self.sequence.served().start();
        self.inputs.retain(|block, _| *block <= first || begins.contains(block));
        for inputs in self.inputs.values_mut() {
            for (rows, &length) in inputs.rows.iter_mut().zip(&self.lengths) {
                rows.truncate(length * hidden);
            }
        }
    }

    /// Positions of the rows that are read, by sequence.
    fn positions(&self, new: &[usize], read: &[u32]) -> Wanted {
        let (mut first, mut read) = (0, read.iter().map(|&row| row as usize).peekable());
        let of_sequence = |(&new, &old): (&usize, &usize)| {
            let end = first + new;
            let own: Vec<usize> =
                std::iter::from_fn(|| read.next_if(|row| *row < end)).map(|row| old + row - first).collect();
            first = end;
            own
        };
        new.iter().zip(&self.lengths).map(of_sequence).collect()
    }

    /// What is missing in front of the span that begins at `block`, and whether its prefix is.
    fn wanted_at(&self, block: u32, target: &[usize]) -> (Wanted, bool) {
        let (known, hidden) = (self.inputs.get(&block), self.sequence.hidden());
        let have =
            |sequence: usize| known.and_then(|inputs| inputs.rows.get(sequence)).map_or(0, |rows| rows.len() / hidden);
        let wanted = target.iter().enumerate().map(|(sequence, &target)| (have(sequence)..target).collect()).collect();
        let carries = self.tables.as_ref().is_some_and(|tables| tables.carries_prefix());
        (wanted, carries && known.is_none_or(|inputs| inputs.prefix.is_none()))
    }

    fn keep(&mut self, block: u32, rows: Vec<Vec<f32>>, prefix: Option<Vec<f32>>) {
        let inputs = self.inputs.entry(block).or_default();
        inputs.rows.resize(rows.len(), Vec::new());
        inputs.rows.iter_mut().zip(rows).for_each(|(kept, new)| kept.extend(new));
        inputs.prefix = prefix.or(inputs.prefix.take());
    }

    fn prefix_rows(&self) -> usize {
        self.tables.as_ref().map_or(0, |tables| tables.shape().prefix_len)
    }

    /// What most steps are: a row of each sequence.
    fn pass(&self) -> PassSize {
        self.sequence.pass_size(self.lengths.len())
    }

    /// Brings a hop's server to `target`, and returns the outputs of the positions wanted, by sequence, and of the prefix.
    async fn feed(
        &mut self,
        number: usize,
        target: &[usize],
        wanted: &Wanted,
        prefix_wanted: bool,
        last: bool,
    ) -> Result<(Vec<Vec<f32>>, Option<Vec<f32>>), HopError> {
        let (hop, hidden) = (self.hops[number].hop, self.sequence.hidden());
        // A server has the keys and values of what it has seen, but not the outputs any more.
        let enough = |open: &OpenHop| {
            let begins = wanted.iter().enumerate();
            open.connection.is_open()
                && !prefix_wanted
                && begins
                    .filter_map(|(s, wanted)| Some(*wanted.first()? >= open.kept(s).min(self.lengths[s])))
                    .all(|enough| enough)
        };
        // Who gives up on the way drops it, which ends it on the server.
        let open = self.hops[number].open.take().filter(enough);
        let fresh = open.is_none();
        let mut open = match open {
            Some(open) => open,
            None => self.new_session(&self.sequence.connection(hop.peer).await?),
        };
        let mut known: Vec<usize> =
            (0..target.len()).map(|sequence| open.kept(sequence).min(self.lengths[sequence])).collect();
        let (mut outputs, mut prefix) = (vec![Vec::new(); target.len()], None);
        let mut timing = HopTiming::default();
        while known.iter().zip(target).any(|(known, target)| known < target) {
            let lengths = chunk::next(&known, target);
            let opening = fresh && known.iter().all(|&known| known == 0);
            let chunk = Chunk { known: &known, lengths: &lengths, wanted, whole: opening && prefix_wanted && !last };
            let layout = self.layout(hop, opening, last, &chunk);
            let flow = self.flow(&layout, &chunk);
            let input = hop_input(&self.sequence, self.tables.as_ref(), layout, Some(&flow), Ends::default());
            let pass = self.sequence.pass_size(lengths.iter().sum::<usize>() + input.layout.prefix_len as usize);
            let asked = input.step(&open.connection, self.part(&open, opening, &known));
            let answer = match self.sequence.unless_late(hop, pass, asked).await {
                Ok(answer) => answer,
                Err(error) => {
                    // A server that is only busy still has what it had.
                    let busy = matches!(error, HopError::Refused(Refusal::Busy { .. }));
                    if busy && !opening && open.order.is_none() {
                        self.hops[number].open = Some(open);
                    }
                    return Err(error);
                }
            };
            self.sequence.succeeded(hop.peer, answer.measured);
            let flow = answer.output.ok_or_else(|| HopError::BadReply("no output".into()))?;
            chunk.collect(&flow.text, hidden, &mut outputs);
            prefix = prefix.or(flow.prefix);
            timing.add(answer.measured.into());
            known.iter_mut().zip(&lengths).for_each(|(known, rows)| *known += rows);
            (open.known, open.order) = (known.clone(), None);
        }
        self.hops[number].open = Some(open);
        self.timings.push((hop, timing));
        Ok((outputs, prefix))
    }

    /// Layout of a chunk.
    fn layout(&self, hop: Hop, opening: bool, last: bool, chunk: &Chunk<'_>) -> PassLayout {
        let tables = self.tables.as_ref().filter(|_| opening);
        PassLayout {
            span: hop.span,
            lengths: chunk.lengths.iter().map(|&rows| rows as u32).collect(),
            prefix_len: tables.map_or(0, |tables| tables.shape().prefix_len as u32),
            injection: tables.map_or(Injection::None, |tables| tables.shape().injection),
            weights: tables.map_or(WeightChange::None, |tables| tables.shape().weights),
            read_rows: chunk.read_rows(last),
        }
    }

    /// Rows of a chunk in front of a span whose inputs are known.
    fn flow(&self, layout: &PassLayout, chunk: &Chunk<'_>) -> Flow {
        let hidden = self.sequence.hidden();
        let inputs = self.inputs.get(&layout.span.start());
        let mut text = Vec::with_capacity(layout.tokens() * hidden);
        for (sequence, (&start, &rows)) in chunk.known.iter().zip(chunk.lengths).enumerate() {
            let all = inputs.and_then(|inputs| inputs.rows.get(sequence)).map_or(&[][..], Vec::as_slice);
            text.extend_from_slice(all.get(start * hidden..(start + rows) * hidden).unwrap_or_default());
        }
        let prefix = inputs.and_then(|inputs| inputs.prefix.clone()).filter(|_| layout.carries_prefix());
        Flow { text: text.into(), prefix }
    }

    /// A session that no server knows yet.
    fn new_session(&self, connection: &Arc<HopConnection>) -> OpenHop {
        let known = vec![0; self.lengths.len()];
        OpenHop { connection: connection.clone(), id: self.sequence.session_id(self.cache_salt), known, order: None }
    }

    /// What makes a request one of a server's session.
    fn part(&self, open: &OpenHop, opening: bool, known: &[usize]) -> StepPart {
        StepPart {
            session: open.id,
            starts: known.iter().map(|&start| start as u32).collect(),
            order: open.order.clone(),
            open: opening.then_some(self.limits),
        }
    }
}

fn hop_input<'a>(
    sequence: &RemoteSequence,
    tables: Option<&'a Arc<PromptTables>>,
    layout: PassLayout,
    flow: Option<&'a Flow>,
    ends: Ends,
) -> HopInput<'a> {
    let config = sequence.config();
    let (hidden, dtype, patience) = (sequence.hidden(), config.wire_dtype, config.request_timeout);
    HopInput { layout, flow, ends, tables, hidden, dtype, patience }
}
