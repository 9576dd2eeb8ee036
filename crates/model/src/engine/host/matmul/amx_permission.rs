//! Whether AMX may be used: its tiles are so large that the kernel saves them only for processes that ask.

use std::arch::x86_64::{__cpuid_count, _xgetbv};

/// Whether processor, kernel and this process may use AMX with bf16. Asks the kernel for permission.
pub(super) fn is_usable() -> bool {
    /// Tile registers in the extended state that the kernel saves: their configuration and their data.
    const TILE_STATE: u64 = 0b11 << 17;
    let features = __cpuid_count(7, 0).edx;
    let (bf16, tiles) = (features & 1 << 22 != 0, features & 1 << 24 != 0);
    // The state registers can only be read where the kernel has enabled them.
    let saves_state = std::arch::is_x86_feature_detected!("xsave") && __cpuid_count(1, 0).ecx & 1 << 27 != 0;
    if !(bf16 && tiles && saves_state) {
        return false;
    }
    // SAFETY: `xgetbv` is there, as just checked.
    let enabled = unsafe { extended_state() };
    enabled & TILE_STATE == TILE_STATE && permitted()
}

/// # Safety
/// The kernel has enabled extended states.
#[target_feature(enable = "xsave")]
unsafe fn extended_state() -> u64 {
    // SAFETY: by the contract of this function.
    unsafe { _xgetbv(0) }
}

/// Asks Linux to let this process use tile data: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    let mut result: i64 = 158;
    // SAFETY: the system call reads no memory and changes nothing but this permission; the kernel overwrites rcx and r11.
    unsafe {
        std::arch::asm!("syscall", inout("rax") result, in("rdi") 0x1023u64, in("rsi") 18u64, out("rcx") _, out("r11") _,
            options(nostack));
    }
    result == 0
}

/// Elsewhere it is not known how to ask.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
