"""Writes adapters that PEFT makes by an encoder and saves without it: P_TUNING of both kinds, PREFIX_TUNING with `prefix_projection`.

usage: encoded_adapters.py        (after make_goldens.py and encoders.py)

`tests/goldens/llama-gqa/encoders/peft-<kind>/` as PEFT saves it, a P_TUNING classifier's among them, and in `logits.safetensors` the logits of
each at the text, [3, 9, V] (of the classifier [3, labels], on the first `lengths` tokens of each row). PEFT's own model before it is
saved, with its encoder, and the one that PEFT loads, without, must give the same.
"""

import json

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, TaskType, get_peft_model
from safetensors.torch import save_file

import text
from families import FAMILIES
from make_adapters import ROWS
from make_goldens import GOLDENS, LENGTHS, input_ids
from peft_adapters import adapter_logits, load_base

KINDS = ("p-tuning-mlp", "p-tuning-lstm", "prefix-projection", "p-tuning-seq-cls")


def config(kind: str):
    if kind == "prefix-projection":
        return PrefixTuningConfig(
            task_type=TaskType.CAUSAL_LM, num_virtual_tokens=ROWS, prefix_projection=True, encoder_hidden_size=12
        )
    return PromptEncoderConfig(
        task_type=TaskType.SEQ_CLS if kind.endswith("seq-cls") else TaskType.CAUSAL_LM,
        num_virtual_tokens=ROWS,
        encoder_reparameterization_type="LSTM" if "lstm" in kind else "MLP",
        encoder_hidden_size=12,
    )


def main() -> None:
    torch.set_num_threads(1)
    family = next(family for family in FAMILIES if family.name == "llama-gqa")
    model, out = GOLDENS / family.name / "model", GOLDENS / family.name / "encoders"
    logits = {}
    for seed, kind in enumerate(KINDS):
        task = "seq-cls" if kind.endswith("seq-cls") else "causal-lm"
        labels = len(text.LABELS) if task == "seq-cls" else None
        torch.manual_seed(seed)
        peft = get_peft_model(load_base(model, task, labels), config(kind))
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "prompt_encoder" in name or "score" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        peft.eval()
        place = out / f"peft-{kind}"
        rows = input_ids().tolist()
        with torch.no_grad():
            if task == "seq-cls":
                rows = [row[:length] for row, length in zip(rows, LENGTHS)]
                made = torch.cat([peft(input_ids=torch.tensor([row])).logits for row in rows])
            else:
                ids = input_ids()
                made = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
        peft.save_pretrained(place)
        (place / "README.md").unlink(missing_ok=True)
        file = place / "adapter_config.json"
        saved = json.loads(file.read_text()) | {"base_model_name_or_path": "../../model"}
        file.write_text(json.dumps(saved, indent=2) + "\n")
        loaded = adapter_logits(model, place, task, rows, labels)
        torch.testing.assert_close(loaded, made, rtol=1e-4, atol=1e-4)
        logits[kind] = loaded.float().contiguous()
    save_file(logits, out / "logits.safetensors")


if __name__ == "__main__":
    main()
