"""Uses the Responses API of a `petals-tune serve` as programs do: whole and in pieces, over several turns, with tools, and wrongly.

usage: responses_client.py BASE_URL KEY MODEL BIAS

BIAS is a JSON object, a `logit_bias` with which a random model completes a call. Every answer and every event is read by the strict rules of
the client's own models. Prints what it saw as one JSON object.
"""

import json
import sys

import openai
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "read", "description": "Reads a file", "strict": False,
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}}


def main() -> None:
    base_url, key, model, bias = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
    greedy = {"model": model, "temperature": 0, "max_output_tokens": 12}

    def whole(input, **more) -> Response:
        raw = client.responses.with_raw_response.create(input=input, **{**greedy, **more})
        return Response.model_validate_json(raw.http_response.text)

    def pieces(input, **more) -> list:
        raw = client.responses.with_streaming_response.create(input=input, stream=True, **{**greedy, **more})
        events = []
        with raw as answer:
            name = None
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    event = EVENT.validate_json(line.removeprefix("data: "))
                    assert event.type == name, (event, name)
                    events.append(event)
        return events

    def error(call) -> list:
        try:
            call()
        except openai.APIStatusError as error:
            return [type(error).__name__, error.param, error.code]
        return ["none"]

    first = whole("the cat", instructions="be brief", metadata={"a": "b"})
    chat = client.chat.completions.create(model=model, temperature=0, max_tokens=12, messages=[
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat"}])
    events = pieces("the cat", instructions="be brief", metadata={"a": "b"})

    # Going on from an answer that is kept is the same as sending everything again.
    second = whole("and then?", previous_response_id=first.id)
    history = [{"role": "user", "content": "the cat"}, *first.output, {"role": "user", "content": "and then?"}]
    again = whole(history, store=False)
    reference = whole([{"role": "user", "content": "the cat"}, {"type": "item_reference", "id": first.output[0].id},
                       {"role": "user", "content": "and then?"}])
    retrieved = client.responses.retrieve(first.id)
    client.responses.delete(first.id)
    counted = client.responses.input_tokens.count(model=model, input=history)

    finished = {"extra_body": {"guided_choice": ["in the yard"]}}
    with client.responses.stream(input="the cat", **{**greedy, **finished}) as stream:
        final = stream.get_final_response()

    calling = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "read"}, "max_output_tokens": 24,
               "extra_body": {"logit_bias": json.loads(bias), "repetition_penalty": 2}}
    called = whole("the cat", **calling)
    with client.responses.stream(input="the cat", **{**greedy, **calling}) as stream:
        streamed = stream.get_final_response()
    calls = [item for item in called.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "meow"} for call in calls]
    told = whole([{"role": "user", "content": "the cat"}, *calls, *results], tools=[TOOL])

    scored = whole("the cat", include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4)
    places = scored.output[0].content[0].logprobs
    scored_events = pieces("the cat", include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4)

    stranger = openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0)
    print(json.dumps({
        "text": first.output_text,
        "chat": chat.choices[0].message.content,
        "status": [first.status, first.incomplete_details.reason, first.metadata, first.instructions],
        "usage": [first.usage.input_tokens, first.usage.output_tokens, first.usage.total_tokens],
        "chat_usage": [chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens],
        "events": [event.type for event in events],
        "numbers": [event.sequence_number for event in events],
        "pieces": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
        "last": events[-1].response.output_text,
        "turns": [[answer.output_text, answer.usage.input_tokens] for answer in (second, again, reference)],
        "counted": counted.input_tokens,
        "cached": again.usage.input_tokens_details.cached_tokens,
        "retrieved": retrieved.to_dict() == first.to_dict(),
        "final": [final.output_text, final.status],
        "calls": [[call.name, json.loads(call.arguments), call.call_id[:5]] for call in calls],
        "streamed": [[item.name, json.loads(item.arguments)] for item in streamed.output if item.type == "function_call"],
        "call_status": [called.status, streamed.status],
        "told": told.status,
        "places": [[place.token, len(place.top_logprobs)] for place in places],
        "scored_events": sum(len(event.logprobs) for event in scored_events if event.type == "response.output_text.done"),
        "errors": [
            error(lambda: whole("x", model="gpt-4")),
            error(lambda: whole("x", tools=[{"type": "web_search"}])),
            error(lambda: whole("x " * 3000)),
            error(lambda: whole("x", background=True)),
            error(lambda: whole("x", previous_response_id=first.id)),
            error(lambda: client.responses.retrieve(first.id)),
            error(lambda: whole([{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}])),
            error(lambda: stranger.responses.create(model=model, input="x")),
        ],
    }))


if __name__ == "__main__":
    main()
