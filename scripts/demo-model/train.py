"""Trains the demo's tokenizer and its small Llama, and writes them as a Hugging Face directory in bf16.

usage: train.py [--corpus FILE] [--out DIR] [--steps N] [--threads N]
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
BOS, EOS, MOST_TOKENS = 0, 1, 1536
WINDOW, BATCH, WARMUP = 64, 16, 60
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 0.05


def train_tokenizer(lines: list[str]) -> Tokenizer:
    """Byte-level BPE that puts <bos> in front of a text; ids 0 and 1 are <bos> and <eos>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MOST_TOKENS,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


def new_model(vocab: int) -> LlamaForCausalLM:
    """Eight blocks of width 128 with grouped-query attention and tied embeddings: about 1.8 million parameters."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def windows(tokenizer: Tokenizer, lines: list[str]) -> torch.Tensor:
    """All lines, each as <bos> line <eos>, end to end and cut into windows [N, WINDOW + 1]."""
    stream = torch.tensor([token for code in tokenizer.encode_batch(lines) for token in (*code.ids, EOS)])
    count = len(stream) // (WINDOW + 1)
    return stream[: count * (WINDOW + 1)].view(count, WINDOW + 1)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return LEARNING_RATE * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def fit(model: LlamaForCausalLM, data: torch.Tensor, steps: int) -> None:
    """Trains on random windows of `data` [N, WINDOW + 1], printing loss, rate and time left."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    began, average = time.monotonic(), None
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        batch = data[torch.randint(len(data), (BATCH,))]
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            passed = time.monotonic() - began
            left = passed / (step + 1) * (steps - step - 1)
            speed = (step + 1) * BATCH * WINDOW / passed
            print(f"step {step + 1}/{steps}  loss {average:.3f}  {speed:.0f} tokens/s  {left:.0f} s left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT / "target" / "demo-model" / "corpus.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--threads", type=int, default=1, help="more only help where nothing else runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(20)
    lines = args.corpus.read_text().splitlines()
    tokenizer = train_tokenizer(lines)
    data = windows(tokenizer, lines)
    model = new_model(tokenizer.get_vocab_size())
    print(f"{model.num_parameters()} parameters, {tokenizer.get_vocab_size()} tokens, {data.numel()} tokens of text")
    fit(model, data, args.steps)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save(str(args.out / "tokenizer.json"))


if __name__ == "__main__":
    main()
