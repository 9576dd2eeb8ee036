//! Intel's matrix extension (AMX): products of 16 x 32 by 32 x 16 tiles of bf16.
//!
//! Rust has no stable names for its instructions yet, so they are written out.

use std::arch::asm;

use super::{Block, DEPTH, Kernel};

pub(in super::super) struct Amx;

/// Bytes of a row of a tile: tiles of all three matrices lie row behind row.
const TILE_ROW: usize = 64;

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

    fn height(_: usize) -> usize {
        Self::ROWS
    }

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
    unsafe fn multiply(block: Block, sums: &mut [f32]) {
        let Block { left, depth, panels: [first, second], onto, .. } = block;
        // SAFETY: by the contract of the trait: strips of 32 rows, panels of `depth` rows, whole tiles; room for four tiles of sums.
        unsafe {
            asm!(
                "test {onto}, {onto}",
                "jnz 3f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 2f",
                "3:",
                "tileloadd tmm0, [{sums} + {tile_row}*1]",
                "tileloadd tmm2, [{sums} + {tile_row}*1 + 1024]",
                "tileloadd tmm1, [{sums} + {tile_row}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {tile_row}*1 + 3072]",
                "2:",
                "tileloadd tmm4, [{left} + {tile_row}*1]",
                "tileloadd tmm6, [{first} + {tile_row}*1]",
                "tileloadd tmm5, [{left} + {tile_row}*1 + 1024]",
                "tileloadd tmm7, [{second} + {tile_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {left}, 2048",
                "add {first}, 1024",
                "add {second}, 1024",
                "dec {tiles}",
                "jnz 2b",
                "tilestored [{sums} + {tile_row}*1], tmm0",
                "tilestored [{sums} + {tile_row}*1 + 1024], tmm2",
                "tilestored [{sums} + {tile_row}*1 + 2048], tmm1",
                "tilestored [{sums} + {tile_row}*1 + 3072], tmm3",
                left = inout(reg) left => _,
                first = inout(reg) first => _,
                second = inout(reg) second => _,
                tiles = inout(reg) depth / DEPTH => _,
                onto = in(reg) u64::from(onto),
                tile_row = in(reg) TILE_ROW,
                sums = in(reg) sums.as_mut_ptr(),
                options(nostack),
            );
        }
    }
}
