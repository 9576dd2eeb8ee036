"""Writes tests/goldens/data/training-tools.json: rows of training data with tools, calls of them and variables of the template, as
transformers renders and tokenises them, and which tokens are learnt. Needs transformers alone, no torch.

A row is read as TRL's SFTTrainer does it (trl/trainer/sft_trainer.py, `tokenize_fn`): `tools` is a list or its JSON text,
`chat_template_kwargs` are handed to the template, and what is null is taken out (`remove_none_values`). Arguments of calls that are JSON text
are handed on as objects, as vLLM does it, unless the template asks which they are.
"""

import copy
import json

from training_tokens import GOLDENS, learnt_by_prefix, source
from transformers import PreTrainedTokenizerFast

OUT = GOLDENS / "data" / "training-tools.json"

# As those of Hermes and Qwen 2.5; what the assistant says is between {G} and {E}.
HERMES = (
    "{% if tools %}{{ '[tools]' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '[/tools]\\n' }}{% endif %}"
    "{% for message in messages %}{{ '[' + message.role + ']\\n' }}"
    "{% if message.role == 'assistant' %}{G}"
    "{% if message.content %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls %}{% set call = call.function %}"
    "{{ '\\n<call>{\"name\": \"' + call.name + '\", \"arguments\": ' }}ARGUMENTS{{ '}</call>' }}{% endfor %}"
    "{{ '<eos>' }}{E}{% else %}{{ message.content }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<quiet>' }}{% endif %}{% endif %}"
)
TEMPLATES = {
    "objects": HERMES.replace("ARGUMENTS", "{{ call.arguments | tojson }}"),
    # As that of Qwen 3.
    "both": HERMES.replace(
        "ARGUMENTS", "{% if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}"
    ),
    # As that of DeepSeek V3.
    "texts": HERMES.replace("ARGUMENTS", "{{ call['arguments'] + '' }}"),
}

LOOK = {
    "name": "look",
    "description": "Looks at a <place>: ä 你",
    "parameters": {
        "type": "object",
        "required": ["where"],
        "properties": {"where": {"type": "string", "enum": ["yard", "cellar"]}, "all": {"type": "boolean", "default": False}},
    },
}
TOOLS = [{"type": "function", "function": LOOK}, {"type": "function", "function": {"name": "go", "parameters": {}}}]
ARGUMENTS = {"where": "yard", "all": True, "depth": 1.5}


def talk(arguments) -> list[dict]:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return [
        {"role": "user", "content": "who sat on the mat?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "the cat."},
        {"role": "assistant", "content": "the small cat.", "tool_calls": None},
    ]


PLAIN = [{"role": "user", "content": "and the dog?"}, {"role": "assistant", "content": "rain!"}]
TEXT = json.dumps(ARGUMENTS)
CLOSE = json.dumps(ARGUMENTS, separators=(",", ":"))
# The row of a file, and what the templates are told that take arguments as objects, as either, and as texts.
ROWS = [
    ({"messages": talk(ARGUMENTS), "tools": TOOLS}, [talk(ARGUMENTS), talk(ARGUMENTS), talk(CLOSE)]),
    ({"messages": talk(CLOSE), "tools": json.dumps(TOOLS)}, [talk(ARGUMENTS), talk(CLOSE), talk(CLOSE)]),
    ({"messages": talk(TEXT), "tools": None, "functions": None}, [talk(ARGUMENTS), talk(TEXT), talk(TEXT)]),
    ({"messages": PLAIN, "tools": TOOLS[:1]}, [PLAIN] * 3),
    ({"messages": PLAIN, "tools": []}, [PLAIN] * 3),
    ({"messages": PLAIN, "chat_template_kwargs": {"enable_thinking": False, "other": None}}, [PLAIN] * 3),
    ({"prompt": PLAIN[:1], "completion": PLAIN[1:], "tools": TOOLS}, [PLAIN] * 3),
]


def without_none(value):
    """As `remove_none_values` of trl/trainer/utils.py."""
    if isinstance(value, list):
        return [without_none(item) if isinstance(item, (dict, list)) else item for item in value]
    return {
        key: without_none(item) if isinstance(item, (dict, list)) else item for key, item in value.items() if item is not None
    }


def main() -> None:
    file = str(GOLDENS / "llama-gqa" / "model" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<bos>", eos_token="<eos>")
    cases = []
    for row, told in ROWS:
        example = without_none(copy.deepcopy(row))
        tools = example.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        beside = {"tools": tools, **example.get("chat_template_kwargs", {})}
        for (name, template), messages in zip(TEMPLATES.items(), told):
            messages = without_none(messages)
            rendered = tokenizer.apply_chat_template(
                messages, chat_template=source(template, True), return_assistant_tokens_mask=True, return_dict=True, **beside
            )
            ids = rendered["input_ids"]
            plain = source(template, False)
            assert ids == tokenizer.apply_chat_template(messages, chat_template=plain, **beside)
            cases.append({
                "row": row,
                "template": name,
                "text": tokenizer.apply_chat_template(messages, chat_template=plain, tokenize=False, **beside),
                "ids": ids,
                "learnt": rendered["assistant_masks"],
                "learnt_by_prefix": learnt_by_prefix(tokenizer, plain, messages, ids, **beside),
            })
    templates = {name: {"marked": source(it, True), "plain": source(it, False)} for name, it in TEMPLATES.items()}
    golden = {"templates": templates, "cases": cases}
    OUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")).replace('},{"row"', '},\n{"row"') + "\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
