"""One block of a family by transformers' own module: forward, and its input's gradient. Prints one JSON object per figure.

usage: family_block.py llama|bloom|falcon|mixtral [--repeat N]

4 x 128 tokens, f32, frozen weights. Every way that transformers has of computing the block (eager or fused attention; BLOOM's GELU plain or
with a backward of its own) is timed in turn, and for each figure the fastest one counts. As many threads as torch takes (OMP_NUM_THREADS).
Sizes are those of crates/model/examples/random/shapes.rs.
"""

import argparse
import json
import statistics
import sys
import time

import torch
from transformers import BloomConfig, FalconConfig, LlamaConfig, MixtralConfig
from transformers.models.bloom.modeling_bloom import BloomBlock, build_alibi_tensor
from transformers.models.falcon.modeling_falcon import FalconDecoderLayer, FalconRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralRotaryEmbedding

BATCH, LENGTH, HIDDEN, HEADS = 4, 128, 1024, 16
WARMUP = 2
# Largest difference between two ways of computing the same, which would mean that one of them masks wrongly.
TOLERANCE = 1e-3


def causal():
    """What is added to scores: nothing where a query sees a key."""
    least = torch.finfo(torch.float32).min
    return torch.full((LENGTH, LENGTH), least).triu(1).expand(BATCH, 1, LENGTH, LENGTH).contiguous()


def with_rotary(config, layer, rotary, **fixed):
    """Blocks that are given cosines and sines, with eager attention and with torch's fused one, which masks by itself."""
    angles = rotary(config)(torch.zeros(1), torch.arange(LENGTH)[None])
    for way, mask in ("eager", causal()), ("sdpa", None):
        block = layer(type(config).from_dict(config.to_dict(), attn_implementation=way), layer_idx=0).eval()
        yield way, block, dict(attention_mask=mask, position_embeddings=angles, **fixed)


def llama():
    sizes = dict(num_attention_heads=HEADS, num_key_value_heads=HEADS, intermediate_size=2816)
    return with_rotary(LlamaConfig(hidden_size=HIDDEN, **sizes), LlamaDecoderLayer, LlamaRotaryEmbedding)


def falcon():
    config = FalconConfig(hidden_size=HIDDEN, num_attention_heads=HEADS, ffn_hidden_size=4 * HIDDEN)
    return with_rotary(config, FalconDecoderLayer, FalconRotaryEmbedding, alibi=None)


def mixtral():
    sizes = dict(num_attention_heads=HEADS, num_key_value_heads=8, intermediate_size=1792)
    config = MixtralConfig(hidden_size=HIDDEN, num_local_experts=8, num_experts_per_tok=2, **sizes)
    return with_rotary(config, MixtralDecoderLayer, MixtralRotaryEmbedding)


def bloom():
    config = BloomConfig(hidden_size=HIDDEN, n_head=HEADS)
    alibi = build_alibi_tensor(torch.ones(BATCH, LENGTH), HEADS, torch.float32)
    for way, training in ("plain GELU", False), ("GELU with a backward of its own", True):
        yield way, BloomBlock(config, layer_idx=0).train(training), dict(alibi=alibi, attention_mask=causal())


FAMILIES = dict(llama=llama, bloom=bloom, falcon=falcon, mixtral=mixtral)


def run(block, x, given):
    output = block(x, **given)
    return output[0] if isinstance(output, tuple) else output


def seconds(block, x, gradient, given):
    """A forward, one that keeps what its backward needs, and that backward."""
    started = time.perf_counter()
    with torch.no_grad():
        run(block, x, given)
    forward = time.perf_counter() - started
    leaf = x.clone().requires_grad_(True)
    started = time.perf_counter()
    y = run(block, leaf, given)
    between = time.perf_counter()
    y.backward(gradient)
    return forward, between - started, time.perf_counter() - between


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--repeat", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    x = torch.rand(BATCH, LENGTH, HIDDEN) * 2 - 1
    gradient = torch.rand_like(x) * 2 - 1
    ways = list(FAMILIES[arguments.family]())
    for _, block, _ in ways:
        block.load_state_dict(ways[0][1].state_dict())
        block.requires_grad_(False)
    with torch.no_grad():
        outputs = [run(block, x, given) for _, block, given in ways]
    difference = max((output - outputs[0]).abs().max().item() for output in outputs)
    if difference > TOLERANCE:
        sys.exit(f"the ways of computing a block of {arguments.family} differ by {difference:.1e}: has transformers changed?")
    times = {way: [] for way, _, _ in ways}
    for number in range(WARMUP + arguments.repeat):
        for way, block, given in ways:
            found = seconds(block, x, gradient, given)
            if number >= WARMUP:
                times[way].append(found)
    for at, name in enumerate(("forward", "forward and stash", "backward")):
        medians = {way: 1e3 * statistics.median(found[at] for found in all_of_them) for way, all_of_them in times.items()}
        way = min(medians, key=medians.get)
        print(json.dumps({"what": f"{arguments.family}: {name}", "ms": medians[way], "way": way}), flush=True)


if __name__ == "__main__":
    main()
