"""Runs lm_eval on a served model in every way in which it asks a server, and on the same model in transformers: all scores must be equal.

usage: compare.py TASKS_DIR MODEL_DIR URL NAME [ADAPTER_DIR]

TASKS_DIR has the tasks, MODEL_DIR the model and its tokenizer, ADAPTER_DIR an adapter as PEFT loads it; URL is that of the server, NAME what it
calls the model. The current folder has the tasks' data in `data`. Exits with 1 if something differs.
"""

import json
import sys
import tempfile
from pathlib import Path

import peft.peft_model
from lm_eval.__main__ import cli_evaluate
from transformers import AutoTokenizer

# PEFT looks for a device beside the CPU where a model was put on one by name, as lm_eval does it, and fails on machines without.
peft.peft_model.map_cache_to_layer_device_map = lambda *_: None

# Positions that all of them use: what the model has, less the prompts and the token that local-completions asks for beyond the text.
POSITIONS = 500
# What lm_eval prints has four decimals, and single precision seven digits.
LAST_DIGIT, DIGITS = 0.5e-4, 1e-6
# Sums of hundreds of logarithms, in single precision.
SUMS = 1e-3
SCORED = ["petals_choice", "petals_spaces", "petals_long", "petals_rolling"]
WRITTEN = ["petals_answer"]
CHATS = ["petals_chat"]
# Texts that were cut at a token are not always the same tokens again, and lm_eval sends those of another length without a word.
LOSSLESS = ["petals_choice", "petals_spaces"]


def evaluated(tasks_dir: str, model: str, tasks: list[str], arguments: dict, *more: str) -> dict:
    """What lm_eval says: for each task its scores, and each document's answers."""
    with tempfile.TemporaryDirectory() as out:
        words = ["lm_eval", "run", "--model", model, "--tasks", ",".join(tasks), "--include_path", tasks_dir]
        words += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
        sys.argv = [*words, "--output_path", f"{out}/results.json", "--log_samples", *more]
        cli_evaluate()
        (results,) = Path(out).rglob("results*.json")
        scores = json.loads(results.read_text())["results"]
        answers = {}
        for task in tasks:
            (samples,) = Path(out).rglob(f"samples_{task}_*.jsonl")
            lines = [json.loads(line) for line in samples.read_text().splitlines()]
            answers[task] = {line["doc_id"]: line["filtered_resps"] for line in lines}
    named = {task: {name: score for name, score in scores[task].items() if "," in name} for task in tasks}
    return {task: {"scores": named[task], "answers": answers[task]} for task in tasks}


def numbers(value) -> list:
    """The leaves of nested lists, read as numbers and truth values where they are such."""
    if isinstance(value, list):
        return [leaf for part in value for leaf in numbers(part)]
    try:
        return [float(value)]
    except (TypeError, ValueError):
        return [value]


def same(ours, theirs, tolerance: float) -> bool:
    """Whether two values have equal leaves, numbers within a tolerance."""
    ours, theirs = numbers([ours]), numbers([theirs])

    def equal(one, other) -> bool:
        if isinstance(one, float) and isinstance(other, float):
            return abs(one - other) <= max(tolerance, DIGITS * abs(other))
        return one == other

    return len(ours) == len(theirs) and all(map(equal, ours, theirs))


def differences(ours: dict, theirs: dict) -> list[str]:
    """What is not equal, in words."""
    found = []
    for task in ours:
        for name, score in theirs[task]["scores"].items():
            own = ours[task]["scores"].get(name)
            if not same(own, score, LAST_DIGIT):
                found.append(f"{task}, {name}: {own}, transformers {score}")
        for document, answer in theirs[task]["answers"].items():
            own = ours[task]["answers"].get(document)
            if not same(own, answer, SUMS):
                found.append(f"{task}, document {document}: {own}, transformers {answer}")
    return found


def main() -> None:
    tasks_dir, model_dir, url, name, *adapter = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    base = {"pretrained": model_dir, "dtype": "float32", "max_length": POSITIONS}
    if adapter:
        base["peft"] = adapter[0]
    served = {"model": name, "base_url": f"{url}/v1/completions", "tokenizer_backend": "huggingface", "tokenizer": model_dir}
    # local-completions takes the token that it asks for off, and one more for what is in front of the first.
    served |= {"max_length": POSITIONS + 2, "add_bos_token": begins, "max_retries": 1}
    texts = {"tokenized_requests": False}
    tasks = SCORED + WRITTEN
    # The server puts its own token in front of a text, of which lm_eval does not know when it counts: with such tokenizers it scores tokens.
    as_texts = WRITTEN if begins else LOSSLESS + WRITTEN
    chat_url = {"base_url": f"{url}/v1/chat/completions"}
    ways = [
        ("tokens", "local-completions", tasks, served, []),
        ("tokens, 8 in a request", "local-completions", tasks, served, ["--batch_size", "8"]),
        ("tokens, 8 requests of 3 at a time", "local-completions", tasks, served | {"num_concurrent": 8}, ["--batch_size", "3"]),
        ("texts", "local-completions", as_texts, served | texts, []),
        ("texts, 4 requests of 4 at a time", "local-completions", as_texts, served | texts | {"num_concurrent": 4}, ["--batch_size", "4"]),
    ]
    if not begins:
        remote = {key: value for key, value in served.items() if key != "tokenizer"} | {"tokenizer_backend": "auto"}
        # In front of an empty context; lm_eval takes the one with id 0 for none there.
        remote |= {"custom_prefix_token_id": tokenizer.bos_token_id}
        ways.append(("tokens of the server's tokenizer", "local-completions", LOSSLESS + WRITTEN, remote, []))
    chat = served | chat_url
    chats = [
        ("chats", "local-chat-completions", CHATS, chat, ["--apply_chat_template"]),
        ("8 chats at a time", "local-chat-completions", CHATS, chat | {"num_concurrent": 8}, ["--apply_chat_template"]),
    ]
    failed = False
    for more, group in ([], ways), (["--apply_chat_template"], chats if tokenizer.chat_template else []):
        if not group:
            continue
        theirs = evaluated(tasks_dir, "hf", CHATS if more else tasks, base, "--batch_size", "1", "--device", "cpu", *more)
        for way, model, of, arguments, words in group:
            ours = evaluated(tasks_dir, model, of, arguments, *words)
            found = differences(ours, theirs)
            print(f"{name}, {way}: {'equal' if not found else 'NOT EQUAL'}", flush=True)
            for line in found[:10]:
                print(f"    {line}")
            failed |= bool(found)
        for task, result in theirs.items():
            told = ", ".join(f"{metric.split(',')[0]} {score:.4f}" for metric, score in result["scores"].items() if "stderr" not in metric)
            print(f"    {task}: {told}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
