//! Steps of sequences that grow: inference with a cache of keys and values.

use std::ops::Range;

use petals_protocol::{Injection, Span};

use super::blocks::{Blocks, checked, place_of};
use super::pass::PassError;
use super::plan::{ByWindow, StepPlan};
use super::rows::ActiveRows;
use super::span_tables::SpanTables;
use super::tables::{Adapted, BlockTables, Given, WeightTables};
use super::{BlockStack, Part};
use crate::engine::rotary::Place;
use crate::engine::shapes::{Grown, Growth};
use crate::engine::{Cache, Engine, KvMeter, Leaving, Listed, NewRows, map_engine, on_engine, write};
use crate::kv::{CachePart, KvCache};

/// A sequence and how many rows a step adds to it.
#[derive(Debug)]
pub struct CachedRows<'a> {
    /// What the rows attend to besides themselves, and where their keys and values go.
    pub cache: &'a mut KvCache,
    /// New rows; may be 0.
    pub rows: usize,
    /// How the weights are adapted for them, if they are.
    pub tables: Option<&'a SpanTables>,
}

/// What a sequence begins with.
#[derive(Debug)]
pub struct CachedPrefix<'a> {
    /// Number of rows `m`, at least 1.
    pub rows: usize,
    /// What happens to them before each block.
    pub injection: Injection,
    /// Hidden states `[m, d]`, row-major, exactly if the injection is [`Injection::None`] or [`Injection::Add`].
    pub hidden: Option<Vec<f32>>,
    /// The tables of the cache's span for these rows; may be absent if the injection is [`Injection::None`].
    pub tables: Option<&'a SpanTables>,
}

impl BlockStack {
    /// An empty cache for `span`, any part of this stack's, and a sequence of at most `longest` positions. (Some models rotate differently
    /// where texts may grow long.)
    ///
    /// # Errors
    /// [`PassError::Span`] if the span is not here.
    pub fn cache(&self, span: Span, longest: usize, meter: &KvMeter) -> Result<KvCache, PassError> {
        if !self.span.covers(span) {
            return Err(PassError::Span { asked: span, held: self.span });
        }
        let heads = self.config.heads();
        let parts = self.parts_of(span).map(|(own, Part { place, blocks, .. })| {
            let windows = self.config.windows_of(own);
            let storage = map_engine!(blocks, blocks => blocks.engine.cache(&windows, heads, place.kv_dtype, meter));
            CachePart { span: own, device: place.device.clone(), storage }
        });
        Ok(KvCache::new(span, self.config.is_long(longest), parts.collect()))
    }

    /// Runs the new rows of several sequences, which may be of different sessions, through the span of their caches as one
    /// batch. `text` has the rows of all sequences back to back, `[T, d]`; the answer the rows named by `read_rows`
    /// (ascending), or all.
    ///
    /// If this fails, no sequence has changed.
    ///
    /// # Errors
    /// [`PassError`] if the caches are of different spans, a sequence would become too long, a size is wrong, the device fails, or
    /// an output is not finite.
    pub fn step(
        &self,
        text: Vec<f32>,
        sequences: &mut [CachedRows<'_>],
        read_rows: Option<&[u32]>,
    ) -> Result<Vec<f32>, PassError> {
        let total: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let d = self.config.hidden_size;
        if text.len() != total * d {
            return Err(PassError::Size { what: "the text", got: text.len(), expected: total * d });
        }
        if read_rows.is_some_and(|read| {
            !read.is_sorted_by(|a, b| a < b) || read.last().is_some_and(|&row| row as usize >= total)
        }) {
            return Err(PassError::Rows);
        }
        self.check_rows(total as u64)?;
        let Some(span) = sequences.first().map(|sequence| sequence.cache.span()) else { return Ok(Vec::new()) };
        let max = self.config.longest_step(span);
        for sequence in sequences.iter() {
            if sequence.rows > max {
                return Err(PassError::LongStep { rows: sequence.rows, max });
            }
            self.check_cache(sequence.cache, span, sequence.rows)?;
            self.check_tables(sequence.tables, span)?;
        }
        if total == 0 {
            return Ok(Vec::new());
        }
        let work = Work { span, text, read_rows, prefix: None };
        self.run_step(sequences, work)
    }

    /// Runs a step through each part that has blocks of it.
    fn run_step(&self, sequences: &mut [CachedRows<'_>], work: Work<'_>) -> Result<Vec<f32>, PassError> {
        let Work { span, mut text, read_rows, prefix } = work;
        for (number, (own, part)) in self.parts_of(span).enumerate() {
            // Rows are read of the last block alone.
            let read_rows = read_rows.filter(|_| own.end() == span.end());
            let work = Work { span: own, text, read_rows, prefix };
            match on_engine!(&part.blocks, blocks => blocks.step((number, part), sequences, work)) {
                Ok(rows) => text = rows,
                Err(error) => {
                    sequences.iter_mut().for_each(|sequence| sequence.cache.abandon());
                    return Err(error);
                }
            }
        }
        for CachedRows { cache, rows, .. } in sequences {
            cache.commit(*rows);
        }
        Ok(text)
    }

    /// Computes the prefix of a sequence into its empty cache. Returns the prefix's hidden states behind the span, `[m, d]`, unless
    /// it has none.
    ///
    /// # Errors
    /// [`PassError`] if the cache is not empty or of blocks that are not here, an input is missing, superfluous or of the wrong size, the
    /// device fails, or an output is not finite. The cache then stays empty.
    pub fn begin(&self, prefix: CachedPrefix<'_>, cache: &mut KvCache) -> Result<Option<Vec<f32>>, PassError> {
        let CachedPrefix { rows, injection, hidden, tables } = prefix;
        let d = self.config.hidden_size;
        self.check_cache(cache, cache.span(), rows)?;
        self.check_tables(tables, cache.span())?;
        if !cache.is_empty() || rows == 0 || tables.is_some_and(|tables| !tables.fits(injection, rows)) {
            return Err(PassError::Rows);
        }
        if tables.is_none() && injection != Injection::None {
            return Err(PassError::Missing("the tables of the prefix"));
        }
        let has_hidden = injection.carries_prefix();
        super::pass::optional("the prefix", hidden.as_deref(), has_hidden, rows * d)?;
        // A prefix that is replaced or has keys and values only has no hidden states.
        let text = hidden.unwrap_or_else(|| vec![0.0; rows * d]);
        let work = Work { span: cache.span(), text, read_rows: None, prefix: Some(injection) };
        let sequences = &mut [CachedRows { cache: &mut *cache, rows, tables }];
        let output = self.run_step(sequences, work)?;
        Ok(has_hidden.then_some(output))
    }

    fn check_tables(&self, tables: Option<&SpanTables>, span: Span) -> Result<(), PassError> {
        match tables.filter(|tables| tables.span() != span) {
            Some(tables) => Err(PassError::Span { asked: tables.span(), held: span }),
            None => Ok(()),
        }
    }

    fn check_cache(&self, cache: &KvCache, span: Span, rows: usize) -> Result<(), PassError> {
        if cache.span() != span || !self.span.covers(span) {
            return Err(PassError::Span { asked: cache.span(), held: self.span });
        }
        if !cache.lies(self.parts_of(span).map(|(own, part)| (own, &part.place.device))) {
            return Err(PassError::ForeignCache);
        }
        let (length, max) = (cache.len() + rows, self.config.max_position_embeddings);
        if length > max { Err(PassError::TooLong { length, max }) } else { Ok(()) }
    }
}

/// What a step computes.
struct Work<'a> {
    span: Span,
    /// Rows of all sequences back to back.
    text: Vec<f32>,
    /// Rows that are read of the last block, ascending, or all.
    read_rows: Option<&'a [u32]>,
    /// What happens to the rows before each block, if they are a prefix.
    prefix: Option<Injection>,
}

impl<E: Listed> Blocks<E> {
    /// A step through these blocks, which are all of the part with this number that the step goes through.
    fn step(
        &self,
        part: (usize, &Part),
        sequences: &mut [CachedRows<'_>],
        work: Work<'_>,
    ) -> Result<Vec<f32>, PassError> {
        let growth = |s: &CachedRows<'_>| Growth { len: s.cache.len(), rows: s.rows, long: s.cache.is_long() };
        let grown: Vec<Growth> = sequences.iter().map(growth).collect();
        let tables = of_sequences::<E>(sequences, part, work.span).ok_or(PassError::ForeignCache)?;
        let mut caches = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter_mut() {
            let storage = sequence.cache.part(part.0).and_then(|own| E::borrow_mut(&mut own.storage));
            caches.push(storage.ok_or(PassError::ForeignCache)?);
        }
        for (cache, growth) in caches.iter_mut().zip(&grown) {
            cache.grow(growth.len, growth.rows);
        }
        let span = work.span;
        let fetched = self.engine.install(|| {
            let watch = self.engine.watch();
            let rows = self.run_step(&grown, &tables, &mut caches, work, &watch);
            let leaving = Leaving { rows, first: 0, place: place_of(span.len() - 1), rounded: false };
            self.engine.fetch(vec![leaving], watch)
        })?;
        Ok(checked(fetched, span)?.pop().unwrap_or_default())
    }
}

impl<E: Engine> Blocks<E> {
    fn run_step(
        &self,
        sequences: &[Growth],
        tables: &[SequenceTables<'_, E>],
        caches: &mut [&mut E::Cache],
        work: Work<'_>,
        watch: &E::Watch,
    ) -> E::Rows {
        let Work { span, text, read_rows, prefix } = work;
        let (engine, heads) = (&self.engine, self.config.heads());
        let mut x = engine.upload(text, self.config.hidden_size);
        let places: Vec<Place> = sequences.iter().flat_map(Growth::places).collect();
        let key_angles = self.variety.angles(engine, &places);
        let reading = |read: Option<&[u32]>| {
            let attention =
                self.variety.for_each_window(|window| engine.cached_attention(heads, grown(sequences, read, window)));
            (attention, groups_of(sequences, tables, &grown(sequences, read, None)))
        };
        let (attention, groups) = reading(None);
        let all = Reading::<'_, E> { rows: ActiveRows::All, angles: None, groups, attention };
        let last = read_rows.map(|read| {
            let places: Vec<Place> = read.iter().map(|&row| places[row as usize]).collect();
            let (attention, groups) = reading(Some(read));
            let angles = Some(self.variety.angles(engine, &places));
            Reading::<'_, E> { rows: ActiveRows::Picked(engine.pick(read)), angles, groups, attention }
        });
        let of_prefix = prefix.and_then(|_| tables.first()?.as_ref()).map(|tables| tables.as_slice());
        for (number, block) in self.of(span).iter().enumerate() {
            let Reading { rows, angles, groups, attention } =
                last.as_ref().filter(|_| number + 1 == span.len()).unwrap_or(&all);
            let query_angles = angles.as_ref().unwrap_or(&key_angles);
            let rotary = block.layer.rotary;
            let plan = StepPlan {
                rows,
                key_angles: rotary.and_then(|rotary| key_angles.get(rotary)),
                query_angles: rotary.and_then(|rotary| query_angles.get(rotary)),
                heads,
            };
            let adapted: Vec<Adapted<'_, E>> = groups.iter().filter_map(|group| group.of_block(number)).collect();
            let given = Given { adapted: &adapted, keys_values: None };
            let own = of_prefix.and_then(|tables| tables.get(number));
            if let Some(keys_values) = own.and_then(|own| own.keys_values.as_ref()) {
                write(number, keys_values, sequences, caches);
                continue;
            }
            if let Some(prompts) = own.and_then(|own| own.prompts.as_ref()) {
                if prefix == Some(Injection::Replace) {
                    write(number, &block.keys_and_values(engine, prompts, plan, given), sequences, caches);
                    continue;
                }
                x = engine.add(x, prompts, 0);
            }
            x = block.watched(engine, x, number, watch);
            x = block.step(engine, x, plan, given, |queries, keys_values| {
                let StepPlan { key_angles, query_angles, heads, .. } = plan;
                let sinks = block.sinks.as_ref();
                let new = NewRows { queries, keys_values, query_angles, key_angles, heads, sinks, sequences };
                engine.attend_new(attention.of(block.layer.window), number, new, caches)
            });
        }
        x
    }
}

/// What is computed behind keys and values.
struct Reading<'t, E: Engine> {
    rows: ActiveRows<E>,
    /// Of the queries, if they are not those of the keys.
    angles: Option<Vec<E::Angles>>,
    groups: Vec<Group<'t, E>>,
    attention: ByWindow<E::CachedAttention>,
}

/// The tables of a sequence's blocks, if it has any.
type SequenceTables<'t, E> = Option<&'t Vec<BlockTables<E>>>;

/// Sequences side by side that have the same tables.
struct Group<'t, E: Engine> {
    tables: &'t [BlockTables<E>],
    rows: Range<usize>,
    active: Range<usize>,
}

impl<E: Engine> Group<'_, E> {
    fn of_block(&self, number: usize) -> Option<Adapted<'_, E>> {
        let tables: &WeightTables<E> = &self.tables.get(number)?.weights;
        Some(Adapted { tables, rows: self.rows.clone(), active: self.active.clone() })
    }
}

/// The tables of each sequence for the blocks `own` of a part; `None` if any are elsewhere.
fn of_sequences<'t, E: Listed>(
    sequences: &[CachedRows<'t>],
    (number, part): (usize, &Part),
    own: Span,
) -> Option<Vec<SequenceTables<'t, E>>> {
    let of_sequence = |sequence: &CachedRows<'t>| match sequence.tables {
        None => Some(None),
        Some(tables) => E::borrow(tables.of_part(number, own, part)?).map(Some),
    };
    sequences.iter().map(of_sequence).collect()
}

/// Sequences with changed weights, those side by side with the same tables together, so that few rows are one product.
fn groups_of<'t, E: Engine>(
    sequences: &[Growth],
    tables: &[SequenceTables<'t, E>],
    grown: &[Grown],
) -> Vec<Group<'t, E>> {
    let (mut groups, mut first) = (Vec::<Group<'t, E>>::new(), 0);
    for ((growth, tables), grown) in sequences.iter().zip(tables).zip(grown) {
        let rows = first..first + growth.rows;
        first = rows.end;
        let Some(tables) = tables.filter(|tables| tables.iter().any(|own| !own.weights.is_empty())) else { continue };
        match groups
            .last_mut()
            .filter(|last| std::ptr::eq(last.tables, tables.as_slice()) && last.rows.end == rows.start)
        {
            Some(last) => (last.rows.end, last.active.end) = (rows.end, grown.queries.end),
            None => groups.push(Group { tables, rows, active: grown.queries.clone() }),
        }
    }
    groups.retain(|group| !group.rows.is_empty());
    groups
}

/// For each sequence its rows among the queries, and which positions each of them sees.
fn grown(sequences: &[Growth], read_rows: Option<&[u32]>, window: Option<usize>) -> Vec<Grown> {
    let (mut first, mut taken) = (0, 0);
    let of_sequence = |growth: &Growth| {
        let own: Range<usize> = first..first + growth.rows;
        let seen = |row: usize| {
            let end = growth.len + row - own.start + 1;
            window.map_or(0, |window| end.saturating_sub(window))..end
        };
        let visible: Vec<Range<usize>> = match read_rows {
            None => own.clone().map(seen).collect(),
            Some(read) => {
                read[taken..].iter().map(|&row| row as usize).take_while(|row| *row < own.end).map(seen).collect()
            }
        };
        let queries = taken..taken + visible.len();
        (first, taken) = (own.end, queries.end);
        Grown { queries, visible }
    };
    sequences.iter().map(of_sequence).collect()
}

#[cfg(test)]
mod tests;
