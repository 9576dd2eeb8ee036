//! Rows on their way from the host and back: half as many bytes where they are bf16 anyway, and a look at what is not finite where it is.

use cubecl::prelude::*;
use rayon::prelude::*;

use crate::gpu::GpuFailure;
use crate::gpu::{Buffer, Gpu};
use crate::launch;

const UNITS: usize = 256;
/// Fewer values are not worth a kernel.
const MANY: usize = 1 << 14;
/// Values that a thread takes.
const TASK: usize = 1 << 16;

/// Pairs of bf16, if all of many values are such.
pub(crate) fn halves(values: &[f32]) -> Option<Vec<u32>> {
    if values.len() < MANY || !values.len().is_multiple_of(2) {
        return None;
    }
    let are_halves = |values: &[f32]| values.iter().fold(0, |bits, value| bits | value.to_bits()) & 0xffff == 0;
    if !values.par_chunks(TASK).all(are_halves) {
        return None;
    }
    let (pairs, _) = values.as_chunks::<2>();
    Some(pairs.par_iter().map(|[low, high]| low.to_bits() >> 16 | high.to_bits()).collect())
}

/// `len` floats of pairs of bf16.
pub(crate) fn widened<R: Runtime>(gpu: &Gpu<R>, halves: &Buffer, len: usize) -> Buffer {
    let out = gpu.empty(len);
    launch!(gpu, gpu.cubes(len.div_ceil(UNITS)), UNITS, widened_kernel, gpu.arg(halves), gpu.arg(&out), len as u32);
    out
}

#[cube(launch_unchecked)]
fn widened_kernel(halves: &Array<u32>, out: &mut Array<f32>, len: u32) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < len as usize {
        let word = halves[at / 2];
        out[at] = f32::reinterpret(select(at % 2 == 0, word << 16u32, word & 0xffff_0000u32));
    }
}

/// Remembers on the device the first place of a pass at which a value was not finite. Places are numbers from 1 on. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Watch {
    /// 0, or the place.
    pub(crate) place: Buffer,
}

impl Watch {
    /// For the first pass that uses this memory.
    fn new<R: Runtime>(gpu: &Gpu<R>) -> Self {
        Self { place: gpu.upload_words(&[0]) }
    }
}

/// Floats that leave the GPU.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// A matrix.
    pub values: Buffer,
    /// The first value of it that leaves; all behind it do.
    pub first: usize,
    /// What a watch remembers if one of them is not finite.
    pub place: u32,
    /// Whether many are rounded to bf16, to nearest, ties to even, and cross as such.
    pub rounded: bool,
}

impl Leaving {
    fn len(&self) -> usize {
        self.values.len() - self.first
    }
}

/// What came back of a pass.
#[derive(Debug)]
pub struct Fetched {
    /// The matrices, in the order in which they were asked for.
    pub matrices: Vec<Vec<f32>>,
    /// The first place at which a value was not finite.
    pub not_finite: Option<u32>,
}

impl<R: Runtime> Gpu<R> {
    /// A watch over a pass, whose end is [`Self::fetch`]. Those that noticed nothing are used again, so that none costs a copy.
    pub fn watch(&self) -> Watch {
        self.idle_watches().pop().unwrap_or_else(|| Watch::new(self))
    }

    /// Remembers `place` if a value of `values` is not finite.
    pub fn check(&self, values: &Buffer, watch: &Watch, place: u32) {
        look(self, (values, 0), values.len(), None, (watch, place));
    }

    /// Waits for what leaves, for all of it at once.
    ///
    /// # Errors
    /// If anything has failed since the last time.
    pub fn fetch(&self, leaving: &[Leaving], watch: Watch) -> Result<Fetched, GpuFailure> {
        let halves: Vec<Option<Buffer>> = leaving.iter().map(|one| self.prepare(one, &watch)).collect();
        let parts: Vec<Buffer> = leaving.iter().map(|one| one.values.part(one.first, one.len())).collect();
        let words_of = halves.iter().zip(&parts).map(|(halves, part)| halves.as_ref().unwrap_or(part));
        let mut words = self.download_words(&words_of.chain([&watch.place]).collect::<Vec<_>>())?;
        let noticed = words.pop().and_then(|words| words.first().copied()).unwrap_or_default();
        if noticed == 0 {
            self.idle_watches().push(watch);
        }
        let mut not_finite = Some(noticed).filter(|place| *place != 0);
        let mut matrices = Vec::with_capacity(words.len());
        for ((words, halves), one) in words.into_iter().zip(halves).zip(leaving) {
            let floats: Vec<f32> = match halves {
                Some(_) => widened_here(&words),
                None => words.into_iter().map(f32::from_bits).collect(),
            };
            if one.len() < MANY && not_finite.is_none() && floats.iter().any(|value| !value.is_finite()) {
                not_finite = Some(one.place);
            }
            matrices.push(floats);
        }
        Ok(Fetched { matrices, not_finite })
    }

    /// Looks at many values, and rounds them, if they are to be.
    fn prepare(&self, leaving: &Leaving, watch: &Watch) -> Option<Buffer> {
        let Leaving { values, first, place, rounded } = leaving;
        let len = leaving.len();
        if len < MANY {
            return None;
        }
        let halves = (*rounded && len.is_multiple_of(2)).then(|| self.empty(len / 2));
        look(self, (values, *first), len, halves.as_ref(), (watch, *place));
        halves
    }
}

/// The floats of pairs of bf16.
fn widened_here(words: &[u32]) -> Vec<f32> {
    let mut floats = vec![0.0; 2 * words.len()];
    let tasks = floats.par_chunks_mut(TASK).zip(words.par_chunks(TASK / 2));
    tasks.for_each(|(floats, words)| {
        for (pair, word) in floats.as_chunks_mut().0.iter_mut().zip(words) {
            *pair = [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
        }
    });
    floats
}

/// Looks at `len` values from `first` on, and rounds them to `halves` where that is given.
fn look<R: Runtime>(
    gpu: &Gpu<R>,
    (values, first): (&Buffer, usize),
    len: usize,
    halves: Option<&Buffer>,
    (watch, place): (&Watch, u32),
) {
    if len == 0 {
        return;
    }
    let rounds = halves.is_some();
    let count = if rounds { len / 2 } else { len };
    launch!(
        gpu,
        gpu.cubes(count.div_ceil(UNITS)),
        UNITS,
        look_kernel,
        gpu.arg(values),
        gpu.output(halves),
        gpu.noticed(Some(watch)),
        first as u32,
        count as u32,
        place,
        rounds,
    );
}

/// The bits of a float rounded to bf16, to nearest, ties to even. NaN stays none of the finite ones.
#[cube]
fn rounded(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let nearest = (bits + (0x7fffu32 + ((bits >> 16u32) & 1u32))) >> 16u32;
    select((bits & 0x7fff_ffffu32) > 0x7f80_0000u32, 0x7fc0u32, nearest)
}

#[cube(launch_unchecked)]
fn look_kernel(
    values: &Array<f32>,
    halves: &mut Array<u32>,
    noticed: &mut Array<u32>,
    first: u32,
    count: u32,
    place: u32,
    #[comptime] rounds: bool,
) {
    let at = CUBE_POS * UNITS + UNIT_POS as usize;
    if at < count as usize {
        let largest = if comptime!(rounds) {
            let from = first as usize + 2 * at;
            let (low, high) = (rounded(values[from]), rounded(values[from + 1]));
            halves[at] = low | (high << 16u32);
            u32::max(low & 0x7fffu32, high & 0x7fffu32) << 16u32
        } else {
            u32::reinterpret(values[first as usize + at])
        };
        if is_not_finite(largest) {
            notice(noticed, place);
        }
    }
}

/// Whether the bits of a float are those of NaN or of an infinity. A comparison of floats would not do: compilers may take them for finite.
#[cube]
pub(crate) fn is_not_finite(bits: u32) -> bool {
    (bits & 0x7fff_ffffu32) >= 0x7f80_0000u32
}

/// Remembers the first place. Several units may do so at a time; all of a launch write the same.
#[cube]
pub(crate) fn notice(noticed: &mut Array<u32>, place: u32) {
    if noticed[0] == 0u32 {
        noticed[0] = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_many_values_that_are_bf16_go_as_such() {
        let value = |n: usize| f32::from_bits(((n as u32 * 40_503) & 0x7f7f) << 16);
        let mut values: Vec<f32> = (0..MANY).map(value).collect();
        let packed = halves(&values).unwrap();
        let back = packed.iter().flat_map(|word| [word << 16, word & 0xffff_0000]).map(f32::from_bits);
        assert!(back.eq(values.iter().copied()));
        values[MANY - 1] = 0.1;
        assert!(halves(&values).is_none() && halves(&values[..4]).is_none());
    }
}
