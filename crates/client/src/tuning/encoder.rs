//! Networks that make prompts and prefixes while these are trained, and that are gone when an adapter is saved: it has what they made.
//!
//! Servers know nothing of them. The tables that travel are a network's output; the tables' gradients are brought back through it here,
//! by hand, and AdamW steps its parameters. Each table has a network of its own, which all of its rows, and all blocks, share.
//!
//! | `ReparamKind` | network of a row `x`, or of the rows in their order | source |
//! |---|---|---|
//! | `Mlp` | `x + norm(up(relu(down(x))))` | Razdaibiedina et al. 2023, arXiv 2305.03937 |
//! | `PTuningMlp` | three linear layers with ReLU between them | PEFT's `PromptEncoder` (Liu et al. 2021, *GPT Understands, Too*) |
//! | `PTuningLstm` | a bidirectional LSTM of two layers, two linear layers with ReLU between them | the same |
//! | `PrefixProjection` | a linear layer, tanh, a linear layer to the keys and values of all blocks | PEFT's `PrefixEncoder` (Li and Liang 2021) |
//!
//! Parameters have the names that they have there. `layer` has the parts of a network forward and backward, `lstm` the longest of
//! them, `plan` says which network a table has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use crate::adapter::names::{UnknownName, parse_name};
use crate::adapter::tables::{PromptTables, Table, TableGradients, TableShape};

mod layer;
mod lstm;
mod plan;
mod products;

use plan::Plan;

/// Most values that the networks of a run may have: with both moments of each the training state is below 4 GiB then, the most that is
/// read again.
const MOST_VALUES: usize = 300 << 20;

/// Which network makes the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReparamKind {
    /// A bottleneck beside the prompt itself.
    Mlp,
    /// PEFT's P_TUNING with its MLP.
    PTuningMlp,
    /// PEFT's P_TUNING with its LSTM.
    PTuningLstm,
    /// PEFT's PREFIX_TUNING with `prefix_projection`.
    PrefixProjection,
}

/// A network and how wide it is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reparam {
    /// Which.
    pub kind: ReparamKind,
    /// Its hidden width; `None` for half of a row's, at most 400, with [`ReparamKind::Mlp`], else for what enters it, as in PEFT.
    pub width: Option<usize>,
}

/// The networks of a run, with their parameters and the optimiser's moments of those.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoder {
    reparam: Reparam,
    nets: Vec<Net>,
}

/// The network of one table.
#[derive(Debug, Clone, PartialEq)]
struct Net {
    plan: Plan,
    parameters: Vec<Parameter>,
}

#[derive(Debug, Clone, PartialEq)]
struct Parameter {
    name: String,
    extents: Vec<usize>,
    values: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// Gradients of every parameter, in their order.
#[derive(Debug)]
pub(crate) struct EncoderGradients(Vec<Vec<Vec<f32>>>);

/// A tensor of an encoder's state: the group (values or a moment), its name, extents and values.
pub(crate) type StateTensor<'a> = (EncoderPart, String, &'a [usize], &'a [f32]);

/// What a tensor of an encoder's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncoderPart {
    /// The parameter.
    Value,
    /// AdamW's mean of its gradients.
    Mean,
    /// AdamW's mean of their squares.
    Square,
}

/// Why there can be no such encoder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
    /// It makes none of the tables that are trained.
    #[error("`{0}` makes no table that is trained: {needs}", needs = .0.needs())]
    NoTable(ReparamKind),
    /// Its state could not be read again.
    #[error("`{kind}` would have {values} parameters, the most is {MOST_VALUES}: choose a smaller width")]
    TooLarge {
        /// Which.
        kind: ReparamKind,
        /// How many parameters.
        values: usize,
    },
}

impl ReparamKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Mlp, Self::PTuningMlp, Self::PTuningLstm, Self::PrefixProjection];

    /// Whether the tables' first values are where it begins. The others begin anywhere, and make their first tables of that.
    pub fn keeps_start(self) -> bool {
        self == Self::Mlp
    }

    fn needs(self) -> &'static str {
        match self {
            Self::Mlp => "it is for prompts and prefixes",
            Self::PTuningMlp | Self::PTuningLstm => "it is for ptune and deep_ptune",
            Self::PrefixProjection => "it is for prefix",
        }
    }
}

impl fmt::Display for ReparamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mlp => "mlp",
            Self::PTuningMlp => "p-tuning-mlp",
            Self::PTuningLstm => "p-tuning-lstm",
            Self::PrefixProjection => "prefix-projection",
        })
    }
}

impl FromStr for ReparamKind {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_name("reparameterisation", text, &Self::ALL)
    }
}

impl Reparam {
    /// Checks that there can be such networks for tables of this shape.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn check(&self, shape: &TableShape) -> Result<(), EncoderError> {
        let plans = Plan::all(self, shape);
        if plans.is_empty() {
            return Err(EncoderError::NoTable(self.kind));
        }
        let extents = plans.iter().flat_map(Plan::parameters).map(|parameter| parameter.extents);
        let of = |extents: Vec<usize>| extents.into_iter().fold(1usize, usize::saturating_mul);
        let values = extents.map(of).fold(0usize, usize::saturating_add);
        if values > MOST_VALUES { Err(EncoderError::TooLarge { kind: self.kind, values }) } else { Ok(()) }
    }
}

impl Encoder {
    /// Networks with first values as torch gives them. `tables` has the first values of the tables, of which `keeps_start` kinds begin;
    /// it gets what the networks make.
    ///
    /// # Errors
    /// [`EncoderError`].
    pub fn new(reparam: Reparam, tables: &mut PromptTables, seed: u64) -> Result<Self, EncoderError> {
        let shape = *tables.shape();
        reparam.check(&shape)?;
        let net = |plan: Plan| {
            let first = plan.first_values(tables.table(plan.table()).unwrap_or_default(), seed);
            let parameters = plan.parameters().into_iter().zip(first).map(|(spec, values)| {
                let zeros = vec![0.0; values.len()];
                Parameter { name: spec.name, extents: spec.extents, values, mean: zeros.clone(), square: zeros }
            });
            let parameters = parameters.collect();
            Net { plan, parameters }
        };
        let nets = Plan::all(&reparam, &shape).into_iter().map(net).collect();
        let encoder = Self { reparam, nets };
        encoder.make(tables);
        Ok(encoder)
    }

    /// Networks as they were saved: `read` gives each tensor.
    ///
    /// # Errors
    /// That of `read`.
    pub(crate) fn from_saved<E>(
        reparam: Reparam,
        shape: &TableShape,
        mut read: impl FnMut(EncoderPart, &str, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let mut nets = Vec::new();
        for plan in Plan::all(&reparam, shape) {
            let mut parameters = Vec::new();
            for spec in plan.parameters() {
                let name = state_name(plan.table(), &spec.name);
                let mut of = |part| read(part, &name, &spec.extents);
                let (values, mean, square) =
                    (of(EncoderPart::Value)?, of(EncoderPart::Mean)?, of(EncoderPart::Square)?);
                parameters.push(Parameter { name: spec.name, extents: spec.extents, values, mean, square });
            }
            nets.push(Net { plan, parameters });
        }
        Ok(Self { reparam, nets })
    }

    /// What it is.
    pub fn reparam(&self) -> Reparam {
        self.reparam
    }

    /// Parameters of all networks.
    pub fn parameters(&self) -> usize {
        self.nets.iter().flat_map(|net| &net.parameters).map(|parameter| parameter.values.len()).sum()
    }

    /// A parameter of a table's network, by its name in PEFT, to be changed; [`Encoder::make`] is to be called then.
    pub fn parameter_mut(&mut self, table: Table, name: &str) -> Option<&mut [f32]> {
        let net = self.nets.iter_mut().find(|net| net.plan.table() == table)?;
        let parameter = net.parameters.iter_mut().find(|parameter| parameter.name == name)?;
        Some(&mut parameter.values)
    }

    /// Writes what the networks make into the tables.
    pub fn make(&self, tables: &mut PromptTables) {
        for net in &self.nets {
            let made = net.plan.forward(&net.values());
            if let Some(table) = tables.table_mut(net.plan.table()).filter(|table| table.len() == made.len()) {
                table.copy_from_slice(&made);
            }
        }
    }

    /// Turns the tables' gradients into those of the parameters. Those of the tables that the networks make are zero afterwards: they are
    /// no parameters themselves.
    pub(crate) fn backward(&self, gradients: &mut TableGradients) -> EncoderGradients {
        let of_net = |net: &Net| {
            let made = gradients.parts_mut().get_mut(net.plan.table()).unwrap_or_default();
            let of_parameters = net.plan.backward(&net.values(), made);
            made.fill(0.0);
            of_parameters
        };
        EncoderGradients(self.nets.iter().map(of_net).collect())
    }

    /// Updates every parameter once, as `optimizer` has just updated the tables, and the tables with what is made now.
    pub(crate) fn step(&mut self, optimizer: &AdamW, gradients: &EncoderGradients, lr: f64, tables: &mut PromptTables) {
        for (net, gradients) in self.nets.iter_mut().zip(&gradients.0) {
            for (parameter, gradient) in net.parameters.iter_mut().zip(gradients) {
                let Parameter { values, mean, square, .. } = parameter;
                optimizer.step_beside(lr, values, gradient, mean, square);
            }
        }
        self.make(tables);
    }

    /// Everything that the networks need to go on.
    pub(crate) fn state(&self) -> Vec<StateTensor<'_>> {
        let mut state = Vec::new();
        for (table, parameter) in self.nets.iter().flat_map(|net| net.parameters.iter().map(|p| (net.plan.table(), p)))
        {
            let Parameter { name, extents, values, mean, square } = parameter;
            for (part, values) in
                [(EncoderPart::Value, values), (EncoderPart::Mean, mean), (EncoderPart::Square, square)]
            {
                state.push((part, state_name(table, name), extents.as_slice(), values.as_slice()));
            }
        }
        state
    }
}

impl Net {
    fn values(&self) -> Vec<&[f32]> {
        self.parameters.iter().map(|parameter| parameter.values.as_slice()).collect()
    }
}

impl EncoderGradients {
    /// The sum of their squares.
    pub(crate) fn squares(&self) -> f64 {
        self.0.iter().flatten().flatten().map(|&value| f64::from(value).powi(2)).sum()
    }

    /// Multiplies all of them.
    pub(crate) fn scale(&mut self, factor: f32) {
        self.0.iter_mut().flatten().flatten().for_each(|value| *value *= factor);
    }
}

fn state_name(table: Table, parameter: &str) -> String {
    format!("{}.{parameter}", table.tensor_name())
}

#[cfg(test)]
mod tests;
