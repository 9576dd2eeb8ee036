//! Instruction sets that products are compiled for.

/// Instruction sets that products are compiled for, from the least to the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    /// Plain Rust, for every processor.
    Portable,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with products of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// Matrix tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Isa {
    /// Whether bf16 is multiplied by bf16, in pairs, instead of being widened first.
    pub(super) fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Self::Avx512Bf16 | Self::Amx);
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// The sets that this processor has, the best one last.
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = vec![Self::Portable];
        #[cfg(target_arch = "aarch64")]
        sets.push(Self::Neon);
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 {
                sets.push(Self::Avx2);
            }
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                sets.push(Self::Avx512);
                if has!("avx512bf16") {
                    sets.push(Self::Avx512Bf16);
                    if super::amx_permission::is_usable() {
                        sets.push(Self::Amx);
                    }
                }
            }
        }
        sets
    }
}
