//! Which Vulkan devices there are, before cubecl tries and panics.

use std::future::Future;
use std::pin::pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use cubecl::wgpu::WgpuDevice;
use wgpu::{Backends, DeviceType, Instance, InstanceDescriptor};

use super::DeviceError;

/// A Vulkan device that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adapter {
    index: usize,
    name: String,
    raw: WgpuDevice,
    largest_buffer: u64,
    own_memory: Option<u64>,
}

impl Adapter {
    /// Its number among all devices.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// What the driver calls it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Memory of its own, in bytes, in all.
    pub(crate) fn own_memory(&self) -> Option<u64> {
        self.own_memory
    }

    /// cubecl's name of it.
    pub(crate) fn raw(&self) -> WgpuDevice {
        self.raw.clone()
    }

    /// Whether it is the CPU in disguise.
    pub(crate) fn is_software(&self) -> bool {
        self.raw == WgpuDevice::Cpu
    }

    /// The largest tensor that it can hold, in bytes.
    pub(crate) fn largest_buffer(&self) -> u64 {
        self.largest_buffer
    }
}

/// All devices.
pub(super) fn all() -> &'static [Adapter] {
    // Asking takes a while, and some drivers write to stderr each time.
    static ALL: OnceLock<Vec<Adapter>> = OnceLock::new();
    ALL.get_or_init(adapters)
}

/// Device `index`, or the fastest kind of device that is there.
pub(super) fn adapter(index: Option<usize>) -> Result<Adapter, DeviceError> {
    let all = all();
    let best = all.iter().min_by_key(|adapter| match adapter.raw {
        WgpuDevice::DiscreteGpu(_) => 0,
        WgpuDevice::IntegratedGpu(_) => 1,
        WgpuDevice::VirtualGpu(_) => 2,
        _ => 3,
    });
    let Some(best) = best else { return Err(DeviceError::NoVulkan) };
    let Some(index) = index else { return Ok(best.clone()) };
    let present = || all.iter().map(|a| format!("vulkan:{} ({})", a.index, a.name)).collect::<Vec<_>>().join(", ");
    all.get(index).cloned().ok_or_else(|| DeviceError::Adapter { index, present: present() })
}

/// All devices of which cubecl can tell apart which is meant.
fn adapters() -> Vec<Adapter> {
    let descriptor =
        InstanceDescriptor { backends: Backends::VULKAN, ..InstanceDescriptor::new_without_display_handle() };
    let instance = Instance::new(descriptor);
    let (mut counts, mut adapters) = ([0; 3], Vec::new());
    for adapter in now(instance.enumerate_adapters(Backends::VULKAN)).unwrap_or_default() {
        let info = adapter.get_info();
        let mut next = |kind: usize| {
            counts[kind] += 1;
            counts[kind] - 1
        };
        let raw = match info.device_type {
            DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(next(0)),
            DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(next(1)),
            DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(next(2)),
            DeviceType::Cpu => WgpuDevice::Cpu,
            DeviceType::Other => continue,
        };
        let limits = adapter.limits();
        let largest_buffer = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
        let own_memory = matches!(raw, WgpuDevice::DiscreteGpu(_)).then(|| device_memory(&adapter)).flatten();
        adapters.push(Adapter { index: adapters.len(), name: info.name, raw, largest_buffer, own_memory });
    }
    adapters
}

/// The largest heap of memory that is the device's own.
#[allow(unsafe_code)]
fn device_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter lives through the query, which changes nothing.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
    heaps.iter().filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

/// The result of a future that does not wait for anything, as all of wgpu's are outside of browsers.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
