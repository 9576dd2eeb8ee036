//! Finds out whether CUDA can be used, before burn tries and panics.

use std::ffi::c_int;

use libloading::{Library, Symbol};

use super::DeviceError;

const DRIVERS: [&str; 3] = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
const NVRTC: [&str; 5] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

/// Checks driver, GPU number and NVRTC, in this order.
pub(super) fn cuda(index: usize) -> Result<(), DeviceError> {
    let count = device_count()?;
    if index >= count {
        return Err(DeviceError::Index { index, count });
    }
    if open(&NVRTC).is_none() {
        return Err(DeviceError::Nvrtc);
    }
    Ok(())
}

#[allow(unsafe_code)]
fn open(names: &[&str]) -> Option<Library> {
    // SAFETY: these are NVIDIA's own libraries, which burn loads under the same names; their initialisers are sound.
    names.iter().find_map(|name| unsafe { Library::new(*name) }.ok())
}

#[allow(unsafe_code)]
fn device_count() -> Result<usize, DeviceError> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    let missing = |e: libloading::Error| DeviceError::Driver(e.to_string());
    let library = open(&DRIVERS).ok_or_else(|| DeviceError::Driver("libcuda.so.1 cannot be loaded".to_owned()))?;
    let mut count = 0;
    // SAFETY: the signatures are those of cuda.h, and `count` outlives the call that writes to it.
    let status = unsafe {
        let init: Symbol<'_, Init> = library.get(b"cuInit\0").map_err(missing)?;
        let get_count: Symbol<'_, Count> = library.get(b"cuDeviceGetCount\0").map_err(missing)?;
        match init(0) {
            0 => get_count(&raw mut count),
            failed => failed,
        }
    };
    match status {
        0 => Ok(usize::try_from(count).unwrap_or_default()),
        failed => Err(DeviceError::Driver(format!("CUDA error {failed}"))),
    }
}
