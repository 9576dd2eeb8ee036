//! How much memory there is to work with, and what for.

use petals_model::Device;

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
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = meminfo_available(&text)?;
    Some(cgroup_left().map_or(machine, |left| left.min(machine)))
}

/// Resident memory of this process, in bytes; `None` where the system does not tell.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What a container's limit leaves (cgroup version 2).
fn cgroup_left() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
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
    fn meminfo_is_read() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(meminfo_available(text), Some(12_345_678 * 1024));
        assert_eq!(meminfo_available("MemTotal: 5 kB"), None);
    }
}
