"""Yardsticks and one Llama block by PyTorch, for scripts/gpu-check. Prints one JSON object per figure.

usage: gpu_check_torch.py cuda|cpu yardsticks|block [--tiny] --hidden N --mlp N --heads N --key-heads N --batch N --length N --repeat N

The block is bf16 with frozen weights and torch's fused attention, as transformers' Llama computes it; `forward` keeps what the backward needs, `backward` is
that to the input. Times are medians, the device idle before and after.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, hidden, mlp, heads, key_heads, length):
        super().__init__()
        self.heads, self.key_heads, self.dim = heads, key_heads, hidden // heads
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        keys = key_heads * self.dim
        self.q, self.k, self.v, self.o = linear(hidden, hidden), linear(hidden, keys), linear(hidden, keys), linear(hidden, hidden)
        self.gate, self.up, self.down = linear(hidden, mlp), linear(hidden, mlp), linear(mlp, hidden)
        self.norms = nn.ParameterList([torch.ones(hidden), torch.ones(hidden)])
        angles = torch.outer(torch.arange(length).float(), 500000.0 ** (-torch.arange(0, self.dim, 2) / self.dim))
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1))

    def norm(self, x, weight):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def turn(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x):
        batch, length, _ = x.shape
        split = lambda y, heads: y.view(batch, length, heads, self.dim).transpose(1, 2)
        y = self.norm(x, self.norms[0])
        q = self.turn(split(self.q(y), self.heads))
        k, v = self.turn(split(self.k(y), self.key_heads)), split(self.v(y), self.key_heads)
        k, v = (z.repeat_interleave(self.heads // self.key_heads, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, -1))
        y = self.norm(x, self.norms[1])
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, repeat, run):
    """Milliseconds of a run."""
    times = []
    for number in range(3 + repeat):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        if number >= 3:
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def yardsticks(options):
    device = options.device
    # Far more than caches hold.
    count = 1 << (20 if options.tiny else 30)
    x, y = torch.zeros(count, dtype=torch.uint8, device=device), torch.empty(count, dtype=torch.uint8, device=device)
    ms = timed(device, options.repeat, lambda: y.copy_(x))
    print(json.dumps({"what": "copy", "ms": ms, "gb_per_s": 2 * count / ms / 1e6, "note": "bytes read and bytes written"}))
    size = 128 if options.tiny else 8192
    for name in ("bfloat16", "float32"):
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, name)) for _ in range(2))
        ms = timed(device, options.repeat, lambda: a @ b)
        print(json.dumps({"what": f"product {name}", "ms": ms, "tflops": 2 * size**3 / ms / 1e9, "size": size}))
    if device == "cuda":
        print(json.dumps({"what": "torch", "version": torch.__version__, "card": torch.cuda.get_device_name()}))


def block(options):
    device, shape = options.device, (options.batch, options.length, options.hidden)
    sizes = (options.hidden, options.mlp, options.heads, options.key_heads, options.length)
    layer = Block(*sizes).to(device, torch.bfloat16).requires_grad_(False)
    x = torch.randn(shape, device=device).to(torch.bfloat16)
    with torch.no_grad():
        print(json.dumps({"what": "forward without a graph", "ms": timed(device, options.repeat, lambda: layer(x))}))
    x.requires_grad_(True)
    print(json.dumps({"what": "forward", "ms": timed(device, options.repeat, lambda: layer(x))}))
    out, grads = layer(x), torch.randn(shape, device=device).to(torch.bfloat16)
    back = lambda: torch.autograd.grad(out, x, grads, retain_graph=True)
    print(json.dumps({"what": "backward", "ms": timed(device, options.repeat, back)}))


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("device", choices=["cuda", "cpu"])
    parser.add_argument("what", choices=["yardsticks", "block"])
    parser.add_argument("--tiny", action="store_true")
    for name in ("hidden", "mlp", "heads", "key-heads", "batch", "length", "repeat"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.manual_seed(1)
    # f32 that is f32.
    torch.backends.cuda.matmul.allow_tf32 = False
    {"yardsticks": yardsticks, "block": block}[options.what](options)


if __name__ == "__main__":
    main()
