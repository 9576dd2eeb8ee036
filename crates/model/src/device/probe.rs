//! Finds out whether CUDA can be used, before cubecl tries and panics.

use std::ffi::{c_int, c_void};

use libloading::{Library, Symbol};

use super::DeviceError;

pub(super) const DRIVERS: [&str; 3] = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
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
pub(super) fn open(names: &[&str]) -> Option<Library> {
    // SAFETY: these are NVIDIA's own libraries, which cubecl loads under the same names; their initialisers are sound.
    names.iter().find_map(|name| unsafe { Library::new(*name) }.ok())
}

#[allow(unsafe_code)]
pub(super) fn device_count() -> Result<usize, DeviceError> {
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

/// A CUcontext.
type Context = *mut c_void;

/// Free memory of a GPU, in its primary context, which cubecl's runtime uses too.
#[allow(unsafe_code)]
pub(super) fn free_bytes(index: usize) -> Option<u64> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Retain = unsafe extern "C" fn(*mut Context, c_int) -> c_int;
    type Release = unsafe extern "C" fn(c_int) -> c_int;
    let library = open(&DRIVERS)?;
    let ordinal = c_int::try_from(index).ok()?;
    let (mut device, mut context) = (0, std::ptr::null_mut());
    // SAFETY: the signatures are those of cuda.h, results outlive the calls that write to them, and the context is
    // retained while it is used and released once.
    unsafe {
        let init: Symbol<'_, Init> = library.get(b"cuInit\0").ok()?;
        let get: Symbol<'_, Get> = library.get(b"cuDeviceGet\0").ok()?;
        let retain: Symbol<'_, Retain> = library.get(b"cuDevicePrimaryCtxRetain\0").ok()?;
        let release: Symbol<'_, Release> = library.get(b"cuDevicePrimaryCtxRelease_v2\0").ok()?;
        if init(0) != 0 || get(&raw mut device, ordinal) != 0 || retain(&raw mut context, device) != 0 {
            return None;
        }
        let free = free_bytes_in(&library, context);
        release(device);
        free
    }
}

/// # Safety
/// `context` must be alive.
#[allow(unsafe_code)]
unsafe fn free_bytes_in(library: &Library, context: Context) -> Option<u64> {
    type Push = unsafe extern "C" fn(Context) -> c_int;
    type Pop = unsafe extern "C" fn(*mut Context) -> c_int;
    type Info = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let (mut free, mut total, mut popped) = (0usize, 0usize, std::ptr::null_mut());
    // SAFETY: as in `free_bytes`; the thread's stack of contexts is left as it was.
    unsafe {
        let push: Symbol<'_, Push> = library.get(b"cuCtxPushCurrent_v2\0").ok()?;
        let pop: Symbol<'_, Pop> = library.get(b"cuCtxPopCurrent_v2\0").ok()?;
        let info: Symbol<'_, Info> = library.get(b"cuMemGetInfo_v2\0").ok()?;
        if push(context) != 0 {
            return None;
        }
        let status = info(&raw mut free, &raw mut total);
        pop(&raw mut popped);
        (status == 0).then_some(free as u64)
    }
}
