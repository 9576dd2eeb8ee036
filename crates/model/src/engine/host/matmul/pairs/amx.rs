//! Intel's matrix extension (AMX): products of 16 x 32 by 32 x 16 tiles of bf16.
//!
//! Rust has no stable names for its instructions yet, so they are written out.

use std::arch::asm;

use super::{BLOCK_COLUMNS, DEPTH, Kernel, Sums};
use crate::engine::host::matmul::PANEL;

pub(in super::super) struct Amx;

/// What `ldtilecfg` reads: palette 1, and eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig([u8; 64]);

static TILES: TileConfig = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = 64;
        config[48 + tile] = 16;
        tile += 1;
    }
    TileConfig(config)
};

impl Kernel for Amx {
    const ROWS: usize = 32;

    unsafe fn session(calls: impl FnOnce()) {
        /// Frees the tiles, also when `calls` panics.
        struct Release;
        impl Drop for Release {
            fn drop(&mut self) {
                // SAFETY: `session` runs where AMX is usable.
                unsafe { asm!("tilerelease", options(nostack, nomem)) }
            }
        }
        // SAFETY: by the contract of the trait; the configuration is a valid one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) TILES.0.as_ptr(), options(nostack, readonly)) };
        let _release = Release;
        calls();
    }

    /// A block of 32 x 32 sums in four tiles: every tile loaded is used twice.
    unsafe fn multiply(
        _rows: usize,
        depth: usize,
        (left, stride): (*const u16, usize),
        [first, second]: [*const u16; 2],
        sums: &mut Sums,
    ) {
        let row_bytes = 2 * stride;
        let lower = left.wrapping_add(16 * stride);
        let to = sums.as_mut_ptr();
        let lower_sums = to.wrapping_add(16 * BLOCK_COLUMNS);
        // SAFETY: by the contract of the trait: 32 rows of `depth` values, panels of `depth` rows, whole tiles.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{upper} + {row_bytes}*1]",
                "tileloadd tmm6, [{first} + {tile_row}*1]",
                "tileloadd tmm5, [{lower} + {row_bytes}*1]",
                "tileloadd tmm7, [{second} + {tile_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, 64",
                "add {lower}, 64",
                "add {first}, 1024",
                "add {second}, 1024",
                "dec {tiles}",
                "jnz 2b",
                "tilestored [{sums} + {sums_row}*1], tmm0",
                "tilestored [{sums} + {sums_row}*1 + 64], tmm1",
                "tilestored [{lower_sums} + {sums_row}*1], tmm2",
                "tilestored [{lower_sums} + {sums_row}*1 + 64], tmm3",
                upper = inout(reg) left => _,
                lower = inout(reg) lower => _,
                first = inout(reg) first => _,
                second = inout(reg) second => _,
                tiles = inout(reg) depth / DEPTH => _,
                row_bytes = in(reg) row_bytes,
                tile_row = in(reg) 4 * PANEL,
                sums = in(reg) to,
                lower_sums = in(reg) lower_sums,
                sums_row = in(reg) 4 * BLOCK_COLUMNS,
                options(nostack),
            );
        }
    }
}
