"""What others read of a run's directory: TensorBoard its events, the hub's library its model card. Usage: run_readers.py DIR"""

import json
import sys
from pathlib import Path

from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = Path(sys.argv[1])
LINES = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
SCALARS = {
    "step": {"train/loss": "loss", "train/lr": "lr", "train/grad_norm": "grad_norm", "train/tokens_per_s": "tokens_per_s",
             "traffic/bytes_sent": "sent", "traffic/bytes_received": "received"},
    "eval": {"eval/loss": "loss", "eval/accuracy": "accuracy", "eval/macro_f1": "macro_f1", "eval/perplexity": "perplexity"},
}


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def events_are_the_metrics() -> dict:
    events = EventAccumulator(str(RUN / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = set(events.Tags()["scalars"])
    expected = {}
    for event, tags in SCALARS.items():
        for tag, field in tags.items():
            points = [(line["step"], line[field]) for line in LINES if line["event"] == event and field in line]
            if points:
                expected[tag] = points
    assert shown == set(expected), (shown, set(expected))
    for tag, points in expected.items():
        got = [(scalar.step, scalar.value) for scalar in events.Scalars(tag)]
        assert [step for step, _ in got] == [step for step, _ in points], (tag, got, points)
        assert all(close(a, b) for (_, a), (_, b) in zip(got, points)), (tag, got, points)
    return {tag: len(points) for tag, points in expected.items()}


def the_card_has_the_last_scores() -> dict:
    card = ModelCard.load(RUN / "README.md")
    measured = [line for line in LINES if line["event"] == "eval"]
    got = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    names = {"accuracy": "accuracy", "f1": "macro_f1", "loss": "loss", "perplexity": "perplexity"}
    expected = {metric: measured[-1][field] for metric, field in names.items() if field in measured[-1]} if measured else {}
    assert set(got) == set(expected), (got, expected)
    assert all(abs(got[name] - expected[name]) <= 1e-5 * max(1, abs(expected[name])) for name in got), (got, expected)
    return {"base_model": card.data.base_model, "library": card.data.library_name, "pipeline": card.data.pipeline_tag, "tags": card.data.tags}


def macro_f1_is_that_of_the_matrix() -> int:
    from sklearn.metrics import accuracy_score, f1_score

    count = 0
    for line in LINES:
        if "confusion" in line:
            cells = [(truth, predicted) for truth, row in enumerate(line["confusion"]["matrix"])
                     for predicted, times in enumerate(row) for _ in range(times)]
            truth, predicted = zip(*cells)
            labels = range(len(line["confusion"]["labels"]))
            f1 = f1_score(truth, predicted, labels=labels, average="macro", zero_division=0)
            assert close(f1, line["macro_f1"]) and close(accuracy_score(truth, predicted), line["accuracy"]), line
            count += 1
    return count


print(json.dumps({"scalars": events_are_the_metrics(), "card": the_card_has_the_last_scores(), "matrices": macro_f1_is_that_of_the_matrix()}))
