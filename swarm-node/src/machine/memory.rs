//! How much memory there is to work with, and what for.

use petals_model::Device;
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System};

/// Share of the free memory that weights may take; the rest is for stashes, activations and the system.
const WEIGHT_SHARE: f64 = 0.7;
/// Assumed free memory where the system does not tell.
const UNKNOWN_MEMORY: u64 = 4 << 30;
/// Part of the free memory that counts as left over even if the weights seem to take all: what is free is an estimate,
/// and blocks that were demanded are served with as much as there is.
const LEAST_LEFT: u64 = 8;

/// Free memory before the weights are loaded, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Free {
    host: u64,
    /// Of a device with memory of its own.
    device: Option<u64>,
}

/// What is done with the memory beside the weights, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budgets {
    pub(crate) stash: u64,
    /// Keys and values of inference sessions.
    pub(crate) kv: u64,
    pub(crate) pass: u64,
    pub(crate) requests: u64,
}

impl Free {
    /// What is free now for blocks on `device`.
    pub(crate) fn on(device: &Device) -> Self {
        Self { host: available().unwrap_or(UNKNOWN_MEMORY), device: device.free_bytes() }
    }

    /// What weights may take.
    pub(crate) fn for_weights(self) -> u64 {
        (self.device.unwrap_or(self.host) as f64 * WEIGHT_SHARE) as u64
    }

    /// Divides what `weights` bytes of weights leave. Requests and replies always are in the host's memory.
    pub(crate) fn divide(self, weights: u64) -> Budgets {
        let left = |free: u64| free.saturating_sub(weights).max(free / LEAST_LEFT);
        let near = left(self.device.unwrap_or(self.host));
        let host = self.device.map_or(near, |_| self.host);
        Budgets { stash: near / 8, kv: near / 4, pass: near / 4, requests: host / 8 }
    }
}

/// Memory that programs may still take without swapping, in bytes; `None` where the system does not tell.
fn available() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory();
    let (machine, whole) = (system.available_memory(), system.total_memory());
    if whole == 0 {
        return None;
    }
    // A container that may take as much as the machine has counts what its files occupy of the cache, which programs can have.
    let limit = system.cgroup_limits().filter(|limits| limits.total_memory < whole);
    Some(limit.map_or(machine, |limits| limits.free_memory.min(machine)))
}

/// Resident memory of this process, in bytes; `None` where the system does not tell. (On Linux the first call lets the process open as many files as it is
/// allowed to.)
pub(crate) fn resident() -> Option<u64> {
    let (id, mut system) = (sysinfo::get_current_pid().ok()?, System::new());
    let memory = ProcessRefreshKind::nothing().without_tasks().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), false, memory);
    system.process(id).map(Process::memory).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_taken_from_the_memory_they_are_in() {
        let shared = Free { host: 800, device: None };
        assert_eq!(shared.divide(400), Budgets { stash: 50, kv: 100, pass: 100, requests: 50 });
        let own = Free { host: 800, device: Some(1600) };
        assert_eq!(own.divide(800), Budgets { stash: 100, kv: 200, pass: 200, requests: 100 });
        assert_eq!(shared.divide(9999), Budgets { stash: 12, kv: 25, pass: 25, requests: 12 }, "never nothing");
    }

    #[test]
    fn what_is_free_and_what_this_process_has_is_told() {
        let free = available().unwrap();
        let held: Vec<u8> = (0..64 << 20).map(|n| n as u8).collect();
        // Memory that nobody reads would not be there.
        std::hint::black_box(&held);
        let resident = resident().unwrap();
        assert!(resident > 64 << 20 && resident < 1 << 40, "{resident} of {}", held.len());
        assert!(free > 1 << 20 && free < 1 << 50, "{free}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn they_are_those_of_the_kernel() {
        let line = |file: &str, name: &str| -> u64 {
            let text = std::fs::read_to_string(file).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
        };
        // Other programs take and give back in between.
        let near = |a: u64, b: u64| a.abs_diff(b) < a.max(b) / 2;
        assert!(available().unwrap() <= 2 * line("/proc/meminfo", "MemAvailable:"));
        assert!(near(resident().unwrap(), line("/proc/self/status", "VmRSS:")));
    }
}
