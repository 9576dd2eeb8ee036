"""What the `openai` client can ask for, once each.

usage: openai_requests.py URL KEY MODEL
"""

import asyncio
import json

import openai

from checks import QUESTION, SCHEMA, STRUCTURED, TOO_LONG, TOOL, Server, chosen, raised, run

server = Server()
# No retries: what fails should be seen.
client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0, timeout=120)
MANY = 64


def chat(**more):
    return client.chat.completions.create(**{"model": server.model, "messages": QUESTION, "temperature": 0, "max_tokens": 8, **more})


def complete(**more):
    return client.completions.create(**{"model": server.model, "prompt": "the cat", "temperature": 0, "max_tokens": 8, **more})


def chats_whole_and_in_pieces() -> None:
    whole = chat()
    assert whole.choices[0].message.role == "assistant" and whole.usage.completion_tokens <= 8
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    with client.chat.completions.stream(model=server.model, messages=QUESTION, temperature=0, max_tokens=8) as stream:
        stream.until_done()
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == whole.choices[0].message.content
    raw = client.chat.completions.with_raw_response.create(model=server.model, messages=QUESTION, max_tokens=1)
    assert raw.headers["content-type"] == "application/json" and raw.parse().choices


def addresses_however_people_write_them() -> None:
    plain = chat().choices
    for address in (server.root, f"{server.root}/", f"{server.url}/", f"{server.url}/v1"):
        elsewhere = openai.OpenAI(base_url=address, api_key=server.key, max_retries=0)
        answer = elsewhere.chat.completions.create(model=server.model, messages=QUESTION, temperature=0, max_tokens=8)
        assert answer.choices == plain and elsewhere.models.list().data, address


def what_clients_send_besides_changes_nothing() -> None:
    plain = chat().choices
    parts = [{"role": "user", "content": [{"type": "text", "text": "the cat"}], "name": "bob"}]
    for more in (
        {"messages": parts}, {"max_tokens": openai.omit, "max_completion_tokens": 8}, {"store": True, "metadata": {"a": "b"}},
        {"reasoning_effort": "low", "verbosity": "low"}, {"tool_choice": "none"}, {"parallel_tool_calls": True}, {"service_tier": "auto"},
        {"user": "bob", "safety_identifier": "bob", "prompt_cache_key": "bob"}, {"modalities": ["text"]}, {"n": 1, "logit_bias": {}},
        {"tools": [], "tool_choice": "auto"}, {"response_format": {"type": "text"}}, {"extra_headers": {"Accept": "text/event-stream"}},
    ):
        assert chat(**more).choices == plain, more


def tools() -> None:
    assert chat(tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"place": "yard"}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    if STRUCTURED:
        named = {"type": "function", "function": {"name": "look"}}
        answer = chat(tools=[TOOL], tool_choice=named, max_tokens=360).choices[0]
        assert answer.finish_reason == "tool_calls", answer
        call = answer.message.tool_calls[0]
        assert call.function.name == "look" and call.type == "function"
        chosen(call.function.arguments)
        asked = answer.message
        with client.chat.completions.stream(
            model=server.model, messages=QUESTION, temperature=0, max_tokens=360, tools=[TOOL], tool_choice="required"
        ) as stream:
            final = stream.get_final_completion().choices[0].message
        chosen(final.tool_calls[0].function.arguments)
    told = [*QUESTION, asked, {"role": "tool", "tool_call_id": "call_1", "content": "in the yard"}]
    assert chat(messages=told, tools=[TOOL]).usage.prompt_tokens > chat(tools=[TOOL]).usage.prompt_tokens


def schemas() -> None:
    if not STRUCTURED:
        return
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    chosen(chat(response_format=wanted, max_tokens=360).choices[0].message.content)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(response_format=wanted, max_tokens=360, stream=True)]
    chosen("".join(pieces))


def probabilities() -> None:
    places = chat(max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(places) == 3 and all(place.logprob <= 0 and len(place.top_logprobs) == 2 for place in places)
    # Without chance the most probable token is taken.
    assert all(place.logprob == place.top_logprobs[0].logprob for place in places)
    told = complete(max_tokens=0, echo=True, logprobs=1).choices[0]
    assert told.text == "the cat" and told.logprobs.token_logprobs[0] is None and told.logprobs.token_logprobs[1] < 0


def embeddings() -> None:
    packed = client.embeddings.create(model=server.model, input=["the cat", "Öl 🦜"])
    plain = client.embeddings.create(model=server.model, input="the cat", encoding_format="float")
    assert [vector.index for vector in packed.data] == [0, 1]
    assert max(abs(a - b) for a, b in zip(packed.data[0].embedding, plain.data[0].embedding, strict=True)) < 1e-6


def many_at_a_time() -> None:
    prompts = [f"number {number}" for number in range(MANY)]
    together = complete(prompt=prompts)
    assert [choice.index for choice in together.choices] == list(range(MANY))

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=server.url, api_key=server.key, max_retries=0, timeout=300) as several:
            calls = [
                several.completions.create(model=server.model, prompt=prompt, temperature=0, max_tokens=8) for prompt in prompts
            ]
            return await asyncio.gather(*calls)

    alone = asyncio.run(all_of_them())
    # Texts that are computed together round otherwise: now and then two tokens are as probable as each other.
    same = sum(one.choices[0].text == choice.text for one, choice in zip(alone, together.choices, strict=True))
    assert same >= MANY - 4, f"{same} of {MANY}"


def who_leaves_frees_a_place() -> None:
    stream = chat(stream=True, max_tokens=400, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    server.is_idle()


def what_is_wrong_has_its_error() -> None:
    stranger = openai.OpenAI(base_url=server.url, api_key="wrong", max_retries=0)
    assert raised(stranger.models.list, openai.AuthenticationError).code == "invalid_api_key"
    assert raised(lambda: chat(model="gpt-4"), openai.NotFoundError).code == "model_not_found"
    long = raised(lambda: chat(messages=[{"role": "user", "content": TOO_LONG}]), openai.BadRequestError)
    assert long.code == "context_length_exceeded" and long.param == "messages", long
    assert raised(lambda: chat(temperature=-1), openai.BadRequestError).param == "temperature"
    assert raised(lambda: chat(stream=True, n=0), openai.BadRequestError).param == "n"


def any_character() -> None:
    text = "Größe 北京 🦜\u200d\u2028\\n\"quoted\" \u0000 end"
    answer = complete(prompt=text, max_tokens=1, echo=True)
    assert answer.choices[0].text.startswith(text), answer.choices[0].text
    assert chat(messages=[{"role": "user", "content": text}]).choices


def seeds() -> None:
    drawn = [chat(seed=seed, temperature=1, max_tokens=16).choices[0].message.content for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2], drawn
    several = chat(seed=7, temperature=1, max_tokens=16, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) == 3


def models() -> None:
    assert server.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(server.model).id == server.model
    assert json.loads(client.models.with_raw_response.list().text)["object"] == "list"


run(
    models, chats_whole_and_in_pieces, addresses_however_people_write_them, what_clients_send_besides_changes_nothing, tools, schemas, probabilities, embeddings,
    many_at_a_time, who_leaves_frees_a_place, what_is_wrong_has_its_error, any_character, seeds,
)
