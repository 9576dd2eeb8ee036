"""Loads a prompt-tuning adapter with PEFT as it stands and writes its logits: proof that PEFT reads our adapters.

usage: check_adapter.py MODEL_DIR ADAPTER_DIR --input-ids FILE.json --out FILE.safetensors [--task causal-lm|seq-cls]

FILE.json is a list of rows of token ids. The output holds the f32 tensor "logits": [B, S, V] at the text positions for
causal-lm, [B, labels] for seq-cls.
"""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from peft_adapters import MODEL_CLASSES, adapter_logits


def label_count(adapter_dir: Path) -> int:
    """The number of classes: rows of the adapter's one tensor whose name ends in score.weight ([labels, d])."""
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    return len(next(tensor for name, tensor in tensors.items() if name.endswith("score.weight")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("adapter_dir", type=Path)
    parser.add_argument("--input-ids", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=sorted(MODEL_CLASSES), default="causal-lm")
    args = parser.parse_args()
    rows = json.loads(args.input_ids.read_text())
    labels = label_count(args.adapter_dir) if args.task == "seq-cls" else None
    logits = adapter_logits(args.model_dir, args.adapter_dir, args.task, rows, labels)
    save_file({"logits": logits.float().contiguous()}, args.out)


if __name__ == "__main__":
    main()
