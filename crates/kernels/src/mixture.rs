//! Mixtures of experts whose rows choose among them on the device: nothing comes back for that.

use cubecl::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::{cube_sum, launch};

/// Units that choose for a row together.
const UNITS: usize = 64;
/// Most experts that rows choose among: more do not fit into what the units of a cube share.
pub const MOST_EXPERTS: usize = 1024;
/// Units of a cube that adds.
const ADDING: usize = 256;

/// Which experts rows go through.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Rows that chose.
    pub rows: usize,
    /// How many each of them chose.
    pub used: usize,
    /// Among how many.
    pub count: usize,
    /// Their numbers, `[rows, used]`, those with the highest scores first.
    pub experts: Buffer,
    /// What their outputs are multiplied by, `[rows, used]`.
    pub weights: Buffer,
}

/// How scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Experts.
    pub count: usize,
    /// Through how many of them a row goes.
    pub used: usize,
    /// Whether the softmax is over all of them, or over those chosen.
    pub of_all: bool,
}

/// Chooses experts, [`MOST_EXPERTS`] at most, by the scores of rows, `[rows, count]`; of equal scores the first wins. Values of `gates`, if there are any, one for each row, become their sigmoids.
pub fn choose<R: Runtime>(gpu: &Gpu<R>, choice: Choice, scores: &Buffer, gates: Option<&Buffer>) -> Chosen {
    let Choice { count, used, .. } = choice;
    let rows = scores.len() / count;
    let [experts, weights] = [(); 2].map(|()| gpu.empty(rows * used));
    let chosen = Chosen { rows, used, count, experts, weights };
    if rows == 0 {
        return chosen;
    }
    let planes = gpu.limits().planes;
    launch!(
        gpu,
        gpu.cubes(rows),
        UNITS,
        choose_kernel,
        gpu.arg(scores),
        gpu.output(gates),
        gpu.arg(&chosen.experts),
        gpu.arg(&chosen.weights),
        rows as u32,
        choice,
        gates.is_some(),
        planes,
    );
    chosen
}

#[cube(launch_unchecked)]
fn choose_kernel(
    scores: &Array<f32>,
    gates: &mut Array<f32>,
    experts: &mut Array<u32>,
    weights: &mut Array<f32>,
    rows: u32,
    #[comptime] choice: Choice,
    #[comptime] gated: bool,
    #[comptime] planes: bool,
) {
    let row = CUBE_POS;
    if row < rows as usize {
        let unit = UNIT_POS as usize;
        let count = comptime!(choice.count as u32);
        let mut own = SharedMemory::<f32>::new(choice.count);
        let mut is_taken = SharedMemory::<u32>::new(choice.count);
        let mut best = SharedMemory::<u32>::new(UNITS);
        let mut taken = SharedMemory::<u32>::new(choice.used);
        for expert in range_stepped(unit, choice.count, UNITS) {
            own[expert] = scores[row * choice.count + expert];
            is_taken[expert] = 0u32;
        }
        sync_cube();
        for which in 0..choice.used {
            let mut mine = count.runtime();
            for expert in range_stepped(unit, choice.count, UNITS) {
                if is_taken[expert] == 0u32 && is_better(&own, expert as u32, mine, count) {
                    mine = expert as u32;
                }
            }
            best[unit] = mine;
            sync_cube();
            let mut step = comptime!(UNITS / 2).runtime();
            while step > 0 {
                if unit < step && is_better(&own, best[unit + step], best[unit], count) {
                    best[unit] = best[unit + step];
                }
                sync_cube();
                step /= 2;
            }
            if unit == 0 {
                taken[which] = best[0];
                is_taken[best[0] as usize] = 1u32;
            }
            sync_cube();
        }
        let largest = own[taken[0] as usize];
        let mut sum = f32::new(0.0);
        if comptime!(choice.of_all) {
            for expert in range_stepped(unit, choice.count, UNITS) {
                sum += f32::exp(own[expert] - largest);
            }
        } else {
            for which in range_stepped(unit, choice.used, UNITS) {
                sum += f32::exp(own[taken[which] as usize] - largest);
            }
        }
        let total = cube_sum(sum, UNITS, planes);
        for which in range_stepped(unit, choice.used, UNITS) {
            let expert = taken[which];
            experts[row * choice.used + which] = expert;
            weights[row * choice.used + which] = f32::exp(own[expert as usize] - largest) / total;
        }
        if comptime!(gated) {
            if unit == 0 {
                gates[row] = f32::new(1.0) / (1.0 + f32::exp(-gates[row]));
            }
        }
    }
}

/// Whether `other` is preferred to `expert`; `count` is nobody. Scores that are no numbers are nobody's reason, so there is always somebody.
#[cube]
fn is_better(scores: &SharedMemory<f32>, other: u32, expert: u32, #[comptime] count: u32) -> bool {
    let mut is_better = false;
    if other < count {
        if expert < count {
            let (a, b) = (scores[other as usize], scores[expert as usize]);
            is_better = a > b || (a == b && other < expert);
        } else {
            is_better = true;
        }
    }
    is_better
}

/// Adds the outputs of chosen experts, `[rows · used, width]`, by their weights; to what is in `sum`, `[rows, width]`, or in its place.
pub fn add_chosen<R: Runtime>(
    gpu: &Gpu<R>,
    chosen: &Chosen,
    outputs: &Buffer,
    (sum, width): (&Buffer, usize),
    added: bool,
) {
    let len = chosen.rows * width;
    if len == 0 {
        return;
    }
    launch!(
        gpu,
        gpu.cubes(len.div_ceil(ADDING)),
        ADDING,
        add_chosen_kernel,
        gpu.arg(outputs),
        gpu.arg(&chosen.weights),
        gpu.arg(sum),
        width as u32,
        len as u32,
        chosen.used,
        added,
    );
}

#[cube(launch_unchecked)]
fn add_chosen_kernel(
    outputs: &Array<f32>,
    weights: &Array<f32>,
    sum: &mut Array<f32>,
    width: u32,
    len: u32,
    #[comptime] used: usize,
    #[comptime] added: bool,
) {
    let at = CUBE_POS * ADDING + UNIT_POS as usize;
    if at < len as usize {
        let width = width as usize;
        let (row, column) = (at / width, at % width);
        let mut total = f32::new(0.0);
        if comptime!(added) {
            total = sum[at];
        }
        for which in 0..used {
            let choice = row * used + which;
            total += weights[choice] * outputs[choice * width + column];
        }
        sum[at] = total;
    }
}
