//! What CUDA's driver says of its cards, and the headers that kernels are compiled with.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::Symbol;

use super::DeviceError;
use super::probe::{DRIVERS, open};

/// What a card is.
#[derive(Debug, Default)]
pub(super) struct Card {
    pub(super) hardware: Option<String>,
    pub(super) total_bytes: Option<u64>,
}

/// Name and memory of a card, as far as the driver tells.
#[allow(unsafe_code)]
pub(super) fn card(index: usize) -> Option<Card> {
    type Init = unsafe extern "C" fn(u32) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    let (library, ordinal) = (open(&DRIVERS)?, c_int::try_from(index).ok()?);
    let (mut device, mut total, mut name) = (0, 0usize, [0 as c_char; 256]);
    // SAFETY: the signatures are those of cuda.h, and results outlive the calls that write to them; the last byte of the name
    // is not given to the driver, so that it always ends.
    unsafe {
        let init: Symbol<'_, Init> = library.get(b"cuInit\0").ok()?;
        let get: Symbol<'_, Get> = library.get(b"cuDeviceGet\0").ok()?;
        let get_name: Symbol<'_, Name> = library.get(b"cuDeviceGetName\0").ok()?;
        let get_total: Symbol<'_, Total> = library.get(b"cuDeviceTotalMem_v2\0").ok()?;
        if init(0) != 0 || get(&raw mut device, ordinal) != 0 {
            return None;
        }
        let named = get_name(name.as_mut_ptr(), 255, device) == 0;
        let counted = get_total(&raw mut total, device) == 0;
        let hardware = named.then(|| CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned());
        Some(Card { hardware, total_bytes: counted.then_some(total as u64) })
    }
}

/// The newest CUDA that the driver runs, such as 12.8.
#[allow(unsafe_code)]
pub(super) fn version() -> Option<String> {
    type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
    let library = open(&DRIVERS)?;
    let mut version = 0;
    // SAFETY: the signature is that of cuda.h, and `version` outlives the call that writes to it.
    let status = unsafe {
        let get: Symbol<'_, Version> = library.get(b"cuDriverGetVersion\0").ok()?;
        get(&raw mut version)
    };
    (status == 0).then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Checks that the headers are there which kernels include: where `CUDA_PATH` says, or where toolkits install them. What
/// compiles the kernels looks in the same places.
pub(super) fn headers() -> Result<(), DeviceError> {
    let named = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(Path::new).into_iter().find(|path| path.exists());
    let packaged = || Path::new("/usr/bin/nvcc").exists().then(|| PathBuf::from("/usr"));
    let toolkit = named.or_else(|| usual.map(Path::to_owned)).or_else(packaged);
    match toolkit {
        Some(toolkit) if toolkit.join("include/cuda_fp16.h").exists() => Ok(()),
        Some(toolkit) => Err(DeviceError::Headers(format!("{} has no include/cuda_fp16.h", toolkit.display()))),
        None => Err(DeviceError::Headers("neither CUDA_PATH nor a toolkit in its usual place".to_owned())),
    }
}
