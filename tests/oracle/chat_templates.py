"""Writes tests/goldens/data/chat-templates.json: conversations as transformers renders them with templates of the kinds that
models come with. Needs transformers alone, no torch.
"""

import json
from pathlib import Path

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template as compile_template

import template_corpus
from template_expressions import EXPRESSIONS, VARIABLES
from template_talks import TOOL_TALKS

OUT = Path(__file__).resolve().parents[1] / "goldens" / "data" / "chat-templates.json"

TEMPLATES = {
    # Qwen 2: ChatML with a system prompt of its own.
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Qwen 2.5: blocks on lines of their own, tools that are not given.
    "chatml-tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- "# Tools\\n" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # Qwen 3: thoughts of earlier answers are left out; Python's string methods, namespaces, slices from behind.
    "thinking": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    # Llama 3: trimmed contents, the first message behind the begin of text.
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Llama 3.1: variables that may not be defined, a system message that is taken off the list.
    "llama31": """{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}

{#- The system message comes first, with the date. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Mistral: roles must alternate, answers end with the end token.
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    # Llama 2: the system message inside of the first question.
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # Whitespace control by blocks on lines of their own, macros, JSON, loop controls, training marks.
    "layout": """{% macro turn(role, text) %}
<{{ role | upper }}>{{ text }}
{% endmacro %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% if message.role == 'assistant' %}
{% generation %}
{{ turn(message.role, message.content) }}
{% endgeneration %}
    {% else %}
{{ turn(message.role, message.content) }}
    {% endif %}
{% endfor %}
{{ messages | map(attribute='content') | list | tojson }}
{{ {'tokens': [bos_token, eos_token], 'none': none, 'yes': true} | tojson }}
{% if unknown %}unknown{% endif %}{{ unknown_too }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ "%s of %d" | format('a', 3) }}
""",
}

SYSTEM = {"role": "system", "content": "Answer <briefly> & \"kindly\".\n"}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "  Where is the barrel? "}],
    "system": [SYSTEM, {"role": "user", "content": "Where is the barrel?"}],
    "turns": [
        {"role": "user", "content": "Où est le tonneau? 你好 🙂"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIn the yard.\n"},
        {"role": "user", "content": "{{ bos_token }} {% raw %}"},
    ],
    "system-turns": [
        SYSTEM,
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ],
    "answered": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}],
    "not-alternating": [{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(template: str, variables: dict) -> dict:
    """{"text"}, {"error"} if the template says so, {"failed"} if Python or Jinja does."""
    try:
        return {"text": compile_template(template).render(**variables)}
    except jinja2.exceptions.TemplateError as error:
        own = type(error) is jinja2.exceptions.TemplateError
        return {"error" if own else "failed": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    talks = {name: {"messages": messages, "tools": None} for name, messages in CONVERSATIONS.items()}
    talks |= TOOL_TALKS
    templates = TEMPLATES | template_corpus.TEMPLATES
    cases = []
    for name, template in templates.items():
        for talk, given in talks.items():
            if name in TEMPLATES and talk not in CONVERSATIONS:
                continue
            for answer in (True, False):
                variables = {"documents": None, "add_generation_prompt": answer, **TOKENS, **given}
                cases.append({"template": name, "conversation": talk, "answer": answer, **rendered(template, variables)})
    expressions = [{"source": source, **rendered(source, VARIABLES)} for source in EXPRESSIONS]
    golden = {
        "tokens": TOKENS,
        "templates": templates,
        "conversations": talks,
        "cases": cases,
        "variables": VARIABLES,
        "expressions": expressions,
    }
    OUT.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    refused = sum("error" in case for case in cases)
    failed = sum("failed" in case for case in cases)
    print(f"{len(cases)} cases, {refused} refused, {failed} failed; {len(expressions)} expressions")
    for case in cases:
        if "failed" in case:
            print(case["template"], case["conversation"], case["failed"])


if __name__ == "__main__":
    main()
