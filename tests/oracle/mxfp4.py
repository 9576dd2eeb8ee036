"""Writes tests/goldens/data/mxfp4.json: packed weights, their scales, and what transformers makes of both.

usage: mxfp4.py"""

import json
from pathlib import Path

import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

GOLDEN = Path(__file__).resolve().parent.parent / "goldens/data/mxfp4.json"


def main() -> None:
    generator = torch.Generator().manual_seed(9)
    experts, rows, blocks = 2, 3, 2
    packed = torch.randint(0, 256, (experts, rows, blocks, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(115, 140, (experts, rows, blocks), generator=generator, dtype=torch.uint8)
    # The least power of two, which is no normal number, and a large one.
    scales[0, 0, 0], scales[1, 2, 1] = 0, 240
    values = convert_moe_packed_tensors(packed, scales, dtype=torch.float32).transpose(1, 2)
    bits = values.contiguous().view(torch.int32) & 0xFFFFFFFF
    golden = {"shape": [experts, rows, blocks * 32], "blocks": packed.flatten().tolist(), "scales": scales.flatten().tolist()}
    GOLDEN.write_text(json.dumps({**golden, "bits": [bit & 0xFFFFFFFF for bit in bits.flatten().tolist()]}) + "\n")


main()
