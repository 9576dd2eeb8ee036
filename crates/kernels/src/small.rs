//! Products with small trained tables, and what scales do to columns.

use cubecl::prelude::*;

use crate::gpu::{Buffer, Gpu};
use crate::launch;

/// Rows, columns and depth of a tile; a unit for each value of it.
const TILE: usize = 16;

/// A matrix in a buffer: where it begins, and how far its rows and its columns are apart.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    /// Where it is.
    pub buffer: &'a Buffer,
    /// Position of its first value.
    pub first: usize,
    /// Values from a row to the next one.
    pub row: usize,
    /// Values from a column to the next one.
    pub column: usize,
}

/// Writes `a·b` to `out`, or adds it; `[rows, depth]` times `[depth, columns]`.
pub fn small_product<R: Runtime>(
    gpu: &Gpu<R>,
    (a, b): (Strided<'_>, Strided<'_>),
    out: Strided<'_>,
    [rows, depth, columns]: [usize; 3],
    added: bool,
) {
    if rows * columns == 0 {
        return;
    }
    let across = columns.div_ceil(TILE);
    launch!(
        gpu,
        gpu.cubes(rows.div_ceil(TILE) * across),
        TILE * TILE,
        small_product_kernel,
        gpu.arg(a.buffer),
        gpu.arg(b.buffer),
        gpu.arg(out.buffer),
        rows as u32,
        depth as u32,
        columns as u32,
        a.first as u32,
        a.row as u32,
        a.column as u32,
        b.first as u32,
        b.row as u32,
        b.column as u32,
        out.first as u32,
        out.row as u32,
        out.column as u32,
        across as u32,
        added,
    );
}

#[cube(launch_unchecked)]
fn small_product_kernel(
    a: &Array<f32>,
    b: &Array<f32>,
    out: &mut Array<f32>,
    rows: u32,
    depth: u32,
    columns: u32,
    a_first: u32,
    a_row: u32,
    a_column: u32,
    b_first: u32,
    b_row: u32,
    b_column: u32,
    out_first: u32,
    out_row: u32,
    out_column: u32,
    across: u32,
    #[comptime] added: bool,
) {
    let mut left = SharedMemory::<f32>::new(TILE * TILE);
    let mut right = SharedMemory::<f32>::new(TILE * TILE);
    let (y, x) = (UNIT_POS as usize / TILE, UNIT_POS as usize % TILE);
    let (rows, depth, columns) = (rows as usize, depth as usize, columns as usize);
    let (first_row, first_column) = (CUBE_POS / across as usize * TILE, CUBE_POS % across as usize * TILE);
    if first_row < rows {
        let (row, column) = (first_row + y, first_column + x);
        let mut sum = f32::new(0.0);
        for step in range_stepped(0, depth, TILE) {
            let mut of_left = f32::new(0.0);
            if row < rows && step + x < depth {
                of_left = a[a_first as usize + row * a_row as usize + (step + x) * a_column as usize];
            }
            left[y * TILE + x] = of_left;
            let mut of_right = f32::new(0.0);
            if step + y < depth && column < columns {
                of_right = b[b_first as usize + (step + y) * b_row as usize + column * b_column as usize];
            }
            right[y * TILE + x] = of_right;
            sync_cube();
            #[unroll]
            for i in 0..TILE {
                sum += left[y * TILE + i] * right[i * TILE + x];
            }
            sync_cube();
        }
        if row < rows && column < columns {
            let at = out_first as usize + row * out_row as usize + column * out_column as usize;
            if comptime!(added) {
                out[at] += sum;
            } else {
                out[at] = sum;
            }
        }
    }
}

/// Multiplies each value of an area of `x`, `[rows, columns]`, by the scale of its column.
pub fn scale_area<R: Runtime>(gpu: &Gpu<R>, scales: &Buffer, x: Strided<'_>, [rows, columns]: [usize; 2]) {
    let len = rows * columns;
    if len == 0 {
        return;
    }
    let cubes = gpu.cubes(len.div_ceil(TILE * TILE));
    launch!(
        gpu,
        cubes,
        TILE * TILE,
        scale_area_kernel,
        gpu.arg(scales),
        gpu.arg(x.buffer),
        x.first as u32,
        x.row as u32,
        columns as u32,
        len as u32,
    );
}

#[cube(launch_unchecked)]
fn scale_area_kernel(scales: &Array<f32>, x: &mut Array<f32>, first: u32, stride: u32, columns: u32, len: u32) {
    let at = CUBE_POS * comptime!(TILE * TILE) + UNIT_POS as usize;
    if at < len as usize {
        let (row, column) = (at / columns as usize, at % columns as usize);
        x[first as usize + row * stride as usize + column] *= scales[column];
    }
}

/// The sums over rows of `x ∘ dy`, areas of `[rows, columns]`, in `out`.
pub fn column_sums<R: Runtime>(gpu: &Gpu<R>, (x, dy): (Strided<'_>, Strided<'_>), out: &Buffer, rows: usize) {
    if out.is_empty() {
        return;
    }
    let cubes = gpu.cubes(out.len().div_ceil(TILE));
    launch!(
        gpu,
        cubes,
        TILE * TILE,
        column_sums_kernel,
        gpu.arg(x.buffer),
        gpu.arg(dy.buffer),
        gpu.arg(out),
        x.first as u32,
        x.row as u32,
        dy.first as u32,
        dy.row as u32,
        rows as u32,
        out.len() as u32,
    );
}

#[cube(launch_unchecked)]
fn column_sums_kernel(
    x: &Array<f32>,
    dy: &Array<f32>,
    out: &mut Array<f32>,
    x_first: u32,
    x_row: u32,
    dy_first: u32,
    dy_row: u32,
    rows: u32,
    columns: u32,
) {
    let mut parts = SharedMemory::<f32>::new(TILE * TILE);
    let (part, of_tile) = (UNIT_POS as usize / TILE, UNIT_POS as usize % TILE);
    let column = CUBE_POS * TILE + of_tile;
    let mut sum = f32::new(0.0);
    if column < columns as usize {
        for row in range_stepped(part, rows as usize, TILE) {
            let a = x[x_first as usize + row * x_row as usize + column];
            sum += a * dy[dy_first as usize + row * dy_row as usize + column];
        }
    }
    parts[part * TILE + of_tile] = sum;
    sync_cube();
    if part == 0 && column < columns as usize {
        let mut total = f32::new(0.0);
        for i in 0..TILE {
            total += parts[i * TILE + of_tile];
        }
        out[column] = total;
    }
}
