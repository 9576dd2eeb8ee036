"""What the scripts of single clients share: where the server is, what it can, and its figures."""

import json
import sys
import time
import urllib.request

# Whether the server binds answers to schemas: `response_format`, and arguments of tools that must be called.
STRUCTURED = True

QUESTION = [{"role": "user", "content": "the cat"}]
# A schema that leaves no choice but two.
SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string", "enum": ["yard", "tower"]}},
    "required": ["place"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks for a thing", "parameters": SCHEMA}}
# More tokens than the tiny models have positions.
TOO_LONG = "the cat " * 2000


class Server:
    """`URL KEY MODEL` from the command line: the server's address without `/v1`, its key, and what it calls the model."""

    def __init__(self) -> None:
        self.root, self.key, self.model = sys.argv[1:]
        self.url = f"{self.root}/v1"

    def figure(self, name: str) -> float:
        """The sum of a figure of `/metrics` over all of its labels."""
        request = urllib.request.Request(f"{self.root}/metrics", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        values = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return sum(float(value) for key, value in values if key.split("{")[0] == name)

    def is_idle(self) -> None:
        """Waits until nothing is generated any more."""
        for _ in range(300):
            if self.figure("petals_active_texts") == 0:
                return
            time.sleep(0.1)
        raise AssertionError("a place is still taken")


def chosen(text: str) -> None:
    """A JSON text is one of the two that the schema allows."""
    assert json.loads(text) in ({"place": "yard"}, {"place": "tower"}), text


def raised(call, *kinds: type[Exception]) -> Exception:
    """The error of one of these kinds that a call ends with."""
    try:
        outcome = call()
    except kinds as error:
        return error
    raise AssertionError(f"no error, but {outcome!r}")


def run(*checks) -> None:
    """Runs all checks, and prints their names as a JSON list."""
    for check in checks:
        print(check.__name__, file=sys.stderr, flush=True)
        check()
    print(json.dumps([check.__name__ for check in checks]))
