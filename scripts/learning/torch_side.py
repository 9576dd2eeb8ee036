"""The same adapter trained by PEFT in torch: same model, data, steps and settings as a run of petals-tune, from the same first tables.

Usage: torch_side.py MODEL START --task TASK --train FILE --test FILE --rates FILE --seed N
START is an adapter that petals-tune saved before its first step, FILE of rates a JSON list with the learning rate of each step. Prints one JSON
line: score, seconds of training, trained values."""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()

# As petals-tune has it.
BATCH = 16


def batch_of(rows, tokenizer, task):
    longest = max(len(ids) for ids, _ in rows)
    # A classifier reads the last token, so that padding is in front.
    pads = [[0] * (longest - len(ids)) for ids, _ in rows]
    front = task == "seq-cls"
    ids = torch.tensor([pad + ids if front else ids + pad for (ids, _), pad in zip(rows, pads)])
    mask = torch.tensor([[0] * len(pad) + [1] * len(ids) if front else [1] * len(ids) + [0] * len(pad) for (ids, _), pad in zip(rows, pads)])
    if front:
        return ids, mask, torch.tensor([label for _, label in rows])
    return ids, mask, ids.masked_fill(mask == 0, -100)


def loss_of(model, batch, task):
    """Sum of cross-entropies, labels and hits."""
    ids, mask, labels = batch
    logits = model(input_ids=ids, attention_mask=mask).logits
    if task == "causal-lm":
        logits, labels = logits[:, -ids.shape[1] :][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return loss, (labels != -100).sum().item(), (logits.argmax(-1) == labels).sum().item()


def adapted(base, start):
    """The model with the adapter's tables, to be trained on. PEFT loads prompts and prefixes to be run only, so they are put in by hand."""
    config = PeftConfig.from_pretrained(start)
    if config.peft_type.value not in ("PROMPT_TUNING", "PREFIX_TUNING"):
        return PeftModel.from_pretrained(base, start, is_trainable=True)
    config.inference_mode = False
    model, tables = get_peft_model(base, config), load_file(Path(start) / "adapter_model.safetensors")
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(tables["prompt_embeddings"])
        if "score.weight" in tables:
            model.base_model.score.modules_to_save["default"].weight.copy_(tables["score.weight"])
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("start")
    parser.add_argument("--task", required=True)
    for name in ["train", "test", "rates"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--dtype", default="f32", help="f32, or bf16 for products of weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.task == "seq-cls":
        base = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2, dtype=torch.float32)
    else:
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    base.config.pad_token_id = 0
    model = adapted(base, args.start)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def read(path):
        rows = map(json.loads, path.open())
        return [(tokenizer(row["text"]).input_ids, row.get("label", 0)) for row in rows]

    data, test = read(args.train), read(args.test)
    order = []
    # As petals-tune: batches of similar lengths, which is what makes them cheap.
    draw = random.Random(args.seed)

    def epoch():
        indices = list(range(len(data)))
        draw.shuffle(indices)
        window = 64 * BATCH
        batches = []
        for at in range(0, len(indices), window):
            part = sorted(indices[at : at + window], key=lambda i: len(data[i][0]))
            batches += [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
        draw.shuffle(batches)
        return batches

    products = torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16")
    started = time.time()
    for rate in json.loads(args.rates.read_text()):
        if not order:
            order = epoch()
        for group in optimizer.param_groups:
            group["lr"] = rate
        with products:
            loss, labels, _ = loss_of(model, batch_of([data[i] for i in order.pop()], tokenizer, args.task), args.task)
        (loss / labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.time() - started
    total = [0.0, 0, 0]
    model.eval()
    with torch.no_grad(), products:
        test.sort(key=lambda row: len(row[0]))
        for at in range(0, len(test), 32):
            loss, labels, hits = loss_of(model, batch_of(test[at : at + 32], tokenizer, args.task), args.task)
            total = [total[0] + loss.item(), total[1] + labels, total[2] + hits]
    score = {"loss": total[0] / total[1], "accuracy": total[2] / total[1]}
    print(json.dumps(score | {"seconds": seconds, "trained": sum(p.numel() for p in trained)}))


if __name__ == "__main__":
    main()
