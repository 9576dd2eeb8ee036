"""Writes tests/goldens/data/decoding.json and sampling.json: what transformers' `generate` and its logits processors make of the tiny
checkpoints of make_goldens.py and of some logits.

usage: decoding.py
"""

import json
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import LogitsProcessorList

from families import FAMILIES, Family, build
from make_goldens import GOLDENS, initial_tables
from reference import MODES, Tables

TOKENS = 64
# `stops`: how many tokens of the bare greedy text end a text, so that beams finish at different times.
SEARCHES = {
    "greedy": dict(num_beams=1),
    "beams-3": dict(num_beams=3),
    "beams-4-stops": dict(num_beams=4, stops=1),
    "beams-3-long": dict(num_beams=3, length_penalty=2.0, stops=2),
    "beams-3-short": dict(num_beams=3, length_penalty=-0.5, stops=2, early_stopping=True),
    "beams-3-never": dict(num_beams=3, length_penalty=0.5, stops=2, early_stopping="never"),
    "beams-2-penalty": dict(num_beams=2, repetition_penalty=1.3, stops=1),
    "greedy-penalty": dict(num_beams=1, repetition_penalty=1.3),
}
SAMPLINGS = [
    dict(),
    dict(temperature=0.7),
    dict(temperature=1.7),
    dict(top_k=7),
    dict(top_p=0.8),
    dict(min_p=0.05),
    dict(repetition_penalty=1.3),
    dict(repetition_penalty=0.8, temperature=0.9),
    dict(temperature=0.8, top_k=40, top_p=0.95),
    dict(temperature=1.3, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
]


@contextmanager
def prefilled(model: PreTrainedModel, tables: Tables | None):
    """As reference.injected, for a pass over the whole prompt followed by passes over one new token each."""
    rows = [] if tables is None or tables.Q is None else list(tables.Q)

    def hook(rows: Tensor):
        def before_block(_block, args, kwargs):
            hidden = args[0]
            if hidden.shape[1] == 1:
                return None
            prefix, text = hidden[:, : len(rows)], hidden[:, len(rows) :]
            changed = prefix + rows if tables.mode == "add" else rows.expand_as(prefix)
            return (torch.cat([changed, text], dim=1), *args[1:]), kwargs

        return before_block

    blocks = list(model.model.layers)[len(model.model.layers) - len(rows) :]
    handles = [block.register_forward_pre_hook(hook(r), with_kwargs=True) for block, r in zip(blocks, rows)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def search(model: PreTrainedModel, prompt: list[int], tables: Tables | None, options: dict) -> list[int]:
    """The new tokens of `generate`."""
    options = dict(options, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
    ids = torch.tensor([prompt])
    if tables is None:
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
    dtype = model.lm_head.weight.dtype
    embeds = torch.cat([tables.P.to(dtype)[None], model.get_input_embeddings()(ids)], dim=1)
    in_type = Tables(tables.mode, tables.P.to(dtype), None if tables.Q is None else tables.Q.to(dtype))
    with prefilled(model, in_type):
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        return model.generate(inputs_embeds=embeds, attention_mask=mask, **options)[0].tolist()


def family_searches(family: Family) -> dict:
    """Searches without and with each mode's tables. Those that rounding decides (double precision says otherwise) are left out."""
    goldens = json.loads((GOLDENS / family.name / "goldens.json").read_text())
    prompt = goldens["prompt_ids"]
    model, precise = build(family), build(family).double()
    for one in (model, precise):
        # Tokens and stops are given with each call.
        one.generation_config = GenerationConfig(eos_token_id=None, bos_token_id=0)
    tables = initial_tables(family.seed, model.config.hidden_size)
    greedy = search(model, prompt, None, dict(num_beams=1))
    if greedy[: len(goldens["generate.bare"])] != goldens["generate.bare"]:
        raise SystemExit(f"{family.name}: generate disagrees with goldens.json")
    stops = sorted(set(greedy[20:]), key=lambda token: (greedy.count(token), token))
    found = []
    for mode in ("bare", *MODES):
        for name, options in SEARCHES.items():
            options = dict(options)
            ends = stops[: options.pop("stops", 0)]
            asked = dict(options, eos_token_id=ends) if ends else options
            if mode != "bare" and "repetition_penalty" in options:
                # Given embeddings, generate does not know the prompt's tokens.
                continue
            tokens = search(model, prompt, tables.get(mode), asked)
            if tokens != search(precise, prompt, tables.get(mode), asked):
                print(family.name, mode, name, "is a matter of rounding")
                continue
            # generate pads behind the end.
            cut = next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))
            found.append(dict(name=name, mode=mode, options=options, stops=ends, tokens=tokens[:cut]))
    return dict(prompt=prompt, searches=found)


def distributions() -> dict:
    """Probabilities of `generate(do_sample=True)` before it draws, for each of SAMPLINGS and several logits."""
    generator = torch.Generator().manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(GOLDENS / FAMILIES[0].name / "model")
    logits = [scale * torch.randn(200, generator=generator) for scale in (0.5, 2.0, 6.0)]
    # Equal logits at the border of top-k, and a text with repetitions.
    logits[1] = (logits[1] * 2).round() / 2
    logits = [row.mul(1000).round().div(1000) for row in logits]
    text = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79, 3, 3, 14, *logits[2].topk(3).indices.tolist()]])
    cases = []
    for options in SAMPLINGS:
        config = GenerationConfig(do_sample=True, **{"top_k": 0, **options})
        config.num_beams = 1
        model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
        processors: LogitsProcessorList = model._get_logits_processor(config, input_ids_seq_length=text.shape[1])
        for number, row in enumerate(logits):
            if number == 1 and "top_p" in options:
                # Which of equal logits top-p keeps is left to a sort that is not stable.
                continue
            scores = processors(text, row[None].clone())
            kept = {token: p for token, p in enumerate(scores.softmax(-1)[0].tolist()) if p > 0}
            cases.append(dict(options=options, logits=number, probabilities=list(kept.items())))
    return dict(logits=[[round(v, 3) for v in row.tolist()] for row in logits], text=text[0].tolist(), cases=cases)


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    searches = {family.name: family_searches(family) for family in FAMILIES}
    (GOLDENS / "data" / "decoding.json").write_text(json.dumps(searches) + "\n")
    (GOLDENS / "data" / "sampling.json").write_text(json.dumps(distributions()) + "\n")
    print({name: len(family["searches"]) for name, family in searches.items()})


if __name__ == "__main__":
    main()
