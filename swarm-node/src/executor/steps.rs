//! Steps of inference sessions, those of several sessions as one batch.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use petals_model::{BlockStack, CachedPrefix, CachedRows, PAGE_TOKENS, PassError, SpanTables, StepSize};
use petals_protocol::{PassLayout, Refusal, SessionOpen, WeightChange};
use petals_swarm::Party;

use super::compute::{Compute, refusal};
use super::memory::SessionMemory;
use super::pass::{Inputs, Tables};
use super::prefixes::{Opening, PrefixKey, Prefixes};
use super::sessions::{Session, SessionKey, SessionStore};
use crate::lock::lock;

/// New rows of one session; see [`petals_protocol::StepRequest`].
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) key: SessionKey,
    pub(crate) party: Party,
    pub(crate) layout: PassLayout,
    pub(crate) inputs: Inputs,
    pub(crate) starts: Vec<u32>,
    pub(crate) order: Option<Vec<u32>>,
    pub(crate) open: Option<SessionOpen>,
}

/// Hidden states behind the span: of the rows that are read, `[output_rows, hidden]`, and of the prefix if the layout returns it.
#[derive(Debug)]
pub(crate) struct Stepped {
    pub(crate) text: Vec<f32>,
    pub(crate) prefix: Option<Vec<f32>>,
}

/// A session that is being worked on, and its step's rows.
struct Ready {
    number: usize,
    key: SessionKey,
    /// Of the rows that are computed.
    layout: PassLayout,
    session: Session,
    text: Vec<f32>,
    prefix: Option<Vec<f32>>,
    opening: Option<Opened>,
}

/// What a new session of one sequence has to do with others that begin like it.
struct Opened {
    key: PrefixKey,
    /// All rows of the step.
    text: Vec<f32>,
    /// Those that are read.
    read: Option<Vec<u32>>,
    /// Rows that were known, and what is behind them.
    rows: usize,
    behind: Vec<Option<Vec<f32>>>,
}

/// Runs `steps`, all of one span, and answers each. The rows of all go through the blocks together; whoever's rows fail, fails
/// alone.
pub(crate) fn run(
    compute: &Compute<'_>,
    store: &Mutex<SessionStore>,
    prefixes: &Mutex<Prefixes>,
    steps: Vec<Step>,
) -> Vec<Result<Stepped, Refusal>> {
    let mut results: Vec<Option<Result<Stepped, Refusal>>> = steps.iter().map(|_| None).collect();
    // Those that fit into the memory of a pass together.
    let mut batches: Vec<(Vec<Ready>, Vec<StepSize>)> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        let (key, opening) = (step.key, step.open.is_some());
        let fits = compute.check_memory(compute.activation_bytes(&step.layout));
        let ready = fits.and_then(|()| prepare(compute, store, prefixes, number, step));
        let ready = ready.and_then(|ready| {
            let alone = compute.check_memory(compute.step_bytes(ready.session.span, &ready.sizes()));
            match alone {
                Ok(()) => Ok(ready),
                Err(refusal) => {
                    // One that was to be opened was not.
                    if !opening {
                        lock(store).put(key, ready.session, Instant::now());
                    }
                    Err(refusal)
                }
            }
        });
        match ready {
            Ok(ready) => {
                let (span, sizes) = (ready.session.span, ready.sizes());
                let room = batches.last_mut().filter(|(_, others)| {
                    let together = [others.as_slice(), &sizes].concat();
                    compute.check_memory(compute.step_bytes(span, &together)).is_ok()
                });
                match room {
                    Some((batch, others)) => {
                        batch.push(ready);
                        others.extend(sizes);
                    }
                    None => batches.push((vec![ready], sizes)),
                }
            }
            Err(refusal) => {
                if opening {
                    lock(store).abandon(key);
                }
                results[number] = Some(Err(refusal));
            }
        }
    }
    for (batch, _) in batches {
        for (number, result) in run_batch(compute, store, prefixes, batch) {
            results[number] = Some(result);
        }
    }
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(failed()))).collect()
}

/// Runs what fits together; whoever's rows fail, fails alone. The results by the steps' numbers.
fn run_batch(
    compute: &Compute,
    store: &Mutex<SessionStore>,
    prefixes: &Mutex<Prefixes>,
    mut ready: Vec<Ready>,
) -> Vec<(usize, Result<Stepped, Refusal>)> {
    let blocks = &compute.blocks;
    // Rows that have the same tables are one product if they lie side by side.
    ready.sort_by_key(|ready| ready.session.tables.as_ref().map(Arc::as_ptr).map(<*const SpanTables>::addr));
    let together = if ready.len() > 1 { step(blocks, &mut ready) } else { Err(None) };
    if let Ok(outputs) = together {
        let finished = ready.into_iter().zip(outputs);
        return finished
            .map(|(ready, text)| (ready.number, Ok(finish(compute, store, prefixes, ready, text))))
            .collect();
    }
    // Nothing has changed; one by one it shows whose rows are the matter.
    let mut results = Vec::with_capacity(ready.len());
    for one in ready {
        let (number, key, mut alone) = (one.number, one.key, [one]);
        let result = step(blocks, &mut alone);
        let [one] = alone;
        results.push((
            number,
            match result {
                Ok(outputs) => {
                    let text = outputs.into_iter().next().unwrap_or_default();
                    Ok(finish(compute, store, prefixes, one, text))
                }
                Err(error) => {
                    lock(store).abandon(key);
                    Err(error.map_or_else(failed, refusal))
                }
            },
        ));
    }
    results
}

fn failed() -> Refusal {
    Refusal::Internal { what: "the step was not computed".into() }
}

/// Opens or finds the session, and brings its sequences to where the step begins.
fn prepare(
    compute: &Compute,
    store: &Mutex<SessionStore>,
    prefixes: &Mutex<Prefixes>,
    number: usize,
    step: Step,
) -> Result<Ready, Refusal> {
    let blocks = &compute.blocks;
    let Step { key, party, layout, inputs, starts, order, open } = step;
    let Inputs { text, prefix, tables } = inputs;
    if let Some(mut limits) = open {
        // Nobody needs more, and the rest would be memory that nobody can use.
        let most = u32::try_from(blocks.config().max_position_embeddings).unwrap_or(u32::MAX);
        limits.max_positions = limits.max_positions.min(most);
        let (longest, tables_bytes) = (u64::from(limits.max_positions), compute.lasting_table_bytes(&layout));
        let of_sequence = |positions| compute.sequence_bytes(layout.span, positions);
        let memory = SessionMemory::new(longest, tables_bytes, of_sequence);
        let mut session = lock(store).admit(key, party, layout.span, limits, memory)?;
        let values = tables.as_ref().map(Tables::values);
        let longest = limits.max_positions as usize;
        // For as long as a prefix is computed: two who open with the same one compute it once.
        let prefixes = &mut *lock(prefixes);
        let is_long = blocks.config().is_long(longest);
        let content = PrefixKey::new(&layout, prefix.as_deref(), values, is_long);
        let text_key = prefixes.key(content, party.peer, key.1);
        let tables = values.map(|values| prefixes.tables(blocks, content, &layout, values)).transpose();
        let tables = tables.map_err(refusal)?;
        let begun = if layout.prefix_len > 0 {
            let (rows, injection) = (layout.prefix_rows(), layout.injection);
            let prefix = CachedPrefix { rows, injection, hidden: prefix, tables: tables.as_deref() };
            prefixes.get(compute, (layout.span, longest), text_key, prefix)
        } else {
            blocks.cache(layout.span, longest, prefixes.meter()).map(|cache| (cache, None))
        };
        let (cache, behind) = begun.map_err(refusal)?;
        session.prefix_rows = cache.len();
        // A prefix is in the cache by now.
        (session.tables, session.weights) = (tables.filter(|_| layout.weights != WeightChange::None), layout.weights);
        session.sequences = vec![cache; layout.lengths.len()];
        if let Err(what) = check(&session, &layout, &starts, None) {
            return Err(Refusal::BadRequest { what: what.into() });
        }
        let prefix = behind.filter(|_| layout.returns_prefix());
        let mut ready = Ready { number, key, layout, session, text, prefix, opening: None };
        if ready.layout.lengths.len() == 1 && ready.layout.tokens() >= PAGE_TOKENS {
            ready.begin_like_others(prefixes, text_key, blocks.config().hidden_size);
        }
        return Ok(ready);
    }
    let mut session = lock(store).take(key)?;
    if let Err(what) = check(&session, &layout, &starts, order.as_deref()) {
        lock(store).put(key, session, Instant::now());
        return Err(Refusal::BadRequest { what: what.into() });
    }
    let ends = starts.iter().zip(&layout.lengths).map(|(start, rows)| u64::from(*start) + u64::from(*rows));
    let longest = session.prefix_rows as u64 + ends.max().unwrap_or(0);
    let mut sessions = lock(store);
    if let Err(refusal) = sessions.grow(&mut session, longest) {
        sessions.put(key, session, Instant::now());
        return Err(refusal);
    }
    drop(sessions);
    let from = |number: usize| order.as_ref().map_or(number, |order| order[number] as usize);
    let begin = |start: &u32| session.prefix_rows + *start as usize;
    if starts.iter().enumerate().any(|(number, start)| begin(start) < session.sequences[from(number)].shortest()) {
        // What it would go back to has been given back. Whoever opens it again and sends all of its text has what was there.
        lock(store).abandon(key);
        return Err(Refusal::SessionGone);
    }
    if let Some(order) = order {
        // The last use of a sequence takes it over; only pages that are shared are copied later.
        session.sequences = order.iter().filter_map(|&from| session.sequences.get(from as usize).cloned()).collect();
    }
    for (sequence, start) in session.sequences.iter_mut().zip(starts) {
        sequence.truncate(session.prefix_rows + start as usize);
    }
    Ok(Ready { number, key, layout, session, text, prefix: None, opening: None })
}

impl Ready {
    fn sizes(&self) -> Vec<StepSize> {
        let sequences = self.session.sequences.iter().zip(&self.layout.lengths);
        let weights = self.session.weights;
        sequences.map(|(cache, &new)| StepSize { new: u64::from(new), kept: cache.len() as u64, weights }).collect()
    }

    /// Leaves out the rows at the beginning that another session had as well.
    fn begin_like_others(&mut self, prefixes: &mut Prefixes, key: PrefixKey, hidden: usize) {
        let read = self.layout.read_rows.clone();
        let first_read = read.as_ref().map_or(Some(0), |read| read.first().map(|&row| row as usize));
        let found = prefixes.opening(key, &self.text, hidden, first_read.unwrap_or_default());
        let (rows, behind) = match found {
            Some(Opening { cache, rows, behind }) => {
                self.session.sequences = vec![cache];
                (rows, behind)
            }
            None => (0, Vec::new()),
        };
        let rest = self.text.split_off(rows * hidden);
        let text = [std::mem::replace(&mut self.text, rest), self.text.clone()].concat();
        let left = self.layout.tokens() - rows;
        self.layout.lengths = vec![left as u32];
        self.layout.read_rows = read.as_ref().map(|read| {
            let behind: Vec<u32> = read.iter().filter_map(|row| row.checked_sub(rows as u32)).collect();
            // Something has to be read of every step.
            if behind.is_empty() { vec![left as u32 - 1] } else { behind }
        });
        self.opening = Some(Opened { key, text, read, rows, behind });
    }
}

fn check(session: &Session, layout: &PassLayout, starts: &[u32], order: Option<&[u32]>) -> Result<(), &'static str> {
    let before = session.sequences.len();
    if session.span != layout.span {
        return Err("the session is of another span");
    }
    if layout.lengths.len() > session.limits.max_sequences as usize {
        return Err("the session was opened for fewer sequences");
    }
    if order.is_some_and(|order| order.iter().any(|&from| from as usize >= before)) {
        return Err("the order names a sequence that the session does not have");
    }
    if order.is_none() && layout.lengths.len() != before {
        return Err("the step is of another number of sequences than the session has");
    }
    for (number, (&start, &rows)) in starts.iter().zip(&layout.lengths).enumerate() {
        let from = order.map_or(number, |order| order[number] as usize);
        let begin = session.prefix_rows as u64 + u64::from(start);
        if begin > session.sequences[from].len() as u64 {
            return Err("a sequence would start behind its end");
        }
        if begin + u64::from(rows) > u64::from(session.limits.max_positions) {
            return Err("a sequence would exceed what the session was opened for");
        }
    }
    Ok(())
}

/// The rows read of each session. On failure nothing has changed.
fn step(blocks: &BlockStack, ready: &mut [Ready]) -> Result<Vec<Vec<f32>>, Option<PassError>> {
    let text: Vec<f32> = match &mut *ready {
        [one] => std::mem::take(&mut one.text),
        several => several.iter().flat_map(|session| session.text.iter().copied()).collect(),
    };
    let (mut read, mut first) = (Vec::new(), 0);
    for Ready { layout, .. } in ready.iter() {
        let tokens = layout.tokens() as u32;
        match &layout.read_rows {
            Some(rows) => read.extend(rows.iter().map(|row| first + row)),
            None => read.extend(first..first + tokens),
        }
        first += tokens;
    }
    let all = read.len() == first as usize;
    let mut sequences = Vec::new();
    for Ready { layout, session, .. } in ready.iter_mut() {
        let tables = session.tables.as_deref();
        for (cache, &rows) in session.sequences.iter_mut().zip(&layout.lengths) {
            sequences.push(CachedRows { cache, rows: rows as usize, tables });
        }
    }
    let output = blocks.step(text, &mut sequences, (!all).then_some(read.as_slice())).map_err(Some)?;
    let hidden = blocks.config().hidden_size;
    let mut rest = output.as_slice();
    let outputs = ready.iter().map(|session| {
        let (own, others) = rest.split_at((session.layout.output_rows() * hidden).min(rest.len()));
        rest = others;
        own.to_vec()
    });
    Ok(outputs.collect())
}

fn finish(
    compute: &Compute,
    store: &Mutex<SessionStore>,
    prefixes: &Mutex<Prefixes>,
    ready: Ready,
    computed: Vec<f32>,
) -> Stepped {
    let Ready { key, session, prefix, opening, .. } = ready;
    let text = match opening {
        Some(opened) => opened.outputs(compute, prefixes, &session, computed),
        None => computed,
    };
    lock(store).put(key, session, Instant::now());
    Stepped { text, prefix }
}

impl Opened {
    /// The outputs of all rows that are read, those that were known included. What was computed is kept for others.
    fn outputs(self, compute: &Compute, prefixes: &Mutex<Prefixes>, session: &Session, computed: Vec<f32>) -> Vec<f32> {
        let Self { key, text, read, rows, behind } = self;
        let hidden = compute.blocks.config().hidden_size;
        let page_bytes = compute.page_bytes(session.span);
        let known = |row: usize| {
            let page = behind.get(row / PAGE_TOKENS)?.as_ref()?;
            page.get(row % PAGE_TOKENS * hidden..(row % PAGE_TOKENS + 1) * hidden)
        };
        let all: Vec<f32> = match &read {
            Some(read) => {
                let of_known = read.iter().filter(|&&row| (row as usize) < rows);
                let mut outputs: Vec<f32> =
                    of_known.filter_map(|&row| known(row as usize)).flatten().copied().collect();
                outputs.extend(computed);
                outputs.truncate(read.len() * hidden);
                outputs
            }
            None => (0..rows).filter_map(known).flatten().copied().chain(computed).collect(),
        };
        if let [cache] = session.sequences.as_slice() {
            let behind = read.is_none().then_some(all.as_slice());
            lock(prefixes).keep_opening(key, &text, (cache, session.prefix_rows), behind, page_bytes);
        }
        all
    }
}

#[cfg(test)]
mod tests;
