//! What `petals-node devices` prints.

use std::fmt;

use serde::Serialize;

use super::size;

/// A device of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceSeen {
    /// As `--device` takes it.
    pub name: String,
    /// `processor`, `gpu`, or `software` for one that the processor plays.
    pub kind: &'static str,
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// What it is computed through.
    pub runtime: String,
    /// Bytes of its memory that are free, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Bytes of its memory, if it has any of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Why it cannot be used, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<DeviceProblem>,
}

/// What keeps a device from being used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceProblem {
    /// What is the matter.
    pub cause: String,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for DeviceSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, hardware, runtime, free_bytes, total_bytes, problem } = self;
        let hardware = hardware.as_deref().unwrap_or("unnamed");
        write!(f, "{name:<10}{kind:<11}{hardware}, ")?;
        match (free_bytes, total_bytes) {
            (Some(free), Some(total)) => write!(f, "{} free of {}", size(*free), size(*total))?,
            (Some(free), None) => write!(f, "{} free", size(*free))?,
            (None, Some(total)) => write!(f, "{} in all", size(*total))?,
            (None, None) => f.write_str("the processor's memory")?,
        }
        write!(f, ", {runtime}")?;
        problem.as_ref().map_or(Ok(()), |problem| write!(f, "; not usable: {problem}"))
    }
}

impl fmt::Display for DeviceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.cause, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_device_is_and_what_keeps_it_from_being_used() {
        let mut device = DeviceSeen {
            name: "cuda:0".into(),
            kind: "gpu",
            hardware: Some("NVIDIA H200".into()),
            runtime: "CUDA 12.8".into(),
            free_bytes: Some(1 << 30),
            total_bytes: Some(2 << 30),
            problem: None,
        };
        assert_eq!(device.to_string(), "cuda:0    gpu        NVIDIA H200, 1.00 GiB free of 2.00 GiB, CUDA 12.8");
        device.problem = Some(DeviceProblem { cause: "no NVRTC".into(), remedy: "install it" });
        (device.free_bytes, device.total_bytes) = (None, None);
        assert!(device.to_string().ends_with("the processor's memory, CUDA 12.8; not usable: no NVRTC -> install it"));
        let json = serde_json::to_value(&device).unwrap();
        assert_eq!((&json["problem"]["remedy"], json.get("free_bytes")), (&"install it".into(), None));
    }
}
