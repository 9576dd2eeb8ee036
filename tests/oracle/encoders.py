"""Writes what PEFT's encoders of prompts and prefixes, and the residual MLP of arXiv 2305.03937, compute, and their gradients by torch.

usage: encoders.py        (after make_goldens.py)

`tests/goldens/data/encoders.json`: for each of `cases` its `kind`, `table` and `width`, `parameters` by name (lists), `made`, the table
that comes out (laid out as in a training state), the table's `gradient`, and the `gradients` of every parameter that follow.

`tests/goldens/llama-gqa/encoders/`: for each kind `<kind>.safetensors` with the parameters that a run starts from, and in `curves.json` the
losses of ten steps by torch's AdamW on the causal-lm data, clipped over everything that is trained.
"""

import json
from pathlib import Path

import torch
from peft import PrefixEncoder, PrefixTuningConfig, PromptEncoder, PromptEncoderConfig
from safetensors.torch import save_file
from torch import Tensor, nn

import text
from families import FAMILIES, LAYERS
from make_adapters import ROWS, Adapted
from make_goldens import GOLDENS
from reference import Tables, loss
from training import consecutive

ROWS_OF_CASE, WIDTH, KEY, BLOCKS = 3, 6, 4, 2
LR, DECAY, CLIP, STEPS, BATCH = 1e-2, 0.01, 1.0, 10, 4


class Residual(nn.Module):
    """`x + norm(up(relu(down(x))))` for each row: the first form of the authors' ResMLP, with its layer norm."""

    def __init__(self, rows: int, width: int, bottleneck: int):
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.module = nn.Sequential(
            nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, width), nn.LayerNorm(width)
        )

    def forward(self, indices: Tensor) -> Tensor:
        x = self.embedding(indices)
        return self.module(x) + x


def encoder(kind: str, rows: int, width: int, hidden: int, layers: int) -> nn.Module:
    """PEFT's module where PEFT has one."""
    if kind == "mlp":
        return Residual(rows, width, hidden)
    common = dict(
        task_type="CAUSAL_LM",
        num_virtual_tokens=rows,
        token_dim=width,
        num_transformer_submodules=1,
        num_attention_heads=1,
        num_layers=layers,
        encoder_hidden_size=hidden,
    )
    if kind == "prefix-projection":
        return PrefixEncoder(PrefixTuningConfig(prefix_projection=True, **common))
    reparameterisation = {"p-tuning-mlp": "MLP", "p-tuning-lstm": "LSTM"}[kind]
    return PromptEncoder(PromptEncoderConfig(encoder_reparameterization_type=reparameterisation, **common))


def by_block(made: Tensor, blocks: int) -> Tensor:
    """PEFT's keys and values [m, blocks * 2 * key] as [blocks, m, 2 * key]."""
    return made.view(len(made), blocks, -1).transpose(0, 1)


def case(kind: str, table: str, hidden: int, seed: int) -> dict:
    torch.manual_seed(seed)
    sequences = {"prompt_embeddings": 1, "intermediate_prompt_embeddings": BLOCKS, "prefix_keys_values": BLOCKS}[table]
    projected = kind == "prefix-projection"
    width = KEY if projected else 2 * KEY if table == "prefix_keys_values" else WIDTH
    rows = ROWS_OF_CASE if projected else sequences * ROWS_OF_CASE
    module = encoder(kind, rows, width, hidden, BLOCKS)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # Layer norms begin at ones and zeros, which would hide what is wrong with them. Four digits go through JSON unchanged.
            parameter.copy_((parameter + 0.3 * torch.randn_like(parameter)).mul(1e4).round() / 1e4)
    module.double()
    indices = torch.arange(rows).view(-1, ROWS_OF_CASE)
    made = module(indices)
    made = by_block(made[0], BLOCKS) if projected else made
    gradient = torch.randn(made.shape).mul(1e4).round().double() / 1e4
    (made * gradient).sum().backward()
    flat = lambda tensor: [float(f"{value:.9g}") for value in tensor.flatten().tolist()]
    return {
        "kind": kind,
        "table": table,
        "width": hidden,
        "parameters": {name: flat(parameter.detach()) for name, parameter in module.named_parameters()},
        "made": flat(made.detach()),
        "gradient": flat(gradient),
        "gradients": {name: flat(parameter.grad) for name, parameter in module.named_parameters()},
    }


def curve(kind: str, hidden: int, out: Path) -> list[float]:
    """Ten steps of a prompt, or of a prefix, that the encoder makes."""
    family = next(family for family in FAMILIES if family.name == "llama-gqa")
    adapted = Adapted(family, "prefix" if kind == "prefix-projection" else "ptune", torch.float32)
    torch.manual_seed(11)
    width = adapted.config.hidden_size
    if kind == "prefix-projection":
        width = adapted.config.num_key_value_heads * adapted.head_dim
    module = encoder(kind, ROWS, width, hidden, LAYERS)
    save_file({name: value.detach().clone().contiguous() for name, value in module.named_parameters()}, out / f"{kind}.safetensors")
    parameters = list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    tokenizer = text.train_tokenizer(family.bos)
    examples = [text.tokenise(tokenizer, line) for line in text.CAUSAL_LINES]
    losses = []
    for step in range(STEPS):
        optimiser.zero_grad()
        made = module(torch.arange(ROWS).view(1, ROWS))[0]
        batch = consecutive(examples, BATCH, step)
        if kind == "prefix-projection":
            adapted.prefix = made
            value = adapted.loss(batch, "causal-lm")
        else:
            value = loss(adapted.base, batch, Tables("ptune", made), "causal-lm")
        value.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        losses.append(value.item())
        optimiser.step()
    return losses


def main() -> None:
    torch.set_num_threads(1)
    cases = [
        case("mlp", "prompt_embeddings", 4, 1),
        case("mlp", "prefix_keys_values", 3, 2),
        case("p-tuning-mlp", "prompt_embeddings", 5, 3),
        case("p-tuning-mlp", "intermediate_prompt_embeddings", 7, 4),
        case("p-tuning-lstm", "prompt_embeddings", 5, 5),
        case("p-tuning-lstm", "intermediate_prompt_embeddings", 6, 6),
        case("prefix-projection", "prefix_keys_values", 5, 7),
    ]
    body = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    (GOLDENS / "data" / "encoders.json").write_text('{"cases": [\n' + body + "\n]}\n")
    out = GOLDENS / "llama-gqa" / "encoders"
    out.mkdir(parents=True, exist_ok=True)
    widths = {"mlp": 8, "p-tuning-mlp": 12, "p-tuning-lstm": 8, "prefix-projection": 12}
    curves = {kind: {"width": hidden, "losses": curve(kind, hidden, out)} for kind, hidden in widths.items()}
    options = {"lr": LR, "weight_decay": DECAY, "clip": CLIP, "batch_size": BATCH}
    (out / "curves.json").write_text(json.dumps({"optimiser": options, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
