"""Random blocks of every GGUF tensor type that is read, and what gguf-py (0.17 or later) makes of them, in hexadecimal.

Writes tests/goldens/data/gguf-blocks.json. Scales are finite: what NaN and infinity become is left to the processor.
"""

import json
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
# Where the half-precision scales of a block begin.
SCALES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "MXFP4": []}


def main() -> None:
    out = {}
    for number, name in enumerate(TYPES):
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        count = 4 if values == 256 else 12
        random = np.random.default_rng(number)
        blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
        for at in SCALES.get(name, [0]):
            # The exponent of infinity becomes another one.
            full = (blocks[:, at + 1] & 0x7C) == 0x7C
            blocks[full, at + 1] ^= 0x40
        if name == "MXFP4":
            # More would be infinite.
            blocks[:, 0] = np.minimum(blocks[:, 0], 252)
            blocks[:4, 0] = [0, 1, 2, 252]
        result = dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        assert result.size == count * values and np.isfinite(result).all()
        out[name] = {"bytes": blocks.tobytes().hex(), "values": result.tobytes().hex()}
    path = Path(__file__).parent.parent / "goldens/data/gguf-blocks.json"
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
