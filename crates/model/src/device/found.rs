//! Which devices this machine has, and what is missing to use more of it.

use super::{Device, DeviceError, Kind};

/// A device that is there, whether or not it can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevice {
    /// As it is named for [`Device`].
    pub name: String,
    /// What kind of device it is.
    pub kind: DeviceKind,
    /// What the hardware is called, if its driver says so.
    pub hardware: Option<String>,
    /// What it is computed through.
    pub runtime: String,
    /// Bytes of its own memory that nobody has taken, if it has any and the driver says so.
    pub free_bytes: Option<u64>,
    /// Bytes of its own memory in all, if it has any.
    pub total_bytes: Option<u64>,
    /// Why it cannot be used, if so.
    pub problem: Option<DeviceError>,
}

/// Kinds of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Processor,
    /// A graphics card, or what a processor has of one.
    Gpu,
    /// The processor in the guise of a GPU.
    Software,
}

/// What this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDevices {
    /// Devices, the processor first.
    pub devices: Vec<FoundDevice>,
    /// Ways to a GPU that lead nowhere here: their names, and why.
    pub missing: Vec<(&'static str, DeviceError)>,
}

impl Device {
    /// Looks for devices of every kind that there is.
    pub fn find() -> FoundDevices {
        let mut found = FoundDevices { devices: vec![processor()], missing: Vec::new() };
        for (runtime, devices) in [("CUDA", cuda()), ("Vulkan", vulkan())] {
            match devices {
                Ok(devices) => found.devices.extend(devices),
                Err(error) => found.missing.push((runtime, error)),
            }
        }
        found
    }
}

fn processor() -> FoundDevice {
    FoundDevice {
        name: Device { kind: Kind::Host }.to_string(),
        kind: DeviceKind::Processor,
        hardware: None,
        runtime: "own kernels".to_owned(),
        free_bytes: None,
        total_bytes: None,
        problem: None,
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Vec<FoundDevice>, DeviceError> {
    let count = super::probe::device_count()?;
    let card = |index| {
        let super::cards::Card { hardware, total_bytes } = super::cards::card(index).unwrap_or_default();
        FoundDevice {
            name: Device { kind: Kind::Cuda(index) }.to_string(),
            kind: DeviceKind::Gpu,
            hardware,
            runtime: super::cards::version().map_or_else(|| "CUDA".to_owned(), |version| format!("CUDA {version}")),
            free_bytes: super::probe::free_bytes(index),
            total_bytes,
            problem: Device::cuda(index).err(),
        }
    };
    Ok((0..count).map(card).collect())
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Vec<FoundDevice>, DeviceError> {
    Err(DeviceError::WithoutCuda)
}

#[cfg(feature = "vulkan")]
fn vulkan() -> Result<Vec<FoundDevice>, DeviceError> {
    let found = |adapter: &super::Adapter| FoundDevice {
        name: Device { kind: Kind::Vulkan(adapter.clone()) }.to_string(),
        kind: if adapter.is_software() { DeviceKind::Software } else { DeviceKind::Gpu },
        hardware: Some(adapter.name().to_owned()),
        runtime: "Vulkan".to_owned(),
        free_bytes: None,
        total_bytes: adapter.own_memory(),
        problem: None,
    };
    match super::vulkan::all() {
        [] => Err(DeviceError::NoVulkan),
        adapters => Ok(adapters.iter().map(found).collect()),
    }
}

#[cfg(not(feature = "vulkan"))]
fn vulkan() -> Result<Vec<FoundDevice>, DeviceError> {
    Err(DeviceError::WithoutVulkan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_can_be_named_and_what_is_missing_has_a_remedy() {
        let FoundDevices { devices, missing } = Device::find();
        assert_eq!((devices[0].name.as_str(), devices[0].kind), ("cpu", DeviceKind::Processor));
        for device in &devices {
            let named = device.name.parse::<Device>();
            assert_eq!(named.as_ref().err(), device.problem.as_ref(), "{device:?}");
            assert!(named.is_err() || named.unwrap().to_string() == device.name);
        }
        let of = |runtime: &str| {
            let there = devices.iter().any(|device| device.runtime.starts_with(runtime));
            there != missing.iter().any(|(name, _)| *name == runtime)
        };
        assert!(of("CUDA") && of("Vulkan"), "each is there or missing: {devices:?}, {missing:?}");
        for (_, error) in missing {
            assert!(!error.remedy().is_empty() && !error.cause().contains(error.remedy()), "{error}");
        }
    }
}
