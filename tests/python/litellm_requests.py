"""What `litellm` asks for on behalf of its users, once each.

usage: litellm_requests.py URL KEY MODEL
"""

import asyncio
import os

# It would ask a web site for prices otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402

from checks import QUESTION, SCHEMA, STRUCTURED, TOO_LONG, TOOL, Server, chosen, raised, run  # noqa: E402

server = Server()
litellm.suppress_debug_info = True
litellm.telemetry = False
MANY = 64
# Its two names for servers like this one.
PROVIDERS = ("openai", "hosted_vllm")


def given(provider: str = "openai", **more) -> dict:
    own = {"model": f"{provider}/{server.model}", "api_base": server.url, "api_key": server.key, "num_retries": 0, "timeout": 120}
    return own | more


def chat(provider: str = "openai", **more):
    return litellm.completion(**given(provider, messages=QUESTION, temperature=0, max_tokens=8) | more)


def complete(**more):
    return litellm.text_completion(**given("text-completion-openai", prompt="the cat", temperature=0, max_tokens=8) | more)


def chats_whole_and_in_pieces() -> None:
    for provider in PROVIDERS:
        whole = chat(provider)
        assert whole.choices[0].finish_reason in ("length", "stop") and whole.usage.completion_tokens <= 8
        chunks = list(chat(provider, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content, pieces
        assert litellm.stream_chunk_builder(chunks).usage.completion_tokens == whole.usage.completion_tokens


def addresses_however_people_write_them() -> None:
    plain = chat().choices[0].message.content
    for address in (server.root, f"{server.root}/", f"{server.url}/"):
        assert chat(api_base=address).choices[0].message.content == plain, address


def what_clients_send_besides_changes_nothing() -> None:
    plain = chat().choices[0].message.content
    for more in (
        {"user": "bob", "metadata": {"a": "b"}}, {"max_tokens": None, "max_completion_tokens": 8}, {"n": 1, "presence_penalty": 0},
        {"tool_choice": "none"}, {"extra_body": {"top_k": -1, "repetition_penalty": 1.0}}, {"response_format": {"type": "text"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}]}, {"stop": []},
    ):
        assert chat(**more).choices[0].message.content == plain, more


def tools() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"place": "yard"}'}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    if STRUCTURED:
        named = {"type": "function", "function": {"name": "look"}}
        for provider in PROVIDERS:
            answer = chat(provider, tools=[TOOL], tool_choice=named, max_tokens=360).choices[0]
            assert answer.finish_reason == "tool_calls", answer
            chosen(answer.message.tool_calls[0].function.arguments)
            asked = answer.message.model_dump()
            chunks = list(chat(provider, tools=[TOOL], tool_choice="required", max_tokens=360, stream=True))
            built = litellm.stream_chunk_builder(chunks).choices[0].message
            chosen(built.tool_calls[0].function.arguments)
    told = [*QUESTION, asked, {"role": "tool", "tool_call_id": "call_1", "content": "in the yard"}]
    assert chat(messages=told, tools=[TOOL]).usage.prompt_tokens > chat(tools=[TOOL]).usage.prompt_tokens


def schemas() -> None:
    if not STRUCTURED:
        return
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    for provider in PROVIDERS:
        chosen(chat(provider, response_format=wanted, max_tokens=360).choices[0].message.content)


def probabilities() -> None:
    places = chat(max_tokens=3, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(places) == 3 and all(place.logprob <= 0 and len(place.top_logprobs) == 2 for place in places)


def embeddings() -> None:
    for provider in PROVIDERS:
        vectors = litellm.embedding(**given(provider, input=["the cat", "Öl 🦜"])).data
        assert len(vectors) == 2 and len(vectors[0]["embedding"]) == len(vectors[1]["embedding"]) > 8


def many_at_a_time() -> None:
    prompts = [f"number {number}" for number in range(MANY)]
    together = complete(prompt=prompts)
    assert [choice.index for choice in together.choices] == list(range(MANY))

    async def all_of_them():
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        calls = [litellm.acompletion(**given(messages=messages, temperature=0, max_tokens=8)) for messages in asked]
        return await asyncio.gather(*calls)

    assert all(answer.usage.completion_tokens > 0 for answer in asyncio.run(all_of_them()))


def who_leaves_frees_a_place() -> None:
    async def leave() -> None:
        stream = await litellm.acompletion(
            **given(messages=QUESTION, temperature=0, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
        )
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    server.is_idle()


def what_is_wrong_has_its_error() -> None:
    raised(lambda: chat(api_key="wrong"), litellm.AuthenticationError)
    raised(lambda: chat(model="openai/gpt-4"), litellm.NotFoundError)
    long = [{"role": "user", "content": TOO_LONG}]
    for provider in PROVIDERS:
        raised(lambda: chat(provider, messages=long), litellm.ContextWindowExceededError)
        raised(lambda: chat(provider, messages=long, stream=True), litellm.ContextWindowExceededError)
    raised(lambda: chat(temperature=-1), litellm.BadRequestError)


def any_character() -> None:
    text = "Größe 北京 🦜\u200d\u2028\\n\"quoted\" end"
    assert complete(prompt=text, max_tokens=1, echo=True).choices[0].text.startswith(text)


def seeds() -> None:
    drawn = [chat(seed=seed, temperature=1, max_tokens=16).choices[0].message.content for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2], drawn


run(
    chats_whole_and_in_pieces, addresses_however_people_write_them, what_clients_send_besides_changes_nothing, tools, schemas,
    probabilities, embeddings, many_at_a_time, who_leaves_frees_a_place, what_is_wrong_has_its_error, any_character, seeds,
)
