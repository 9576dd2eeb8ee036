"""Trains the base model of scripts/bench-learning: a Llama of 5.4 million parameters with a BPE of its own.

The matrices of the blocks are stepped by Muon (orthogonalised momentum), which learns about twice as much of a token as AdamW does. From a third of
the way on, every eighth batch is of texts of two thousand tokens.

Usage: make_base.py --data DATA --work FOLDER --out MODEL [--steps N]      40 minutes on two cores"""

import argparse
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from corpus import Exercises, documents, vader

SHORT, LONG = (12, 256), (2, 2048)


def make_tokenizer(sources):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = sources["reviews"] * 4 + sources["short"] + [part for document in sources["prose"] for part in document]
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts + ["\nwords:\nagain:\nmood: great good plain bad awful"] * 1000, trainer)
    return tokenizer


def batches(draw, tokenizer, shape, end):
    """Rows of tokens, texts one behind the other."""
    rows, length = shape
    kept = []
    while True:
        while len(kept) < rows * length:
            kept += tokenizer.encode(draw()).ids + [end]
        yield torch.tensor(kept[: rows * length]).view(rows, length)
        kept = kept[rows * length :]


class Muon:
    """Keller Jordan's Muon: momentum whose singular values are all brought near 1 by a Newton-Schulz iteration."""

    def __init__(self, matrices, momentum=0.95):
        self.matrices, self.momentum = matrices, momentum
        self.moments = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, lr):
        for matrix, moment in zip(self.matrices, self.moments):
            moment.lerp_(matrix.grad, 1 - self.momentum)
            update = torch.lerp(matrix.grad, moment, self.momentum)
            tall = update.shape[0] > update.shape[1]
            x = update.T if tall else update
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            matrix.add_(x.T if tall else x, alpha=-lr * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5)
            matrix.grad = None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--from-step", type=int, default=0, help="go on with what an interrupted run saved after so many steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    sources = documents(args.work, args.data / "sst2")
    tokenizer = make_tokenizer(sources)
    exercises = Exercises(sources, vader(args.work), seed=args.from_step)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )
    model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32) if args.from_step else LlamaForCausalLM(config)
    parameters = sum(p.numel() for p in model.parameters())
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    muon = Muon(matrices)
    optimizer = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    short = batches(exercises.short, tokenizer, SHORT, 0)
    long = batches(lambda: exercises.long(LONG[1], lambda text: len(tokenizer.encode(text).ids)), tokenizer, LONG, 0)
    fast = torch.compile(model, dynamic=False)
    total, started, seen, means = args.steps, time.time(), 0, {}
    for step in range(args.from_step, total):
        pace = min(1, (step - args.from_step + 1) / 50) * min(1, 0.02 + 2 * (1 - step / total))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * pace
        shape = LONG if step > total // 3 and step % 8 == 7 else SHORT
        batch = next(long if shape == LONG else short)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = fast(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        muon.step(0.02 * pace)
        optimizer.zero_grad()
        seen += batch.numel()
        means[shape] = 0.98 * means.get(shape, loss.item()) + 0.02 * loss.item()
        if step % 50 == 0 or step == total - 1:
            losses = ", ".join(f"{mean:.3f} at {length} tokens" for (_, length), mean in means.items())
            print(f"step {step} of {total}: loss {losses}, {seen / 1e6:.1f} M tokens, {time.time() - started:.0f} s", flush=True)
        if step == total - 1 or step % 200 == 199:
            args.out.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(args.out)
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(args.out)
    print(f"{parameters / 1e6:.1f} M parameters, {seen / 1e6:.1f} M tokens, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
