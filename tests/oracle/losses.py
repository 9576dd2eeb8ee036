"""Writes tests/goldens/data/losses.json: torch's cross_entropy with label smoothing and weights, and its gradients.

The rows, labels and weights are those of `crates/model/src/client_model/cross_entropy.rs`. Losses are sums over the rows, so that
parts of a batch can be added; `reduction="mean"` divides by the sum of the labels' weights, which is asserted here.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

LOGITS = [[0.5, -1.0, 2.0, 0.25], [1.5, 0.0, -2.0, 3.0], [-0.5, 0.75, 0.1, 1.0]]
LABELS = [2, 0, 3]
WEIGHTS = [0.5, 2.0, 1.0, 0.25]


def main() -> None:
    labels, cases = torch.tensor(LABELS), []
    for smoothing in (0.0, 0.1, 0.5, 1.0):
        for weighted in (False, True):
            logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
            weight = torch.tensor(WEIGHTS, dtype=torch.float64) if weighted else None
            mean = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
            total = len(LABELS) if weight is None else weight[labels].sum()
            summed = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="sum")
            torch.testing.assert_close(mean * total, summed)
            summed.backward()
            gradient = [round(value, 12) for value in logits.grad.flatten().tolist()]
            cases.append({"smoothing": smoothing, "weighted": weighted, "loss": summed.item(), "gradient": gradient})
    out = Path(__file__).resolve().parent.parent / "goldens" / "data" / "losses.json"
    body = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    out.write_text('{"cases": [\n' + body + "\n]}\n")


if __name__ == "__main__":
    main()
