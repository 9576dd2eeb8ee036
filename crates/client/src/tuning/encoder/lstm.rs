//! One level of a bidirectional LSTM (Hochreiter and Schmidhuber 1997) with the arithmetic and the layout of torch's: the gates `i`, `f`, `g` and `o`
//! lie one behind the other, and each direction has a weight of its input, one of its state, and a bias of each.

use super::products::{add_scaled, dot};

/// Parameters of a direction.
const OF_DIRECTION: usize = 4;

/// One direction.
#[derive(Clone, Copy)]
struct Cell<'a> {
    /// `[4·hidden, inputs]`
    of_input: &'a [f32],
    /// `[4·hidden, hidden]`
    of_state: &'a [f32],
    biases: [&'a [f32]; 2],
    inputs: usize,
    hidden: usize,
}

/// What a direction keeps of a row.
#[derive(Clone)]
struct Moment {
    /// Behind their sigmoids, and `g` behind its tanh, `[4·hidden]`.
    gates: Vec<f32>,
    /// `[hidden]`
    cell: Vec<f32>,
    /// What comes out, `[hidden]`.
    state: Vec<f32>,
}

/// Rows `[sequences, rows, 2·hidden]` of rows `[sequences, rows, inputs]`.
pub(super) fn forward(parameters: &[&[f32]], input: &[f32], [rows, inputs, hidden]: [usize; 3]) -> Vec<f32> {
    let mut output = vec![0.0; input.len() / inputs.max(1) * 2 * hidden];
    let sequences = input.chunks_exact((rows * inputs).max(1)).zip(output.chunks_exact_mut((rows * 2 * hidden).max(1)));
    for (input, output) in sequences {
        for (direction, cell) in cells(parameters, inputs, hidden) {
            let moments = cell.run(input, &order(direction, rows));
            for (at, moment) in order(direction, rows).into_iter().zip(moments) {
                output[at * 2 * hidden + direction * hidden..][..hidden].copy_from_slice(&moment.state);
            }
        }
    }
    output
}

/// The gradient of the input, of that of the output. Those of the parameters are added to `gradients`.
pub(super) fn backward(
    parameters: &[&[f32]],
    input: &[f32],
    output: &[f32],
    [rows, inputs, hidden]: [usize; 3],
    gradients: &mut [Vec<f32>],
) -> Vec<f32> {
    let mut result = vec![0.0; input.len()];
    let (of_input, of_output) = ((rows * inputs).max(1), (rows * 2 * hidden).max(1));
    let sequences = input.chunks_exact(of_input).zip(result.chunks_exact_mut(of_input));
    for ((input, result), output) in sequences.zip(output.chunks_exact(of_output)) {
        for (direction, cell) in cells(parameters, inputs, hidden) {
            let own = gradients.iter_mut().skip(direction * OF_DIRECTION).take(OF_DIRECTION).collect();
            let of_row = |at: usize| &output[at * 2 * hidden + direction * hidden..][..hidden];
            cell.back(input, &order(direction, rows), of_row, result, own);
        }
    }
    result
}

/// The directions: the first row first, and the last row first.
fn cells<'a>(parameters: &[&'a [f32]], inputs: usize, hidden: usize) -> Vec<(usize, Cell<'a>)> {
    let directions = parameters.as_chunks::<OF_DIRECTION>().0.iter().enumerate();
    let cell = |[of_input, of_state, one, other]: [&'a [f32]; OF_DIRECTION]| Cell {
        of_input,
        of_state,
        biases: [one, other],
        inputs,
        hidden,
    };
    directions.map(|(direction, parameters)| (direction, cell(*parameters))).collect()
}

fn order(direction: usize, rows: usize) -> Vec<usize> {
    if direction == 0 { (0..rows).collect() } else { (0..rows).rev().collect() }
}

impl Cell<'_> {
    fn run(&self, input: &[f32], order: &[usize]) -> Vec<Moment> {
        let (inputs, hidden) = (self.inputs, self.hidden);
        let units = 4 * hidden;
        // What does not depend on other rows, for all of them at once: weights are larger than rows are many, and are read once so.
        let mut of_rows = vec![0.0; input.len() / inputs * units];
        let [one, other] = self.biases;
        let weights = self.of_input.chunks_exact(inputs).zip(one.iter().zip(other));
        for (unit, (weight, (one, other))) in weights.enumerate() {
            for (row, sums) in input.chunks_exact(inputs).zip(of_rows.chunks_exact_mut(units)) {
                sums[unit] = dot(weight, row) + one + other;
            }
        }
        let mut moments: Vec<Moment> = Vec::with_capacity(order.len());
        let nothing = vec![0.0; hidden];
        for &at in order {
            let (state, cell) = moments.last().map_or((&nothing, &nothing), |earlier| (&earlier.state, &earlier.cell));
            let weights = self.of_state.chunks_exact(hidden).zip(&of_rows[at * units..][..units]);
            // The third quarter is what may be added to the cell, the others are gates.
            let gates: Vec<f32> = weights
                .map(|(weight, of_row)| of_row + dot(weight, state))
                .enumerate()
                .map(|(unit, sum)| if unit / hidden == 2 { sum.tanh() } else { 1.0 / (1.0 + (-sum).exp()) })
                .collect();
            let [i, f, g, o] = quarters(&gates, hidden);
            let cell: Vec<f32> = (0..hidden).map(|k| f[k] * cell[k] + i[k] * g[k]).collect();
            let state = (0..hidden).map(|k| o[k] * cell[k].tanh()).collect();
            moments.push(Moment { gates, cell, state });
        }
        moments
    }

    /// Adds to the gradient of the input, `result`, and to those of the parameters.
    fn back<'g>(
        &self,
        input: &[f32],
        order: &[usize],
        of_row: impl Fn(usize) -> &'g [f32],
        result: &mut [f32],
        mut gradients: Vec<&mut Vec<f32>>,
    ) {
        let (inputs, hidden) = (self.inputs, self.hidden);
        let moments = self.run(input, order);
        let nothing = vec![0.0; hidden];
        let earlier = |number: usize| {
            let earlier = number.checked_sub(1).and_then(|number| moments.get(number));
            earlier.map_or((&nothing, &nothing), |earlier| (&earlier.state, &earlier.cell))
        };
        // Of the sums that go into the gates, for each row in the order of the direction.
        let mut all = vec![vec![0.0; 4 * hidden]; order.len()];
        let (mut d_state, mut d_cell) = (nothing.clone(), nothing.clone());
        for (number, (&at, moment)) in order.iter().zip(&moments).enumerate().rev() {
            let (_, cell) = earlier(number);
            let [i, f, g, o] = quarters(&moment.gates, hidden);
            let d_sums = &mut all[number];
            for (k, of_row) in of_row(at).iter().enumerate() {
                let (d_out, out) = (d_state[k] + of_row, moment.cell[k].tanh());
                let inner = d_cell[k] + d_out * o[k] * (1.0 - out * out);
                d_sums[k] = inner * g[k] * i[k] * (1.0 - i[k]);
                d_sums[hidden + k] = inner * cell[k] * f[k] * (1.0 - f[k]);
                d_sums[2 * hidden + k] = inner * i[k] * (1.0 - g[k] * g[k]);
                d_sums[3 * hidden + k] = d_out * out * o[k] * (1.0 - o[k]);
                d_cell[k] = inner * f[k];
            }
            d_state.fill(0.0);
            for (weight, d_sum) in self.of_state.chunks_exact(hidden).zip(d_sums.iter()) {
                add_scaled(&mut d_state, weight, *d_sum);
            }
        }
        let [d_input, d_of_state, one, other] = gradients.as_mut_slice() else { return };
        let weights = self.of_input.chunks_exact(inputs).zip(d_input.chunks_exact_mut(inputs));
        for (unit, ((weight, d_input), d_of_state)) in weights.zip(d_of_state.chunks_exact_mut(hidden)).enumerate() {
            for (number, (&at, d_sums)) in order.iter().zip(&all).enumerate() {
                let d_sum = d_sums[unit];
                add_scaled(d_input, &input[at * inputs..][..inputs], d_sum);
                add_scaled(&mut result[at * inputs..][..inputs], weight, d_sum);
                add_scaled(d_of_state, earlier(number).0, d_sum);
                one[unit] += d_sum;
                other[unit] += d_sum;
            }
        }
    }
}

fn quarters(gates: &[f32], hidden: usize) -> [&[f32]; 4] {
    [0, 1, 2, 3].map(|at| &gates[at * hidden..][..hidden])
}
