"""Uses the Messages API of a `petals-tune serve` as programs do: whole and in pieces, over several turns, with tools, and wrongly.

usage: anthropic_client.py BASE_URL KEY MODEL BIAS

BIAS is a JSON object, a `logit_bias` with which a random model completes a call. Every answer and every event is read by the strict rules of
the client's own models. Prints what it saw as one JSON object.
"""

import json
import sys

import anthropic
import openai
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(RawMessageStreamEvent)
TOOL = {"name": "read", "description": "Reads a file", "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}}}
CAT = {"role": "user", "content": "the cat"}


def main() -> None:
    base_url, key, model, bias = sys.argv[1:]
    client = anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0, timeout=120)
    chats = openai.OpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0, timeout=120)
    greedy = {"model": model, "max_tokens": 12}

    def body(more: dict) -> dict:
        return {**greedy, **more, "extra_body": {"temperature": 0, **more.get("extra_body", {})}}

    def whole(messages, **more) -> Message:
        raw = client.messages.with_raw_response.create(messages=messages, **body(more))
        assert raw.headers["request-id"].startswith("req_")
        return Message.model_validate_json(raw.http_response.text)

    def pieces(messages, **more) -> list:
        raw = client.messages.with_streaming_response.create(messages=messages, stream=True, **body(more))
        events = []
        with raw as answer:
            name = None
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: ") and name != "ping":
                    event = EVENT.validate_json(line.removeprefix("data: "))
                    assert event.type == name, (event, name)
                    events.append(event)
        return events

    def chat(messages, **more) -> str:
        answer = chats.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12, **more)
        return answer.choices[0].message.content

    def error(call) -> list:
        try:
            call()
        except anthropic.APIStatusError as error:
            assert error.body["type"] == "error" and error.body["request_id"].startswith("req_"), error.body
            return [type(error).__name__, error.body["error"]["type"], error.body["error"]["message"]]
        return ["none"]

    def text(message) -> str:
        return "".join(block.text for block in message.content if block.type == "text")

    first = whole([CAT], system="be brief")
    events = pieces([CAT], system="be brief")
    with client.messages.stream(messages=[CAT], system="be brief", **body({})) as stream:
        final = stream.get_final_message()
    second = whole([CAT, {"role": "assistant", "content": first.content}, {"role": "user", "content": "and then?"}], system="be brief")
    counted = client.messages.count_tokens(model=model, messages=[CAT], system="be brief")

    begun = [CAT, {"role": "assistant", "content": "in the"}]
    prefilled = whole(begun)
    continued = chat(begun, extra_body={"add_generation_prompt": False, "continue_final_message": True})

    stop = text(first)[5:8]
    stopped = whole([CAT], system="be brief", stop_sequences=["never to come", stop])
    finished = whole([CAT], extra_body={"guided_choice": ["in the yard"]})

    calling = {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 24,
               "extra_body": {"logit_bias": json.loads(bias), "repetition_penalty": 2}}
    called = whole([CAT], **calling)
    with client.messages.stream(messages=[CAT], **body(calling)) as stream:
        streamed = stream.get_final_message()
    uses = [block for block in called.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "meow"}], "is_error": True} for use in uses]
    told = whole([CAT, {"role": "assistant", "content": uses}, {"role": "user", "content": results}], tools=[TOOL])

    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    stranger = anthropic.Anthropic(base_url=base_url, api_key="wrong", max_retries=0)
    bearer = anthropic.Anthropic(base_url=base_url, auth_token=key, max_retries=0)
    print(json.dumps({
        "models": [found.id for found in client.models.list()],
        "model": client.models.retrieve(model).max_input_tokens,
        "text": text(first),
        "chat": chat([{"role": "system", "content": "be brief"}, CAT]),
        "reason": first.stop_reason,
        "usage": [first.usage.input_tokens + first.usage.cache_read_input_tokens, first.usage.output_tokens],
        "cached": second.usage.cache_read_input_tokens,
        "counted": counted.input_tokens,
        "events": [event.type for event in events],
        "pieces": "".join(event.delta.text for event in events if event.type == "content_block_delta"),
        "final": [text(final), final.stop_reason, final.usage.input_tokens + final.usage.cache_read_input_tokens],
        "prefilled": [text(prefilled), continued],
        "stopped": [text(stopped), stopped.stop_reason, stopped.stop_sequence],
        "stop": stop,
        "finished": [text(finished), finished.stop_reason, finished.stop_sequence],
        "uses": [[use.name, use.input, use.id[:6]] for use in uses],
        "streamed": [[block.name, block.input] for block in streamed.content if block.type == "tool_use"],
        "use_reason": [called.stop_reason, streamed.stop_reason],
        "told": told.role,
        "bearer": bearer.messages.count_tokens(model=model, messages=[CAT]).input_tokens > 0,
        "errors": [
            error(lambda: whole([CAT], model="claude")),
            error(lambda: whole([{"role": "user", "content": [image]}])),
            error(lambda: whole([{"role": "user", "content": "x " * 3000}])),
            error(lambda: whole([CAT], tools=[{"type": "web_search_20250305", "name": "web_search"}])),
            error(lambda: whole([CAT], stop_sequences=["x"] * 17)),
            error(lambda: stranger.messages.create(model=model, max_tokens=1, messages=[CAT])),
            error(lambda: client.messages.batches.list()),
        ],
    }))


if __name__ == "__main__":
    main()
