"""Writes tests/goldens/data/embeddings.json: the last and the mean final hidden state of each row of input_ids.json.

From what transformers recorded in goldens.safetensors: the last block's output, to which the final norm (transformers' LlamaRMSNorm) is
applied here in double precision. Needs numpy and safetensors alone.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
MODELS = ["llama-gqa", "qwen3"]


def main() -> None:
    golden = {}
    for name in MODELS:
        weights = {}
        for shard in sorted((GOLDENS / name / "model").glob("*.safetensors")):
            weights |= load_file(shard)
        eps = json.loads((GOLDENS / name / "model" / "config.json").read_text())["rms_norm_eps"]
        hidden = load_file(GOLDENS / name / "goldens.safetensors")["hidden_states"][-1].astype(np.float64)
        norm = weights["model.norm.weight"].astype(np.float64)
        states = norm * hidden / np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + eps)
        golden[name] = {"last": states[:, -1].tolist(), "mean": states.mean(axis=1).tolist()}
    (GOLDENS / "data" / "embeddings.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
