//! Which network a table has: its layers, its parameters with their names and first values, and how its rows lie.

use std::f64::consts::TAU;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layer::{Layer, Start};
use super::{Reparam, ReparamKind};
use crate::adapter::tables::{Table, TableShape};

/// Random streams of a seed below this one are those of the tables' first values and of dropout.
const FIRST_STREAM: u64 = 1 << 48;
/// Widest inside, whatever a file says.
const WIDEST: usize = 1 << 16;
/// Width of a bottleneck unless told otherwise.
const BOTTLENECK: usize = 400;

/// The network of one table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    table: Table,
    /// Sequences, rows of each, and width of what enters.
    sequences: usize,
    rows: usize,
    width: usize,
    layers: Vec<(String, Layer)>,
    /// Whether what enters is added to what comes out.
    residual: bool,
    /// Blocks whose rows come out side by side, 1 if rows lie as they enter.
    side_by_side: usize,
}

/// A parameter before it has values.
pub(super) struct ParameterSpec {
    pub(super) name: String,
    pub(super) extents: Vec<usize>,
    start: Start,
}

impl Plan {
    /// The networks for tables of this shape.
    pub(super) fn all(reparam: &Reparam, shape: &TableShape) -> Vec<Self> {
        Table::IN_FRONT.into_iter().filter_map(|table| Self::of(reparam, shape, table)).collect()
    }

    fn of(reparam: &Reparam, shape: &TableShape, table: Table) -> Option<Self> {
        let extents = shape.of(table)?;
        let (sequences, rows, wide) = match extents[..] {
            [rows, wide] => (1, rows, wide),
            [sequences, rows, wide] => (sequences, rows, wide),
            _ => return None,
        };
        // Half of a row of keys and values is a row of keys. No table of a model is as small as this, but a damaged file may say so.
        if sequences == 0 || rows == 0 || wide < 2 {
            return None;
        }
        let hidden = |usual: usize| reparam.width.unwrap_or(usual).clamp(1, WIDEST);
        let linear = |inputs, outputs| Layer::Linear { inputs, outputs };
        let mut plan = Self {
            table,
            sequences,
            rows,
            width: wide,
            layers: Vec::new(),
            residual: reparam.kind == ReparamKind::Mlp,
            side_by_side: 1,
        };
        let (name, layers) = match (reparam.kind, table) {
            (ReparamKind::Mlp, _) => {
                let h = hidden((wide / 2).min(BOTTLENECK));
                ("module", vec![linear(wide, h), Layer::Relu, linear(h, wide), Layer::Norm { width: wide }])
            }
            (_, Table::KeysValues) if reparam.kind != ReparamKind::PrefixProjection => return None,
            (ReparamKind::PTuningMlp, _) => {
                let h = hidden(wide);
                let layers = vec![linear(wide, h), Layer::Relu, linear(h, h), Layer::Relu, linear(h, wide)];
                ("mlp_head", layers)
            }
            (ReparamKind::PTuningLstm, _) => {
                let h = hidden(wide);
                for (level, inputs) in [(0, wide), (1, 2 * h)] {
                    plan.layers.push((format!("lstm_head.{{}}_l{level}"), Layer::Lstm { inputs, hidden: h }));
                }
                ("mlp_head", vec![linear(2 * h, 2 * h), Layer::Relu, linear(2 * h, wide)])
            }
            (ReparamKind::PrefixProjection, Table::KeysValues) => {
                // The rows of all blocks are made of one that is as wide as a block's keys.
                (plan.sequences, plan.width, plan.side_by_side) = (1, wide / 2, sequences);
                let h = hidden(wide / 2);
                ("transform", vec![linear(wide / 2, h), Layer::Tanh, linear(h, sequences.saturating_mul(wide))])
            }
            (ReparamKind::PrefixProjection, _) => return None,
        };
        let named = layers.into_iter().enumerate().map(|(at, layer)| (format!("{name}.{at}.{{}}"), layer));
        plan.layers.extend(named);
        Some(plan)
    }

    /// The table that it makes.
    pub(super) fn table(&self) -> Table {
        self.table
    }

    /// Its parameters; the first one is what enters.
    pub(super) fn parameters(&self) -> Vec<ParameterSpec> {
        let start = if self.residual { Start::Table } else { Start::Normal };
        let rows = self.sequences.saturating_mul(self.rows);
        let mut all =
            vec![ParameterSpec { name: "embedding.weight".to_owned(), extents: vec![rows, self.width], start }];
        for (name, layer) in &self.layers {
            let own = layer.parameters().into_iter().map(|(part, extents, start)| {
                // torch has the direction of an LSTM behind its level.
                let (part, direction) = part.strip_suffix("_reverse").map_or((part, ""), |part| (part, "_reverse"));
                ParameterSpec { name: name.replace("{}", part) + direction, extents, start }
            });
            all.extend(own);
        }
        all
    }

    /// First values of each parameter.
    pub(super) fn first_values(&self, table: &[f32], seed: u64) -> Vec<Vec<f32>> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(FIRST_STREAM + Table::IN_FRONT.iter().position(|own| *own == self.table).unwrap_or(0) as u64);
        let mut of = |spec: ParameterSpec| {
            let count = spec.extents.iter().product();
            match spec.start {
                Start::Table => table.to_vec(),
                Start::Constant(value) => vec![value; count],
                Start::Uniform(bound) => (0..count).map(|_| random.random_range(-bound..=bound)).collect(),
                Start::Normal => (0..count).map(|_| normal(&mut random)).collect(),
            }
        };
        self.parameters().into_iter().map(&mut of).collect()
    }

    /// What the network makes of its parameters, laid out as the table.
    pub(super) fn forward(&self, parameters: &[&[f32]]) -> Vec<f32> {
        self.made(self.states(parameters).pop().unwrap_or_default(), parameters)
    }

    /// The gradient of each parameter, of the gradient of the table.
    pub(super) fn backward(&self, parameters: &[&[f32]], table: &[f32]) -> Vec<Vec<f32>> {
        let states = self.states(parameters);
        let mut gradient = self.turned(table, self.side_by_side, self.rows);
        let mut all: Vec<Vec<f32>> = parameters.iter().map(|values| vec![0.0; values.len()]).collect();
        let mut end = parameters.len();
        for ((_, layer), input) in self.layers.iter().zip(&states).rev() {
            let start = end - layer.parameters().len();
            let (own, gradients) = (&parameters[start..end], &mut all[start..end]);
            gradient = layer.backward(own, input, &gradient, self.rows, gradients);
            end = start;
        }
        if self.residual {
            gradient.iter_mut().zip(table).for_each(|(sum, value)| *sum += value);
        }
        if let Some(embedding) = all.first_mut() {
            *embedding = gradient;
        }
        all
    }

    /// What enters each layer, and what comes out of the last one.
    fn states(&self, parameters: &[&[f32]]) -> Vec<Vec<f32>> {
        let mut states = vec![parameters.first().copied().unwrap_or_default().to_vec()];
        let mut start = 1;
        for (_, layer) in &self.layers {
            let end = start + layer.parameters().len();
            let input = states.last().map(Vec::as_slice).unwrap_or_default();
            let output = layer.forward(&parameters[start..end], input, self.rows);
            states.push(output);
            start = end;
        }
        states
    }

    fn made(&self, mut output: Vec<f32>, parameters: &[&[f32]]) -> Vec<f32> {
        if self.residual {
            let entered = parameters.first().copied().unwrap_or_default();
            output.iter_mut().zip(entered).for_each(|(sum, value)| *sum += value);
        }
        self.turned(&output, self.rows, self.side_by_side)
    }

    /// `[outer, inner, wide]` as `[inner, outer, wide]`.
    fn turned(&self, values: &[f32], outer: usize, inner: usize) -> Vec<f32> {
        if self.side_by_side == 1 || values.is_empty() {
            return values.to_vec();
        }
        let wide = values.len() / (outer * inner).max(1);
        let row = |at: usize| (0..outer).flat_map(move |from| &values[(from * inner + at) * wide..][..wide]);
        (0..inner).flat_map(row).copied().collect()
    }
}

/// A normally distributed value (Box and Muller).
fn normal(random: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    (radius * (TAU * random.random::<f64>()).cos()) as f32
}
