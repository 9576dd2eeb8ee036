"""What `langchain-openai` asks for on behalf of its users, once each.

usage: langchain_requests.py URL KEY MODEL
"""

import asyncio
from typing import Literal

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from checks import STRUCTURED, TOO_LONG, Server, raised, run

server = Server()
MANY = 64
# The client keeps its connections for all chats, and they belong to one loop.
LOOP = asyncio.new_event_loop()
ASKED = [HumanMessage("the cat")]


class Place(BaseModel):
    """Where a thing is."""

    place: Literal["yard", "tower"]


@tool
def look(place: Literal["yard", "tower"]) -> str:
    """Looks for a thing."""
    return f"in the {place}"


def given(**more) -> dict:
    return {"model": server.model, "base_url": server.url, "api_key": server.key, "max_retries": 0, "timeout": 120, "temperature": 0} | more


def chat(**more) -> ChatOpenAI:
    return ChatOpenAI(**given(max_tokens=8) | more)


def chats_whole_and_in_pieces() -> None:
    whole = chat().invoke(ASKED)
    assert whole.usage_metadata["output_tokens"] <= 8 and whole.response_metadata["finish_reason"] in ("length", "stop")
    pieces = list(chat(stream_usage=True).stream(ASKED))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == whole.usage_metadata["output_tokens"]


def addresses_however_people_write_them() -> None:
    plain = chat().invoke(ASKED).content
    for address in (server.root, f"{server.root}/", f"{server.url}/"):
        assert chat(base_url=address).invoke(ASKED).content == plain, address


def what_clients_send_besides_changes_nothing() -> None:
    plain = chat().invoke(ASKED).content
    parts = [HumanMessage([{"type": "text", "text": "the cat"}], name="bob")]
    assert chat().invoke(parts).content == plain
    for more in ({"reasoning_effort": "low"}, {"metadata": {"a": "b"}, "store": True}, {"top_p": 1, "n": 1}, {"service_tier": "auto"}):
        assert chat(**more).invoke(ASKED).content == plain, more


def tools() -> None:
    asked = AIMessage("", tool_calls=[{"name": "look", "args": {"place": "yard"}, "id": "call_1"}])
    if STRUCTURED:
        for choice in ("look", "any"):
            asked = chat(max_tokens=360).bind_tools([look], tool_choice=choice, strict=True).invoke(ASKED)
            assert asked.tool_calls[0]["name"] == "look" and asked.tool_calls[0]["args"]["place"] in ("yard", "tower"), asked
        whole = None
        for piece in chat(max_tokens=360).bind_tools([look], tool_choice="any", strict=True).stream(ASKED):
            whole = piece if whole is None else whole + piece
        assert whole.tool_calls[0]["args"]["place"] in ("yard", "tower"), whole
    told = [*ASKED, asked, ToolMessage("in the yard", tool_call_id=asked.tool_calls[0]["id"])]
    answer = chat().bind_tools([look]).invoke(told)
    assert answer.usage_metadata["input_tokens"] > chat().bind_tools([look]).invoke(ASKED).usage_metadata["input_tokens"]


def schemas() -> None:
    if not STRUCTURED:
        return
    for method in ("json_schema", "function_calling"):
        place = chat(max_tokens=360).with_structured_output(Place, method=method).invoke(ASKED)
        assert place.place in ("yard", "tower"), method


def probabilities() -> None:
    places = chat(max_tokens=3, logprobs=True, top_logprobs=2).invoke(ASKED).response_metadata["logprobs"]["content"]
    assert len(places) == 3 and all(place["logprob"] <= 0 and len(place["top_logprobs"]) == 2 for place in places)


def embeddings() -> None:
    # Otherwise it sends the tokens of OpenAI's tokenizer, whatever the model.
    embedder = OpenAIEmbeddings(
        model=server.model, base_url=server.url, api_key=server.key, max_retries=0, check_embedding_ctx_length=False
    )
    vectors = embedder.embed_documents(["the cat", "Öl 🦜"])
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 8
    assert max(abs(a - b) for a, b in zip(embedder.embed_query("the cat"), vectors[0], strict=True)) < 1e-6


def many_at_a_time() -> None:
    prompts = [f"number {number}" for number in range(MANY)]
    texts = OpenAI(**given(max_tokens=8), batch_size=MANY).generate(prompts).generations
    assert len(texts) == MANY and all(text[0].text for text in texts)
    answers = LOOP.run_until_complete(chat().abatch(prompts, config={"max_concurrency": MANY}))
    assert len(answers) == MANY and all(answer.usage_metadata["output_tokens"] > 0 for answer in answers)


def who_leaves_frees_a_place() -> None:
    async def leave() -> None:
        stream = chat(max_tokens=400, extra_body={"ignore_eos": True}).astream(ASKED)
        async for _ in stream:
            break
        await stream.aclose()

    LOOP.run_until_complete(leave())
    server.is_idle()


def what_is_wrong_has_its_error() -> None:
    raised(lambda: chat(api_key="wrong").invoke(ASKED), openai.AuthenticationError)
    raised(lambda: chat(model="gpt-4").invoke(ASKED), openai.NotFoundError)
    raised(lambda: chat().invoke(TOO_LONG), openai.BadRequestError)
    raised(lambda: list(chat().stream(TOO_LONG)), openai.BadRequestError)


def any_character() -> None:
    text = "Größe 北京 🦜\u200d\u2028\\n\"quoted\" end"
    assert OpenAI(**given(max_tokens=1), model_kwargs={"echo": True}).invoke(text).startswith(text)


def seeds() -> None:
    drawn = [chat(seed=seed, temperature=1, max_tokens=16).invoke(ASKED).content for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2], drawn


run(
    chats_whole_and_in_pieces, addresses_however_people_write_them, what_clients_send_besides_changes_nothing, tools, schemas,
    probabilities, embeddings, many_at_a_time, who_leaves_frees_a_place, what_is_wrong_has_its_error, any_character, seeds,
)
