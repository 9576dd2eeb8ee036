"""Prompt-tuning adapters as PEFT itself writes and reads them."""

import json
from pathlib import Path

import torch
from peft import PeftModel, PromptTuningConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

from families import attention_of

logging.disable_progress_bar()
logging.set_verbosity_error()

MODEL_CLASSES = {"causal-lm": AutoModelForCausalLM, "seq-cls": AutoModelForSequenceClassification}
TASK_TYPES = {"causal-lm": TaskType.CAUSAL_LM, "seq-cls": TaskType.SEQ_CLS}


def load_base(model_dir: Path, task: str, labels: int | None = None):
    """The checkpoint in f32, with a fresh score head for seq-cls."""
    extra = {} if labels is None else {"num_labels": labels}
    attention = attention_of(AutoConfig.from_pretrained(model_dir))
    return MODEL_CLASSES[task].from_pretrained(model_dir, dtype=torch.float32, attn_implementation=attention, **extra)


def save_adapter(model_dir: Path, out: Path, task: str, P: Tensor, score: Tensor | None = None) -> None:
    """Writes a PROMPT_TUNING adapter with prompt table `P` [m, d] and score head [labels, d], through PEFT."""
    base = load_base(model_dir, task, None if score is None else len(score))
    config = PromptTuningConfig(task_type=TASK_TYPES[task], num_virtual_tokens=len(P))
    peft = get_peft_model(base, config)
    with torch.no_grad():
        peft.prompt_encoder["default"].embedding.weight.copy_(P)
        if score is not None:
            peft.base_model.score.modules_to_save["default"].weight.copy_(score)
    peft.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    config_file = out / "adapter_config.json"
    saved = json.loads(config_file.read_text()) | {"base_model_name_or_path": "../model"}
    config_file.write_text(json.dumps(saved, indent=2) + "\n")


@torch.no_grad()
def adapter_logits(model_dir: Path, adapter_dir: Path, task: str, rows: list[list[int]], labels: int | None) -> Tensor:
    """Logits of an adapter loaded by PEFT as it stands: [B, S, V] at the text positions, or [B, labels].

    Rows may differ in length; a shorter causal-lm row is padded with zeros at the end. Classification takes rows one
    by one: given embeddings instead of ids, transformers reads the last position whether it is a pad or not.
    """
    peft = PeftModel.from_pretrained(load_base(model_dir, task, labels), adapter_dir).eval()
    if task == "seq-cls":
        return torch.cat([peft(input_ids=torch.tensor([row])).logits for row in rows])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -longest:]
