//! Norms of rows, or of the heads of rows, and their gradients: root mean square (Zhang & Sennrich 2019) and layer norm (Ba et al. 2016).

use cubecl::prelude::*;

use crate::boundary::{Watch, is_not_finite, notice};
use crate::gpu::{Buffer, Gpu};
use crate::{LANES, cube_sum, launch};

/// What is normed: in each row the first `groups` times `width` values, `width` by `width`. What is behind them is copied.
#[derive(Debug, Clone, Copy)]
pub struct NormShape {
    /// Number of rows.
    pub rows: usize,
    /// Values of a row.
    pub stride: usize,
    /// Runs of a row that are normed each by itself.
    pub groups: usize,
    /// Values of such a run, which is how many weights the norm has.
    pub width: usize,
    /// Whether the mean is subtracted first.
    pub centred: bool,
    /// What is added to the mean square.
    pub eps: f32,
}

impl NormShape {
    /// A unit for every few values.
    fn units(self) -> usize {
        if self.width <= 4 * LANES { LANES } else { 8 * LANES }
    }

    /// A cube for each run, and one for what is behind them.
    fn cubes_of_row(self) -> usize {
        self.groups + usize::from(self.groups * self.width < self.stride)
    }
}

/// The normed rows of `x` in `out`; `weights` are those of the norm, and its biases, if there are any. The runs as they were are copied to `before`,
/// `[rows, groups·width]`, if it is given. A watch remembers its place if a mean square is not finite.
pub fn norm<R: Runtime>(
    gpu: &Gpu<R>,
    shape: NormShape,
    x: &Buffer,
    (weights, biases): (&Buffer, Option<&Buffer>),
    out: &Buffer,
    before: Option<&Buffer>,
    watched: Option<(&Watch, u32)>,
) {
    let NormShape { rows, stride, groups, width, centred, eps } = shape;
    if rows == 0 {
        return;
    }
    let (units, planes) = (shape.units(), gpu.limits().planes);
    let cubes = gpu.cubes(rows * shape.cubes_of_row());
    launch!(
        gpu,
        cubes,
        units,
        norm_kernel,
        gpu.arg(x),
        gpu.arg(weights),
        gpu.input(biases),
        gpu.arg(out),
        gpu.output(before),
        gpu.noticed(watched.map(|(watch, _)| watch)),
        watched.map_or(0, |(_, place)| place),
        rows as u32,
        stride as u32,
        groups as u32,
        width as u32,
        eps,
        centred,
        biases.is_some(),
        before.is_some(),
        watched.is_some(),
        units,
        planes,
    );
}

/// The mean square of a run of `x` from `first` on, less `mean`.
#[cube]
fn mean_square(
    x: &Array<f32>,
    first: usize,
    width: usize,
    mean: f32,
    #[comptime] units: usize,
    #[comptime] planes: bool,
) -> f32 {
    let mut square = f32::new(0.0);
    for i in range_stepped(UNIT_POS as usize, width, units) {
        let value = x[first + i] - mean;
        square += value * value;
    }
    cube_sum(square, units, planes) / f32::cast_from(width)
}

#[cube]
fn inverse_root(square: f32, eps: f32) -> f32 {
    f32::new(1.0) / f32::sqrt(square + eps)
}

#[cube]
fn mean_of(
    x: &Array<f32>,
    first: usize,
    width: usize,
    #[comptime] centred: bool,
    #[comptime] units: usize,
    #[comptime] planes: bool,
) -> f32 {
    if comptime!(centred) {
        let mut sum = f32::new(0.0);
        for i in range_stepped(UNIT_POS as usize, width, units) {
            sum += x[first + i];
        }
        cube_sum(sum, units, planes) / f32::cast_from(width)
    } else {
        f32::new(0.0)
    }
}

#[cube(launch_unchecked)]
fn norm_kernel(
    x: &Array<f32>,
    weights: &Array<f32>,
    biases: &Array<f32>,
    out: &mut Array<f32>,
    before: &mut Array<f32>,
    noticed: &mut Array<u32>,
    place: u32,
    rows: u32,
    stride: u32,
    groups: u32,
    width: u32,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] biased: bool,
    #[comptime] keeps: bool,
    #[comptime] watched: bool,
    #[comptime] units: usize,
    #[comptime] planes: bool,
) {
    let (stride, groups, width) = (stride as usize, groups as usize, width as usize);
    let normed = groups * width;
    let mut of_row = groups;
    if normed < stride {
        of_row += 1;
    }
    let (row, group) = (CUBE_POS / of_row, CUBE_POS % of_row);
    if row < rows as usize {
        if group == groups {
            for i in range_stepped(normed + UNIT_POS as usize, stride, units) {
                out[row * stride + i] = x[row * stride + i];
            }
        } else {
            let first = row * stride + group * width;
            let mean = mean_of(x, first, width, centred, units, planes);
            let square = mean_square(x, first, width, mean, units, planes);
            if comptime!(watched) {
                if UNIT_POS == 0 && is_not_finite(u32::reinterpret(square)) {
                    notice(noticed, place);
                }
            }
            let inverse = inverse_root(square, eps);
            for i in range_stepped(UNIT_POS as usize, width, units) {
                let value = x[first + i];
                if comptime!(keeps) {
                    before[row * normed + group * width + i] = value;
                }
                let mut y = (value - mean) * inverse * weights[i];
                if comptime!(biased) {
                    y += biases[i];
                }
                out[first + i] = y;
            }
        }
    }
}

/// The gradients of what was normed in `out`, from those of the normed rows, `dy`, in the shape of rows; `x` has the runs as they were, `[rows, groups·width]`.
///
/// With `g = w ∘ dy` and `r` the root: `dx = g / r - x · mean(g ∘ x) / r³`; a norm that subtracts the mean does the same with `x - mean(x)`, and
/// subtracts the mean of the result. What lies behind the runs is copied.
pub fn norm_back<R: Runtime>(gpu: &Gpu<R>, shape: NormShape, x: &Buffer, weights: &Buffer, dy: &Buffer, out: &Buffer) {
    let NormShape { rows, stride, groups, width, centred, eps } = shape;
    if rows == 0 {
        return;
    }
    let (units, planes) = (shape.units(), gpu.limits().planes);
    let cubes = gpu.cubes(rows * shape.cubes_of_row());
    launch!(
        gpu,
        cubes,
        units,
        norm_back_kernel,
        gpu.arg(x),
        gpu.arg(weights),
        gpu.arg(dy),
        gpu.arg(out),
        rows as u32,
        stride as u32,
        groups as u32,
        width as u32,
        eps,
        centred,
        units,
        planes,
    );
}

#[cube(launch_unchecked)]
fn norm_back_kernel(
    x: &Array<f32>,
    weights: &Array<f32>,
    dy: &Array<f32>,
    out: &mut Array<f32>,
    rows: u32,
    stride: u32,
    groups: u32,
    width: u32,
    eps: f32,
    #[comptime] centred: bool,
    #[comptime] units: usize,
    #[comptime] planes: bool,
) {
    let (stride, groups, width) = (stride as usize, groups as usize, width as usize);
    let normed = groups * width;
    let mut of_row = groups;
    if normed < stride {
        of_row += 1;
    }
    let (row, group) = (CUBE_POS / of_row, CUBE_POS % of_row);
    if row < rows as usize {
        if group == groups {
            for i in range_stepped(normed + UNIT_POS as usize, stride, units) {
                out[row * stride + i] = dy[row * stride + i];
            }
        } else {
            let first = row * normed + group * width;
            let of_dy = row * stride + group * width;
            let mean = mean_of(x, first, width, centred, units, planes);
            let inverse = inverse_root(mean_square(x, first, width, mean, units, planes), eps);
            let mut along = f32::new(0.0);
            let mut sum = f32::new(0.0);
            for i in range_stepped(UNIT_POS as usize, width, units) {
                let g = dy[of_dy + i] * weights[i];
                along += g * (x[first + i] - mean);
                sum += g;
            }
            let count = f32::cast_from(width);
            let along = cube_sum(along, units, planes) / count * inverse * inverse * inverse;
            let mut drift = f32::new(0.0);
            if comptime!(centred) {
                drift = cube_sum(sum, units, planes) / count * inverse;
            }
            for i in range_stepped(UNIT_POS as usize, width, units) {
                let g = dy[of_dy + i] * weights[i];
                out[of_dy + i] = g * inverse - (x[first + i] - mean) * along - drift;
            }
        }
    }
}
