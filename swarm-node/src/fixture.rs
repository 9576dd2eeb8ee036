//! What tests compute with.

use petals_model::{BlockStack, Checkpoint, Device, Dtype};
use petals_protocol::Span;

/// The four blocks of a tiny checkpoint, on the CPU.
pub(crate) fn stack() -> BlockStack {
    stack_on(&Device::cpu())
}

/// The same on a device.
pub(crate) fn stack_on(device: &Device) -> BlockStack {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/llama-gqa/model");
    let checkpoint = Checkpoint::open(model).expect("the checkpoint is part of the repository");
    let span = Span::new(0, 4).expect("four blocks");
    checkpoint.load_span(span, device, Dtype::F32).expect("it has four blocks")
}
