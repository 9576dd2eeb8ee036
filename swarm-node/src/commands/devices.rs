//! `petals-node devices`: what this machine can compute on, and what to do about the rest.

use petals_model::{Device, DeviceError, DeviceKind, FoundDevice, FoundDevices};

use super::events::{DeviceProblem, DeviceSeen, NodeEvent};
use crate::args::DevicesArgs;
use crate::error::NodeError;
use crate::machine::measure::processor_name;
use crate::machine::memory;

pub(crate) fn run(args: &DevicesArgs) -> Result<(), NodeError> {
    let FoundDevices { devices, missing } = Device::find();
    devices.into_iter().for_each(|device| NodeEvent::Device(seen(device)).emit(args.json));
    for (runtime, error) in missing {
        NodeEvent::NoDevice { runtime, problem: problem(&error) }.emit(args.json);
    }
    Ok(())
}

/// What is the matter with a device, and what to do.
pub(super) fn problem(error: &DeviceError) -> DeviceProblem {
    DeviceProblem { cause: error.cause(), remedy: error.remedy() }
}

fn seen(device: FoundDevice) -> DeviceSeen {
    let FoundDevice { name, kind, mut hardware, runtime, mut free_bytes, mut total_bytes, problem } = device;
    if kind == DeviceKind::Processor {
        hardware = hardware.or_else(|| Some(processor_name()));
        (free_bytes, total_bytes) = memory::of_machine();
    }
    let kind = match kind {
        DeviceKind::Processor => "processor",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Software => "software",
    };
    let problem = problem.as_ref().map(self::problem);
    DeviceSeen { name, kind, hardware, runtime, free_bytes, total_bytes, problem }
}
