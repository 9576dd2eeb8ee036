//! What misbehaviour makes of right tensors and of the bytes of right answers.

use std::collections::HashMap;

use petals_protocol::{PREAMBLE_LEN, Tensor, WireDtype};

use super::Misbehaviour;

/// First answers by kind and shapes, for [`Misbehaviour::Stale`].
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<(bool, Vec<Vec<u32>>), Vec<Tensor>>);

/// The tensors that are passed off as the answer, and whether anything is wrong with them.
pub(super) fn tamper(
    misbehaviour: &Misbehaviour,
    memory: &mut Memory,
    backward: bool,
    tensors: Vec<Tensor>,
) -> (Vec<Tensor>, bool) {
    let first = memory.0.entry((backward, tensors.iter().map(|t| t.meta().shape.clone()).collect()));
    let first = first.or_insert_with(|| tensors.clone());
    let tampered: Vec<Tensor> = match misbehaviour {
        Misbehaviour::Noise => tensors.iter().map(|tensor| each(tensor, |index, _| noise(index))).collect(),
        Misbehaviour::Scaled(factor) => tensors.iter().map(|tensor| each(tensor, |_, value| value * factor)).collect(),
        Misbehaviour::Stale => first.clone(),
        Misbehaviour::NotFinite => {
            let nan = |index, value| if index == 3 { f32::NAN } else { value };
            // f32 on the wire whatever was asked for: it is what carries a NaN.
            tensors.iter().map(|tensor| each(tensor, nan)).collect()
        }
        Misbehaviour::Absurd { backward: only } if backward || !only => {
            let absurd = |index, value| if index == 3 { 3e38 } else { value };
            tensors.iter().map(|tensor| each(tensor, absurd)).collect()
        }
        Misbehaviour::WrongShape => tensors.iter().map(row_too_few).collect(),
        Misbehaviour::NoTensors => Vec::new(),
        Misbehaviour::TooManyTensors => tensors.iter().chain(tensors.first()).cloned().collect(),
        _ => tensors.clone(),
    };
    let wrong = tampered != tensors;
    (tampered, wrong)
}

/// The bytes that are sent for the bytes of an answer's frame.
pub(super) fn mangle(misbehaviour: &Misbehaviour, mut frame: Vec<u8>) -> Vec<u8> {
    match misbehaviour {
        Misbehaviour::Truncated => frame.truncate(frame.len() - frame.len() / 3),
        Misbehaviour::Garbage => frame = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
        Misbehaviour::Oversized => frame[PREAMBLE_LEN - 8..PREAMBLE_LEN].copy_from_slice(&(1u64 << 62).to_le_bytes()),
        Misbehaviour::WrongId => frame[8..16].copy_from_slice(&u64::MAX.to_le_bytes()),
        _ => {}
    }
    frame
}

fn each(tensor: &Tensor, change: impl Fn(usize, f32) -> f32) -> Tensor {
    let shape = shape(tensor);
    let values = tensor.to_f32("an honest answer", &shape).unwrap_or_default();
    let values: Vec<f32> = values.into_iter().enumerate().map(|(index, value)| change(index, value)).collect();
    Tensor::from_f32(WireDtype::F32, &shape, &values)
}

fn row_too_few(tensor: &Tensor) -> Tensor {
    let mut shape = shape(tensor);
    let values = tensor.to_f32("an honest answer", &shape).unwrap_or_default();
    if let Some(rows) = shape.first_mut() {
        *rows -= 1;
    }
    Tensor::from_f32(WireDtype::F32, &shape, &values[..shape.iter().product()])
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.meta().shape.iter().map(|&extent| extent as usize).collect()
}

/// Of the size of hidden states.
fn noise(index: usize) -> f32 {
    let bits = (index as u32).wrapping_add(1).wrapping_mul(2_654_435_761);
    ((bits >> 8) as f32 / 16_777_216.0 - 0.5) * 2.0
}
