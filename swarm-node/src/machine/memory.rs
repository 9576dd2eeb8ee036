//! How much memory there is to work with, and what for.

use petals_model::Device;
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System};

use super::rooms::Rooms;

/// Share of the free memory that weights may take; the rest is for stashes, activations and the system.
const WEIGHT_SHARE: f64 = 0.7;
/// Assumed free memory where the system does not tell.
const UNKNOWN_MEMORY: u64 = 4 << 30;
/// Part of the free memory that counts as left over even if the weights seem to take all: what is free is an estimate,
/// and blocks that were demanded are served with as much as there is.
const LEAST_LEFT: u64 = 8;

/// Free memory before the weights are loaded, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    host: u64,
    /// The devices that blocks may be on, each once by its name, with what they have of their own.
    devices: Vec<(String, Option<u64>)>,
}

/// What is done with the memory beside the weights, in bytes: on all devices together.
#[derive(Debug, Clone)]
pub(crate) struct Budgets {
    pub(crate) stash: u64,
    /// Keys and values of inference sessions.
    pub(crate) kv: u64,
    pub(crate) pass: u64,
    pub(crate) requests: u64,
    /// What of the first three is on which device.
    pub(crate) rooms: Rooms,
}

impl Free {
    /// What is free now for blocks on these devices.
    pub(crate) fn on<'a>(devices: impl IntoIterator<Item = &'a Device>) -> Self {
        let mut own: Vec<(String, Option<u64>)> = Vec::new();
        for device in devices {
            let name = device.to_string();
            if own.iter().all(|(known, _)| *known != name) {
                own.push((name, device.free_bytes()));
            }
        }
        Self { host: available().unwrap_or(UNKNOWN_MEMORY), devices: own }
    }

    /// Memory of a device's own, if it has any.
    fn own(&self, device: &str) -> Option<u64> {
        self.devices.iter().find(|(known, _)| known == device).and_then(|(_, own)| *own)
    }

    /// Whether two devices compute in the same memory.
    pub(crate) fn is_shared(&self, one: &str, other: &str) -> bool {
        one == other || (self.own(one).is_none() && self.own(other).is_none())
    }

    /// What weights may take in the memory of a device.
    pub(crate) fn for_weights_on(&self, device: &str) -> u64 {
        weights_of(self.own(device).unwrap_or(self.host))
    }

    /// What weights may take in all.
    pub(crate) fn for_weights(&self) -> u64 {
        self.memories().iter().map(|(bytes, _)| weights_of(*bytes)).fold(0, u64::saturating_add)
    }

    /// Whether there is room for so many bytes of weights on each of these devices.
    pub(crate) fn holds(&self, weights: &[(String, u64)]) -> bool {
        self.memories().iter().all(|(bytes, devices)| sum_on(devices, weights) <= weights_of(*bytes))
    }

    /// Each memory, and who computes in it.
    fn memories(&self) -> Vec<(u64, Vec<String>)> {
        let on_host = |own: &Option<u64>| own.is_none();
        let named = |(device, own): &(String, Option<u64>)| own.map(|own| (own, vec![device.clone()]));
        let mut memories: Vec<_> = self.devices.iter().filter_map(named).collect();
        if self.devices.is_empty() || self.devices.iter().any(|(_, own)| on_host(own)) {
            let here = self.devices.iter().filter(|(_, own)| on_host(own)).map(|(device, _)| device.clone());
            memories.push((self.host, here.collect()));
        }
        memories
    }

    /// Divides what so many bytes of weights on each device leave. Requests and replies always are in the host's memory.
    pub(crate) fn divide(&self, weights: &[(String, u64)]) -> Budgets {
        let mut memories = self.memories();
        // Where there are no blocks there is nothing to keep either.
        if memories.len() > 1 {
            memories.retain(|(_, devices)| sum_on(devices, weights) > 0);
        }
        let left =
            |(free, devices): &(u64, Vec<String>)| free.saturating_sub(sum_on(devices, weights)).max(free / LEAST_LEFT);
        let near: Vec<u64> = memories.iter().map(left).collect();
        let is_host = |(_, devices): &(u64, Vec<String>)| devices.iter().all(|device| self.own(device).is_none());
        let host = memories.iter().position(is_host).map_or(self.host, |at| near[at]);
        let all = near.iter().copied().fold(0, u64::saturating_add);
        let rooms = Rooms::new(memories.into_iter().zip(near).map(|((_, devices), left)| (devices, left)));
        Budgets { stash: all / 8, kv: all / 4, pass: all / 4, requests: host / 8, rooms }
    }
}

fn weights_of(free: u64) -> u64 {
    (free as f64 * WEIGHT_SHARE) as u64
}

/// Bytes on some of the devices.
fn sum_on(devices: &[String], weights: &[(String, u64)]) -> u64 {
    let here = weights.iter().filter(|(device, _)| devices.contains(device));
    here.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
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

/// Memory of this machine, free and in all, in bytes, as far as the system tells.
pub(crate) fn of_machine() -> (Option<u64>, Option<u64>) {
    let mut system = System::new();
    system.refresh_memory();
    (available(), Some(system.total_memory()).filter(|bytes| *bytes > 0))
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

    /// Stash, keys and values, pass, and requests.
    fn divided(free: &Free, weights: &[(String, u64)]) -> [u64; 4] {
        let Budgets { stash, kv, pass, requests, .. } = free.divide(weights);
        [stash, kv, pass, requests]
    }

    #[test]
    fn weights_are_taken_from_the_memory_they_are_in() {
        let cpu = || "cpu".to_owned();
        let shared = Free { host: 800, devices: vec![(cpu(), None)] };
        assert_eq!(divided(&shared, &[(cpu(), 400)]), [50, 100, 100, 50]);
        assert_eq!(divided(&shared, &[(cpu(), 100), (cpu(), 300)]), [50, 100, 100, 50], "two parts in one memory");
        let own = Free { host: 800, devices: vec![(cpu(), Some(1600))] };
        assert_eq!(divided(&own, &[(cpu(), 800)]), [100, 200, 200, 100]);
        assert_eq!(divided(&shared, &[(cpu(), 9999)]), [12, 25, 25, 12], "never nothing");
        assert_eq!((shared.for_weights(), own.for_weights()), (560, 1120));
        assert!(shared.holds(&[(cpu(), 500), (cpu(), 60)]) && !shared.holds(&[(cpu(), 500), (cpu(), 61)]));
    }

    #[test]
    fn each_device_has_what_its_own_weights_leave() {
        let [cpu, card] = ["cpu", "cuda:0"].map(str::to_owned);
        let free = Free { host: 800, devices: vec![(card.clone(), Some(1600)), (cpu.clone(), None)] };
        assert_eq!((free.for_weights(), free.for_weights_on(&card), free.for_weights_on(&cpu)), (1680, 1120, 560));
        assert!(!free.is_shared(&card, &cpu) && free.is_shared(&cpu, &cpu));
        assert!(free.holds(&[(card.clone(), 1120), (cpu.clone(), 560)]));
        assert!(!free.holds(&[(card.clone(), 1121), (cpu.clone(), 1)]), "on the one there is room, on the other not");
        let both = [(card.clone(), 800), (cpu.clone(), 400)];
        assert_eq!(divided(&free, &both), [150, 300, 300, 50]);
        // Nothing is kept where no blocks are.
        assert_eq!(divided(&free, &[(card, 800)]), [100, 200, 200, 100]);
        assert_eq!(divided(&free, &[(cpu, 400)]), [50, 100, 100, 50]);
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
