"""Uses a `petals-tune serve` as its users do: streams a chat of a tuned adapter while 16 other requests run all the time.

usage: openai_client.py BASE_URL KEY MODEL ADAPTER

Prints what it saw as one JSON object.
"""

import json
import sys
import threading

import openai

OTHERS = 16


def chat(client: openai.OpenAI, model: str, text: str, **more):
    """A chat of one message, without chance."""
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, **more)


def main() -> None:
    base_url, key, model, adapter = sys.argv[1:]
    # No retries: what fails should be seen.
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
    done, begun = threading.Event(), threading.Semaphore(0)
    answers, failures = [0] * OTHERS, []

    def other(number: int) -> None:
        """Asks again and again until the chat is over; every other one is streamed, or of the adapter."""
        try:
            while not done.is_set():
                which = (model, adapter)[number // 2 % 2]
                if number % 2:
                    for _ in chat(client, which, f"number {number}", max_tokens=40, stream=True):
                        if not answers[number]:
                            answers[number] = 1
                            begun.release()
                else:
                    text = client.completions.create(model=which, prompt=f"number {number}", max_tokens=40)
                    assert text.choices[0].finish_reason in ("length", "stop"), text
                    if not answers[number]:
                        begun.release()
                answers[number] += 1
        except Exception as error:
            failures.append(f"{number}: {error!r}")
            begun.release()

    threads = [threading.Thread(target=other, args=(number,)) for number in range(OTHERS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        begun.acquire()
    pieces, usage, finish = [], None, None
    stream = chat(client, adapter, "the cat", max_completion_tokens=48, stream=True, stream_options={"include_usage": True})
    running = 0
    for chunk in stream:
        running = max(running, sum(thread.is_alive() for thread in threads))
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if choice.delta.content:
                pieces.append(choice.delta.content)
    done.set()
    for thread in threads:
        thread.join()
    whole = chat(client, adapter, "the cat", max_tokens=48)
    plain = chat(client, model, "the cat", max_tokens=48)

    scored = chat(client, model, "the cat", max_tokens=4, logprobs=True, top_logprobs=2)
    places = scored.choices[0].logprobs.content
    vectors = client.embeddings.create(model=model, input=["the cat", "a dog"])
    floats = client.embeddings.create(model=model, input="the cat", encoding_format="float")
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    told = chat(client, model, "the cat", max_tokens=32_000, tools=[tool])
    echo = client.completions.create(model=model, prompt="the cat", max_tokens=0, echo=True, logprobs=1)

    def error(call) -> str:
        try:
            call()
        except openai.APIError as error:
            return type(error).__name__
        return "none"

    stranger = openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0)
    print(json.dumps({
        "models": [found.id for found in client.models.list()],
        "pieces": pieces,
        "finish": finish,
        "usage": usage and usage.model_dump(),
        "whole": whole.choices[0].message.content,
        "plain": plain.choices[0].message.content,
        "others": answers,
        "running": running,
        "failures": failures,
        "scored": [[place.token, place.logprob, place.bytes, len(place.top_logprobs)] for place in places],
        "vectors": [len(vector.embedding) for vector in vectors.data],
        # The client unpacks base64 by itself.
        "packed": max(abs(a - b) for a, b in zip(vectors.data[0].embedding, floats.data[0].embedding)),
        "told": [told.choices[0].finish_reason, told.usage.total_tokens],
        "echo": [echo.choices[0].text, echo.choices[0].logprobs.token_logprobs],
        "errors": [
            error(lambda: chat(client, "gpt-4", "x")),
            error(lambda: chat(client, model, "x " * 3000)),
            error(stranger.models.list),
        ],
    }))


if __name__ == "__main__":
    main()
