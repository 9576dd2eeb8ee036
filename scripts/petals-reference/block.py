"""One Llama block in torch alone: forward, and its input's gradient. Prints one JSON object per figure.

usage: block.py [--dtype f32|bf16] [--repeat N] [--hidden N] [--mlp N] [--heads N]

4 x 128 tokens. Weights are frozen, attention is torch's fused one, so this is as good as torch gets without a compiler.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

BATCH, LENGTH = 4, 128
# Enough: without AMX or AVX512-BF16 torch needs half a minute for a pass in bfloat16.
LONGEST_S = 90


class Block(torch.nn.Module):
    def __init__(self, hidden, mlp, heads):
        super().__init__()
        self.heads, self.width = heads, hidden // heads
        linear = lambda inputs, outputs: torch.nn.Linear(inputs, outputs, bias=False)
        self.q, self.k, self.v, self.o = (linear(hidden, hidden) for _ in range(4))
        self.gate, self.up, self.down = linear(hidden, mlp), linear(hidden, mlp), linear(mlp, hidden)
        self.norms = torch.nn.ParameterList([torch.ones(hidden), torch.ones(hidden)])
        frequencies = 1.0 / 10000 ** (torch.arange(0, self.width, 2) / self.width)
        angles = torch.outer(torch.arange(LENGTH), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.requires_grad_(False)

    def norm(self, x, weight):
        y = x.float()
        return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def rotate(self, x):
        one, two = x.chunk(2, -1)
        return x * self.cos + torch.cat((-two, one), -1) * self.sin

    def forward(self, x):
        y = self.norm(x, self.norms[0])
        q, k, v = (p(y).view(BATCH, LENGTH, self.heads, self.width).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(BATCH, LENGTH, -1))
        y = self.norm(x, self.norms[1])
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--mlp", type=int, default=2816)
    parser.add_argument("--heads", type=int, default=16)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    block = Block(arguments.hidden, arguments.mlp, arguments.heads).to(dtype)
    x = torch.randn(BATCH, LENGTH, arguments.hidden).to(dtype)
    gradient = torch.randn_like(x)
    forward, keeping, backward = [], [], []
    begun = time.perf_counter()
    for number in range(arguments.repeat + 1):
        if number > 1 and time.perf_counter() - begun > LONGEST_S:
            break
        started = time.perf_counter()
        with torch.no_grad():
            block(x)
        forward.append(time.perf_counter() - started)
        leaf = x.clone().requires_grad_(True)
        started = time.perf_counter()
        y = block(leaf)
        between = time.perf_counter()
        y.backward(gradient)
        backward.append(time.perf_counter() - between)
        keeping.append(between - started)
    for name, times in ("forward", forward), ("forward and stash", keeping), ("backward", backward):
        print(json.dumps({"what": f"{name}, {arguments.dtype}", "ms": 1e3 * statistics.median(times[1:])}), flush=True)


if __name__ == "__main__":
    main()
