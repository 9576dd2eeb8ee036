"""Writes tests/goldens/data/training-tokens.json: what transformers makes of prompts with completions and of conversations for
training, and which tokens are learnt. Needs transformers alone, no torch.

Conversations: `apply_chat_template(return_assistant_tokens_mask=True)` with templates that have `generation` blocks. Completions: as
TRL's SFTTrainer does it (trl/trainer/sft_trainer.py, `tokenize_fn` and `common_prefix_length`): both texts tokenised as one, and
learnt from where they leave the tokens of the prompt.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
OUT = GOLDENS / "data" / "training-tokens.json"

# What the assistant says is between {G} and {E}: `generation` blocks, or nothing.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{G}{{ message['content'] + '<eos>' }}{E}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "lines": """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {- G -}
        {{- message.content | trim }} <eos>
        {%- E %}
    {%- else %}
        {{- ' [' + message.role + '] ' + message.content + ' [/]' }}
    {%- endif %}
{%- endfor %}
""",
    # Tags on lines of their own, what is assigned within a block, and a loop that is left there.
    "blocks": """{% set seen = namespace(answers=0) %}
{% for message in messages %}
    {% if message.role == 'assistant' %}
        {G}
            {% set seen.answers = seen.answers + 1 %}
            {% if seen.answers > 0 %}
  {{ seen.answers }}: {{ message.content }}
            {% endif %}
<eos>
        {E}
    {% else %}
[{{ message.role }}] {{ message.content }}
    {% endif %}
{% endfor %}
""",
    "space": (
        "{% for message in messages %}{% if message.role == 'user' %}{{ '<bos>Q: ' + message.content + ' A:' }}"
        "{% else %}{G}{{ ' ' + message.content | trim + '<eos>' }}{E}{% endif %}{% endfor %}"
    ),
}
MARKS = [("{G}", "generation", "if true"), ("{E}", "endgeneration", "endif")]

USER, OTHER = {"role": "user", "content": "who sat on the mat?"}, {"role": "user", "content": "and the dog? é 🙂"}
CONVERSATIONS = [
    [USER, {"role": "assistant", "content": "the cat."}],
    [
        USER,
        {"role": "assistant", "content": "the small cat, as they said."},
        OTHER,
        {"role": "assistant", "content": "rain! 🙂"},
    ],
    [USER, {"role": "assistant", "content": "é"}, OTHER, {"role": "assistant", "content": "  the dog ran\n"}, USER],
]
COMPLETIONS = [
    ["who sat on the mat?", " the cat."],
    ["the ca", "t ran"],
    ["who sat ", "on the mat"],
    ["", "the cat sat"],
    ["the cat\n", "\nsat"],
    ["é", "t"],
    ["the <bos>", "cat"],
]


def source(template: str, generation: bool) -> str:
    """The template with its blocks, or without them."""
    for mark, tag, plain in MARKS:
        tag = tag if generation else plain
        template = template.replace(mark, f"{{% {tag} %}}")
        for open, close in [("{-", "-}"), ("{%-", "%}")]:
            end = "-%}" if close == "-}" else "%}"
            template = template.replace(f"{open} {mark[1]} {close}", f"{{%- {tag} {end}")
    return template


def common_prefix_length(a: list[int], b: list[int]) -> int:
    """As in TRL."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def learnt_by_prefix(tokenizer, template: str, messages: list[dict], ids: list[int], **beside) -> list[int]:
    """A mask of the answers, each as TRL takes it for a completion of what is before it. `beside`: tools, and variables."""
    learnt = [0] * len(ids)
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = tokenizer.apply_chat_template(messages[:at], chat_template=template, add_generation_prompt=True, **beside)
            answered = tokenizer.apply_chat_template(messages[: at + 1], chat_template=template, **beside)
            assert ids[: len(answered)] == answered
            start = common_prefix_length(asked, answered)
            learnt[start : len(answered)] = [1] * (len(answered) - start)
    return learnt


def main() -> None:
    file = str(GOLDENS / "llama-gqa" / "model" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<bos>", eos_token="<eos>")
    completions = []
    for prompt, completion in COMPLETIONS:
        alone, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
        start = common_prefix_length(alone, ids)
        completions.append({"prompt": prompt, "completion": completion, "ids": ids, "learnt_from": start})
    conversations = []
    for template in TEMPLATES.values():
        for messages in CONVERSATIONS:
            rendered = tokenizer.apply_chat_template(
                messages, chat_template=source(template, True), return_assistant_tokens_mask=True, return_dict=True
            )
            plain = tokenizer.apply_chat_template(messages, chat_template=source(template, False))
            assert plain == rendered["input_ids"]
            conversations.append({
                "template": source(template, True),
                "plain": source(template, False),
                "messages": messages,
                "ids": rendered["input_ids"],
                "learnt": rendered["assistant_masks"],
                "learnt_by_prefix": learnt_by_prefix(tokenizer, source(template, False), messages, plain),
            })
    golden = {"completions": completions, "conversations": conversations}
    OUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace('},{"', '},\n{"') + "\n")
    print(f"{len(completions)} completions, {len(conversations)} conversations")


if __name__ == "__main__":
    main()
