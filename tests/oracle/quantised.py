"""Writes tests/goldens/data/quantised.json: small matrices in the layouts of GPTQ, AWQ, compressed-tensors and FP8, and what the
reference implementations make of them, with scales widened to f32 so that all of their arithmetic is f32.

usage: quantised.py KERNEL.py

KERNEL.py is inference/kernel.py of github.com/deepseek-ai/DeepSeek-V3 (commit 9b4e9788), which runs in Triton's interpreter. GPTQ is
AutoGPTQ's QuantLinear, AWQ AutoAWQ's dequantize_gemm, compressed-tensors its own package; the first two are loaded without their
packages, which ask for much else."""

import base64
import importlib.util
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import torch
from compressed_tensors.compressors.quantized_compressors.pack_quantized import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize

GOLDEN = Path(__file__).resolve().parent.parent / "goldens/data/quantised.json"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32", torch.int64: "I64", torch.int8: "I8",
          torch.float8_e4m3fn: "F8_E4M3"}


def load(path: str):
    """A module of an installed package by its file, without the package around it."""
    found = next(Path(place) / path for place in [*sys.path, ""] if (Path(place) / path).is_file())
    spec = importlib.util.spec_from_file_location(found.stem, found)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GPTQ = load("auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
AWQ = load("awq/utils/packing_utils.py")
RANDOM = torch.Generator().manual_seed(11)


def integers(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=RANDOM)


def scales_of(*shape: int, dtype=torch.float16) -> torch.Tensor:
    return (torch.rand(shape, generator=RANDOM) * 0.1 + 0.001).to(dtype)


def packed(tensor: torch.Tensor) -> dict:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data": base64.b64encode(data).decode()}


def case(name: str, config: dict, tensors: dict, values: torch.Tensor) -> dict:
    """`values` are `[rows, values]` in f32, of which some rows are kept."""
    assert values.dtype == torch.float32 and values.isfinite().all(), name
    rows = [row for row in range(len(values)) if len(values) <= 8 or row % 5 == 2 or row == len(values) - 1]
    tensors = {end: packed(tensor) for end, tensor in tensors.items()}
    shape = list(values.shape)
    return {"name": name, "config": config, "tensors": tensors, "shape": shape, "rows": rows, "values": packed(values[rows])["data"]}


def gptq(name: str, bits: int, group: int, inputs: int, outputs: int, *, shuffled=False, v2=False, sym=False, indices=True) -> dict:
    size = inputs if group == -1 else group
    groups = -(-inputs // size)
    order = torch.randperm(inputs, generator=RANDOM) if shuffled else torch.arange(inputs)
    g_idx = (order // size).to(torch.int32)
    scales = scales_of(groups, outputs)
    # From 1 on: one less is stored.
    zeros = torch.full((groups, outputs), 2 ** (bits - 1)) if sym else integers(1, 2**bits, groups, outputs)

    def module(stored_zeros):
        made = GPTQ(bits, group, inputs, outputs, False, weight_dtype=torch.float32)
        codes = integers(0, 2**bits, outputs, inputs)
        wide = scales.float()
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        linear.weight.data = wide.T[:, g_idx] * (codes - zeros.T[:, g_idx])
        # pack() divides and rounds: the codes come out as they went in.
        made.pack(linear, wide.T, zeros.T, g_idx)
        if stored_zeros is not None:
            blank = torch.nn.Linear(inputs, outputs, bias=False)
            other = GPTQ(bits, group, inputs, outputs, False, weight_dtype=torch.float32)
            other.pack(blank, wide.T, stored_zeros.T, g_idx)
            made.other_zeros = other.qzeros
        return made

    # What pack() stores for z + 1 is z itself, as version 2 has it.
    made = module(zeros + 1 if v2 else None)
    made.scales = made.scales.float()
    values = made(torch.eye(inputs)).T.contiguous()
    tensors = {"qweight": made.qweight, "qzeros": made.other_zeros if v2 else made.qzeros, "scales": scales}
    if indices:
        tensors["g_idx"] = g_idx
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": sym}
    if v2:
        config["checkpoint_format"] = "gptq_v2"
    return case(name, config, tensors, values)


def awq(name: str, group: int, inputs: int, outputs: int) -> dict:
    size = inputs if group == -1 else group
    words = [integers(-(2**31), 2**31, rows, outputs // 8).to(torch.int32) for rows in (inputs, inputs // size)]
    scales = scales_of(inputs // size, outputs)
    values = AWQ.dequantize_gemm(*words, scales.float(), 4, size).T.contiguous()
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return case(name, config, {"qweight": words[0], "qzeros": words[1], "scales": scales}, values)


def compressed(name: str, layout: str, weights: dict, codes: torch.Tensor, scale: torch.Tensor, *, zeros=None, g_idx=None, args=None) -> dict:
    rows, values = codes.shape
    if zeros is not None and layout == "pack-quantized":
        stored = pack_to_int32(zeros, weights["num_bits"], packed_dim=0)
        zeros = unpack_from_int32(stored, weights["num_bits"], zeros.shape, packed_dim=0)
    else:
        stored = zeros
    tensors = {"weight_scale": scale}
    if layout == "pack-quantized":
        tensors |= {"weight_packed": pack_to_int32(codes, weights["num_bits"]), "weight_shape": torch.tensor([rows, values])}
        codes = unpack_from_int32(tensors["weight_packed"], weights["num_bits"], codes.shape)
    else:
        tensors["weight"] = codes
    if zeros is not None:
        tensors["weight_zero_point"] = stored
    if g_idx is not None:
        tensors["weight_g_idx"] = g_idx
    wide = dequantize(codes, scale.float(), zeros, args=args, g_idx=g_idx)
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    config = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": ["lm_head"]}
    return case(name, config, tensors, wide.float())


def bytes_of(bits: int, *shape: int) -> torch.Tensor:
    return integers(-(2 ** (bits - 1)), 2 ** (bits - 1), *shape).to(torch.int8)


def floats(*shape: int) -> torch.Tensor:
    """All codes of E4M3 that are numbers, over and over."""
    codes = torch.arange(torch.Size(shape).numel()) % 254
    return (codes + (codes > 126)).to(torch.uint8).view(torch.float8_e4m3fn).reshape(shape)


def int4(**more) -> dict:
    return {"num_bits": 4, "type": "int", "symmetric": True} | more


def compressed_cases() -> list[dict]:
    group = int4(strategy="group", group_size=10)
    indices = (torch.randperm(40, generator=RANDOM) // 10).to(torch.int32)
    pack, bf16 = "pack-quantized", torch.bfloat16
    block = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[4, 6])
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True}
    return [
        # 20 values are no whole words.
        compressed("int4 groups", pack, group, bytes_of(4, 5, 20), scales_of(5, 2, dtype=bf16)),
        compressed("int4 rows", pack, int4(strategy="channel"), bytes_of(4, 5, 20), scales_of(5, 1)),
        compressed("int4 matrix", pack, int4(strategy="tensor"), bytes_of(4, 5, 20), scales_of(1)),
        compressed("int4 groups with zero points", pack, group | {"symmetric": False}, bytes_of(4, 11, 40), scales_of(11, 4, dtype=bf16),
                   zeros=bytes_of(4, 11, 4)),
        compressed("int4 groups in another order", pack, group | {"actorder": "group"}, bytes_of(4, 3, 40), scales_of(3, 4, dtype=bf16),
                   g_idx=indices),
        compressed("int4 rows with zero points", pack, int4(strategy="channel", symmetric=False), bytes_of(4, 9, 16), scales_of(9, 1),
                   zeros=bytes_of(4, 9, 1)),
        compressed("int8 groups, packed", pack, {"num_bits": 8, "strategy": "group", "group_size": 6}, bytes_of(8, 3, 18), scales_of(3, 3)),
        compressed("int8 rows", "int-quantized", {"num_bits": 8, "strategy": "channel"}, bytes_of(8, 4, 9), scales_of(4, 1, dtype=bf16)),
        compressed("int8 rows with zero points", "int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False},
                   bytes_of(8, 4, 9), scales_of(4, 1, dtype=torch.float32), zeros=bytes_of(8, 4, 1)),
        compressed("fp8 matrix", "float-quantized", fp8 | {"strategy": "tensor"}, floats(4, 9), scales_of(1, dtype=bf16)),
        compressed("fp8 rows", "float-quantized", fp8 | {"strategy": "channel"}, floats(16, 16), scales_of(16, 1, dtype=torch.float32)),
        compressed("fp8 blocks", "float-quantized", fp8 | {"strategy": "block", "block_structure": [4, 6]}, floats(8, 18),
                   scales_of(2, 3, dtype=bf16), args=block),
    ]


def fp8(name: str, dequant, shape: tuple, block: int, dtype: torch.dtype) -> dict:
    weight = floats(*shape)
    scales = scales_of(*(-(-side // block) for side in shape), dtype=dtype)
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    return case(name, config, {"weight": weight, "weight_scale_inv": scales}, dequant(weight, scales.float(), block))


def fp8_matrix() -> dict:
    weight, scale = floats(3, 100), scales_of(1, dtype=torch.float32)
    return case("fp8 of one scale", {"quant_method": "fp8"}, {"weight": weight, "weight_scale_inv": scale}, dequantize(weight, scale))


def main() -> None:
    dequant = load(sys.argv[1]).weight_dequant
    cases = [
        gptq("gptq 4 bits", 4, 8, 32, 32),
        gptq("gptq 4 bits without indices", 4, 16, 32, 32, indices=False, sym=True),
        gptq("gptq 4 bits, a group that is cut", 4, 24, 32, 32),
        gptq("gptq 4 bits in another order", 4, 8, 32, 32, shuffled=True),
        gptq("gptq 4 bits, whole rows", 4, -1, 32, 32),
        gptq("gptq 4 bits, version 2", 4, 16, 32, 32, v2=True),
        gptq("gptq 8 bits", 8, 16, 32, 32),
        gptq("gptq 8 bits, version 2 in another order", 8, 16, 32, 32, v2=True, shuffled=True),
        gptq("gptq 2 bits", 2, 16, 32, 32),
        gptq("gptq 3 bits", 3, 32, 64, 32),
        gptq("gptq 3 bits in another order", 3, 8, 32, 32, shuffled=True),
        awq("awq", 16, 48, 16),
        awq("awq, whole rows", -1, 24, 8),
        *compressed_cases(),
        fp8("fp8 blocks with edges", dequant, (21, 37), 16, torch.float32),
        fp8("fp8 whole blocks, scales in bf16", dequant, (16, 32), 8, torch.bfloat16),
        fp8_matrix(),
    ]
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(one) for one in cases) + "\n]\n")


main()
