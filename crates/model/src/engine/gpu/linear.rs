//! A frozen projection `y = x·W + b`.

use std::ops::Range;
use std::sync::Arc;

use cubecl::prelude::Runtime;
use petals_kernels::{self as kernels, Buffer, Columns, Weight};

use super::pack::{Packed, format_of, pack};
use crate::checkpoint::blocks::{Bits, WeightColumns};
use crate::device::Dtype;

/// Bytes of weights that are packed on the host at a time.
const PIECE: usize = 32 << 20;

/// Some outputs of a weight, which may have others besides, and their biases.
#[derive(Debug)]
pub(crate) struct Linear {
    kept: Arc<Kept>,
    columns: Columns,
}

#[derive(Debug)]
struct Kept {
    weight: Weight,
    /// A value for each output.
    bias: Option<Buffer>,
}

impl Linear {
    /// See [`crate::engine::Engine::load_linear`]. The weight is packed and copied in pieces.
    pub(super) fn new<R: Runtime>(
        gpu: &kernels::Gpu<R>,
        [inputs, outputs]: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: Dtype,
        columns: &impl WeightColumns,
    ) -> Self {
        let packing = format_of(dtype, columns.bits());
        let weight = reserved(gpu, [inputs, outputs], packing);
        fill(gpu, &weight, 0..outputs, packing, columns);
        let bias = bias.map(|bias| gpu.upload(&bias));
        Self { kept: Arc::new(Kept { weight, bias }), columns: Columns { first: 0, count: outputs } }
    }

    /// See [`crate::engine::Engine::load_linears`]. They are in one buffer if the device has buffers of that size.
    pub(super) fn several<R: Runtime, C: WeightColumns>(
        gpu: &kernels::Gpu<R>,
        [inputs, outputs]: [usize; 2],
        dtype: Dtype,
        (count, alike): (usize, bool),
        given: impl Iterator<Item = (Option<Vec<f32>>, C)>,
    ) -> Vec<Self> {
        let mut given = given.peekable();
        let packing = given.peek().map(|(_, columns)| format_of(dtype, columns.bits()));
        let fits = |(format, _): &(kernels::Format, _)| {
            let words = format.words_of_row(inputs) as u64 * (outputs * count) as u64;
            // Kernels count words in 32 bits.
            words <= u64::from(u32::MAX) && words * size_of::<u32>() as u64 <= gpu.limits().largest_buffer
        };
        let Some(packing) = packing.filter(|packing| alike && fits(packing)) else {
            return given.map(|(bias, columns)| Self::new(gpu, [inputs, outputs], bias, dtype, &columns)).collect();
        };
        let weight = reserved(gpu, [inputs, outputs * count], packing);
        let mut biases = Vec::new();
        for (number, (bias, columns)) in given.take(count).enumerate() {
            fill(gpu, &weight, number * outputs..(number + 1) * outputs, packing, &columns);
            biases.extend(bias.unwrap_or_default());
        }
        let bias = (!biases.is_empty()).then(|| gpu.upload(&biases));
        let kept = Arc::new(Kept { weight, bias });
        let columns = |number| Columns { first: number * outputs, count: outputs };
        (0..count).map(|number| Self { kept: Arc::clone(&kept), columns: columns(number) }).collect()
    }

    /// The two in one buffer, if they are alike and the device has buffers of that size.
    pub(super) fn beside<R: Runtime>(gpu: &kernels::Gpu<R>, first: Self, second: Self) -> (Self, Self) {
        let (a, b) = (&first.kept.weight, &second.kept.weight);
        let alike = a.format == b.format && a.inputs == b.inputs && a.format != kernels::Format::Table;
        let alike = alike && first.kept.bias.is_some() == second.kept.bias.is_some();
        let bytes = a.bytes() + b.bytes();
        if !alike || bytes > gpu.limits().largest_buffer {
            return (first, second);
        }
        let join = |a: &Option<Buffer>, b: &Option<Buffer>| {
            let (a, b) = a.as_ref().zip(b.as_ref())?;
            Some(joined(gpu, a, b))
        };
        let weight = Weight {
            outputs: a.outputs + b.outputs,
            words: joined(gpu, &a.words, &b.words),
            scales: join(&a.scales, &b.scales),
            steps: join(&a.steps, &b.steps),
            table: None,
            ..*a
        };
        let kept = Arc::new(Kept { weight, bias: join(&first.kept.bias, &second.kept.bias) });
        let columns = Columns { first: a.outputs, count: b.outputs };
        (Self { kept: Arc::clone(&kept), columns: first.columns }, Self { kept, columns })
    }

    /// Both of two that lie beside each other, `second` behind this one.
    pub(super) fn with(&self, second: &Self) -> Option<Self> {
        let follows = Arc::ptr_eq(&self.kept, &second.kept) && second.columns.first == self.columns.count;
        let columns = Columns { first: self.columns.first, count: self.columns.count + second.columns.count };
        follows.then(|| Self { kept: Arc::clone(&self.kept), columns })
    }

    /// Whether this is the first of so many that lie one behind the other.
    pub(super) fn is_first_of(&self, count: usize) -> bool {
        self.columns.first == 0 && self.columns.count * count == self.kept.weight.outputs
    }

    pub(super) fn weight(&self) -> &Weight {
        &self.kept.weight
    }

    pub(super) fn columns(&self) -> Columns {
        self.columns
    }

    /// A value for each of the weight's outputs.
    pub(super) fn bias(&self) -> Option<&Buffer> {
        self.kept.bias.as_ref()
    }

    /// Values of a row that comes out.
    pub(super) fn outputs(&self) -> usize {
        self.columns.count
    }
}

/// Memory for a weight.
fn reserved<R: Runtime>(
    gpu: &kernels::Gpu<R>,
    shape: [usize; 2],
    (format, bits): (kernels::Format, Option<Bits>),
) -> Weight {
    let table = (format == kernels::Format::Table)
        .then(|| gpu.upload(&bits.map(|bits| bits.table().map(f32::from)).unwrap_or_default()));
    Weight { table, ..Weight::empty(gpu, format, shape) }
}

/// Packs `columns` into some rows of a weight.
fn fill<R: Runtime>(
    gpu: &kernels::Gpu<R>,
    weight: &Weight,
    rows: Range<usize>,
    packing: (kernels::Format, Option<Bits>),
    columns: &impl WeightColumns,
) {
    let (format, inputs) = (weight.format, weight.inputs);
    let (of_row, scales_of_row) = (format.words_of_row(inputs), format.scale_words_of_row(inputs));
    let piece = (PIECE / (of_row * size_of::<u32>()).max(1)).max(1);
    for first in (0..rows.len()).step_by(piece) {
        let columns_here = first..rows.len().min(first + piece);
        let Packed { words, scales, steps } = pack(columns, columns_here, inputs, packing);
        let first = rows.start + first;
        put(gpu, gpu.upload_words(&words), &weight.words, first * of_row);
        if let Some(to) = &weight.scales {
            put(gpu, gpu.upload_words(&scales), to, first * scales_of_row);
        }
        if let Some(to) = &weight.steps {
            put(gpu, gpu.upload(&steps), to, first * 2);
        }
    }
}

fn put<R: Runtime>(gpu: &kernels::Gpu<R>, piece: Buffer, to: &Buffer, first: usize) {
    kernels::copy(gpu, (&piece, 0), (to, first), piece.len());
}

fn joined<R: Runtime>(gpu: &kernels::Gpu<R>, a: &Buffer, b: &Buffer) -> Buffer {
    let both = gpu.empty(a.len() + b.len());
    kernels::copy(gpu, (a, 0), (&both, 0), a.len());
    kernels::copy(gpu, (b, 0), (&both, a.len()), b.len());
    both
}
