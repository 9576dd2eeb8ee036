"""Writes tests/goldens/data/chat-tools.json: conversations with tools, variables and unfinished answers, as transformers renders them with
templates of the kinds that models come with (own wording). Needs transformers alone, no torch.
"""

import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

OUT = Path(__file__).resolve().parents[1] / "goldens" / "data" / "chat-tools.json"

TEMPLATES = {
    # Hermes and Qwen 2.5: tools as JSON in the system text, calls between marks, results in a user's turn.
    "hermes": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "Tools:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\nCall with <tool_call></tool_call>.<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    # Llama 3.1: tools in the first question, one call at a time, indented JSON, trimmed contents.
    "llama31": """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'user' and loop.first and tools is not none %}
        {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer {"name": function name, "parameters": dictionary}.\\n\\n' }}
        {%- for t in tools %}
            {{- t | tojson(indent=4) }}
            {{- "\\n\\n" }}
        {%- endfor %}
        {{- message.content | trim + "<|eot_id|>" }}
    {%- elif not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Mistral v3: ids of nine characters.
    "mistral": """{{- bos_token }}
{%- if tools is defined and tools is not none and tools | length > 0 %}
    {{- '[AVAILABLE_TOOLS] [' }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- '{"type": "function", "function": {' }}
        {%- for key, val in tool.items() if key != "return" %}
            {%- if val is string %}
                {{- '"' + key + '": "' + val + '"' }}
            {%- else %}
                {{- '"' + key + '": ' + val|tojson }}
            {%- endif %}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
        {{- "}}" + (", " if not loop.last else "]") }}
    {%- endfor %}
    {{- "[/AVAILABLE_TOOLS]" }}
{%- endif %}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message["tool_calls"] is defined and message["tool_calls"]|length > 0 %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message["tool_calls"] %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {{- ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message["content"]|string + ', "call_id": "' + message["tool_call_id"] + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
""",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks at a <place> & tells \"what\" is there: ä 你",
            "parameters": {
                "type": "object",
                "required": ["where"],
                "properties": {
                    "where": {"type": "string", "enum": ["yard", "cellar"]},
                    "depth": {"type": "number", "default": 1.0},
                    "all": {"type": "boolean", "default": False},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "go", "parameters": {}}},
]


def call(arguments: dict, id: str = "abcdef123") -> dict:
    return {"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}}


ASKED = {"role": "user", "content": "Where is the barrel?"}
CONVERSATIONS = {
    "asked": [ASKED],
    "called": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call({"where": "yard", "depth": 2, "all": None})]},
        {"role": "tool", "tool_call_id": "abcdef123", "content": "in the yard"},
        {"role": "user", "content": "So?"},
    ],
    "several": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call({"where": "yard"}), call({}, "ghijkl456")]},
        {"role": "tool", "tool_call_id": "abcdef123", "content": "no"},
        {"role": "tool", "tool_call_id": "ghijkl456", "content": "yes"},
    ],
    "begun": [ASKED, {"role": "assistant", "content": "In the "}],
    "begun-again": [{"role": "user", "content": "In the"}, {"role": "assistant", "content": "In the"}],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
VARIABLES = [{}, {"enable_thinking": False}, {"enable_thinking": True, "date_string": "1 Jan 2026"}, {"bos_token": "<other>"}]


def rendered(template: str, messages: list, tools: list | None, ending: str, variables: dict) -> dict:
    """{"text"} or {"error"}."""
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            continue_final_message=ending == "continued",
            add_generation_prompt=ending == "answer",
            **{**TOKENS, **variables},
        )
        return {"text": texts[0]}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


def main() -> None:
    cases = []
    for name, template in TEMPLATES.items():
        for talk, messages in CONVERSATIONS.items():
            for tools in (False, True):
                for ending in ("continued",) if talk.startswith("begun") else ("answer", "closed"):
                    for variables in VARIABLES if talk == "asked" else VARIABLES[:1]:
                        case = {"template": name, "conversation": talk, "tools": tools, "ending": ending, "variables": variables}
                        text = rendered(template, messages, TOOLS if tools else None, ending, variables)
                        cases.append({**case, **text})
    golden = {"tokens": TOKENS, "templates": TEMPLATES, "tools": TOOLS, "conversations": CONVERSATIONS, "cases": cases}
    OUT.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cases)} cases, {sum('error' in case for case in cases)} of them refused")


if __name__ == "__main__":
    main()
