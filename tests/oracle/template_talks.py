"""Conversations with tools, as APIs give them to templates."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now> & 'soon'.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Où? 東京\nor a code"},
                "days": {"type": ["integer", "string"], "minimum": 0.5, "maximum": 1e16, "default": None},
                "items": {"type": "array", "items": {"type": "number"}, "enum": [1.0, -0.25, 1e-7, True]},
            },
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, arguments: dict, id: str = "abcdefgh1") -> dict:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_TALKS = {
    "tools": {"messages": [{"role": "user", "content": "Weather?"}], "tools": [WEATHER, TIME]},
    "tools-none": {"messages": [{"role": "user", "content": "Weather?"}], "tools": None},
    "tools-empty": {"messages": [{"role": "user", "content": "Weather?"}], "tools": []},
    "called": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Zürich?"},
            {"role": "assistant", "content": None, "tool_calls": [call("get_weather", {"place": "Zürich", "days": 2, "more": {"a": [1, "x"]}})]},
            {"role": "tool", "tool_call_id": "abcdefgh1", "name": "get_weather", "content": "12.5"},
            {"role": "assistant", "content": "12.5 degrees."},
            {"role": "user", "content": "Thanks, and now?"},
        ],
        "tools": [WEATHER],
    },
    "called-twice": {
        "messages": [
            {"role": "user", "content": "Both?"},
            {"role": "assistant", "content": "Wait.", "tool_calls": [call("now", {}), call("get_weather", {"place": "here", "flag": True}, "zzzzzzzz2")]},
            {"role": "tool", "tool_call_id": "abcdefgh1", "content": "noon"},
            {"role": "tool", "tool_call_id": "zzzzzzzz2", "content": "rain"},
        ],
        "tools": [TIME, WEATHER],
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": " One "}, {"type": "text", "text": "two"}]}], "tools": None},
    "no-thinking": {"messages": [{"role": "user", "content": "Hm?"}], "tools": None, "enable_thinking": False},
    "reasoned": {
        "messages": [
            {"role": "user", "content": "Hm?"},
            {"role": "assistant", "reasoning_content": "\nSo.\n", "content": "Yes."},
        ],
        "tools": None,
    },
}
