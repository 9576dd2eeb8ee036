//! Parts of a network on rows, forward and backward. Weights are as torch has them, `[outputs, inputs]`; a backward computes again what it
//! needs of the forward, because rows are few.

use super::lstm;
use super::products::{add_scaled, dot};

/// As torch's `LayerNorm`.
const EPS: f32 = 1e-5;

/// What happens to each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// `W·x + b`.
    Linear { inputs: usize, outputs: usize },
    /// What is below 0 is 0.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
    /// The mean taken off, the deviation made 1, and a weight and a bias for each value.
    Norm { width: usize },
    /// Both directions of an LSTM over the rows of a sequence, side by side: `2·hidden` come out.
    Lstm { inputs: usize, hidden: usize },
}

/// First values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Start {
    /// Those of the table.
    Table,
    /// Normally distributed with a deviation of 1, as torch's `Embedding`.
    Normal,
    /// Uniform up to this, as torch's `Linear` and `LSTM`.
    Uniform(f32),
    /// This.
    Constant(f32),
}

impl Layer {
    /// Names, extents and first values of its parameters, in torch's order.
    pub(super) fn parameters(&self) -> Vec<(&'static str, Vec<usize>, Start)> {
        let bound = |fan_in: usize| Start::Uniform(1.0 / (fan_in.max(1) as f32).sqrt());
        match *self {
            Self::Linear { inputs, outputs } => {
                vec![("weight", vec![outputs, inputs], bound(inputs)), ("bias", vec![outputs], bound(inputs))]
            }
            Self::Relu | Self::Tanh => Vec::new(),
            Self::Norm { width } => {
                vec![("weight", vec![width], Start::Constant(1.0)), ("bias", vec![width], Start::Constant(0.0))]
            }
            Self::Lstm { inputs, hidden } => {
                let gates = 4 * hidden;
                let extents = [vec![gates, inputs], vec![gates, hidden], vec![gates], vec![gates]];
                let names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];
                let reverse = ["weight_ih_reverse", "weight_hh_reverse", "bias_ih_reverse", "bias_hh_reverse"];
                let all = names.into_iter().chain(reverse).zip(extents.clone().into_iter().chain(extents));
                all.map(|(name, extents)| (name, extents, bound(hidden))).collect()
            }
        }
    }

    /// Rows out of rows. A sequence has `rows` of them, which matters to an LSTM alone.
    pub(super) fn forward(&self, parameters: &[&[f32]], input: &[f32], rows: usize) -> Vec<f32> {
        match (*self, parameters) {
            (Self::Linear { inputs, outputs }, [weight, bias]) => {
                let mut output = vec![0.0; input.len() / inputs.max(1) * outputs];
                // A weight's row is read once for all rows of the input.
                for ((at, weight), bias) in weight.chunks_exact(inputs).enumerate().zip(*bias) {
                    for (input, output) in input.chunks_exact(inputs).zip(output.chunks_exact_mut(outputs)) {
                        output[at] = bias + dot(weight, input);
                    }
                }
                output
            }
            (Self::Relu, _) => input.iter().map(|value| value.max(0.0)).collect(),
            (Self::Tanh, _) => input.iter().map(|value| value.tanh()).collect(),
            (Self::Norm { width }, [weight, bias]) => {
                let row = |row: &[f32]| {
                    let (normed, _) = normed(row);
                    let scaled = normed.into_iter().zip(*weight).zip(*bias);
                    scaled.map(|((value, weight), bias)| value * weight + bias).collect::<Vec<f32>>()
                };
                input.chunks_exact(width).flat_map(row).collect()
            }
            (Self::Lstm { inputs, hidden }, parameters) => lstm::forward(parameters, input, [rows, inputs, hidden]),
            _ => input.to_vec(),
        }
    }

    /// The gradient of the input, of that of the output. Those of the parameters are added to `gradients`.
    pub(super) fn backward(
        &self,
        parameters: &[&[f32]],
        input: &[f32],
        output: &[f32],
        rows: usize,
        gradients: &mut [Vec<f32>],
    ) -> Vec<f32> {
        match (*self, parameters, gradients) {
            (Self::Linear { inputs, outputs }, [weight, _], [d_weight, d_bias]) => {
                let mut result = vec![0.0; input.len()];
                let weights = weight.chunks_exact(inputs).zip(d_weight.chunks_exact_mut(inputs)).zip(d_bias);
                for (at, ((weight, d_weight), d_bias)) in weights.enumerate() {
                    let rows = input.chunks_exact(inputs).zip(result.chunks_exact_mut(inputs));
                    for ((input, result), output) in rows.zip(output.chunks_exact(outputs)) {
                        add_scaled(d_weight, input, output[at]);
                        add_scaled(result, weight, output[at]);
                        *d_bias += output[at];
                    }
                }
                result
            }
            (Self::Relu, ..) => {
                input.iter().zip(output).map(|(value, gradient)| if *value > 0.0 { *gradient } else { 0.0 }).collect()
            }
            (Self::Tanh, ..) => {
                input.iter().zip(output).map(|(value, gradient)| gradient * (1.0 - value.tanh().powi(2))).collect()
            }
            (Self::Norm { width }, [weight, _], [d_weight, d_bias]) => {
                let mut result = Vec::with_capacity(input.len());
                for (row, gradient) in input.chunks_exact(width).zip(output.chunks_exact(width)) {
                    let (normed, scale) = normed(row);
                    for (((sum, value), bias), gradient) in
                        d_weight.iter_mut().zip(&normed).zip(d_bias.iter_mut()).zip(gradient)
                    {
                        *sum += value * gradient;
                        *bias += gradient;
                    }
                    let inner: Vec<f32> =
                        gradient.iter().zip(*weight).map(|(gradient, weight)| gradient * weight).collect();
                    let count = width as f32;
                    let (mean, along) = (inner.iter().sum::<f32>() / count, dot(&inner, &normed) / count);
                    result.extend(inner.iter().zip(&normed).map(|(value, n)| scale * (value - mean - n * along)));
                }
                result
            }
            (Self::Lstm { inputs, hidden }, parameters, gradients) => {
                lstm::backward(parameters, input, output, [rows, inputs, hidden], gradients)
            }
            _ => output.to_vec(),
        }
    }
}

/// A row with mean 0 and deviation 1, and what it was multiplied with for that.
fn normed(row: &[f32]) -> (Vec<f32>, f32) {
    let count = row.len().max(1) as f32;
    let mean = row.iter().sum::<f32>() / count;
    let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
    let scale = 1.0 / (variance + EPS).sqrt();
    (row.iter().map(|value| (value - mean) * scale).collect(), scale)
}
