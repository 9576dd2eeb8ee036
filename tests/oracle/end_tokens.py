"""Which tokens end a text for transformers, by config.json and generation_config.json: tests/goldens/configs/end-tokens.json.

usage: end_tokens.py    (once in an environment of requirements-configs-4.txt, once of requirements-configs-5.txt)

What `from_pretrained` of a model does: `GenerationConfig.from_pretrained`, and where that fails because the file is not there
`GenerationConfig.from_model_config`. Needs no torch. The tokenizer's own end token is not in it: `generate` does not look at it.
"""

import itertools
import json
import logging
import tempfile
from pathlib import Path

import transformers
from transformers import AutoConfig, GenerationConfig

HERE = Path(__file__).resolve().parent.parent / "goldens" / "configs"
OUT = HERE / "end-tokens.json"
MAJOR = transformers.__version__.split(".")[0]
logging.disable(logging.WARNING)

# What config.json has under `eos_token_id`; nothing: no such key.
CONFIGS = {"missing": {}, "null": {"eos_token_id": None}, "one": {"eos_token_id": 7}, "two": {"eos_token_id": [7, 8]}, "none": {"eos_token_id": -1}}
# generation_config.json; None: no such file.
GENERATION = {
    "absent": None,
    "empty": {},
    "null": {"eos_token_id": None},
    "one": {"eos_token_id": 5},
    "two": {"eos_token_id": [6, 5]},
    "of the model": {"_from_model_config": True, "eos_token_id": 5},
}
NAN = {"temperature": float("nan"), "eos_token_id": 5}


def ends(config: dict, generation: dict | None) -> list[int]:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (Path(directory) / "generation_config.json").write_text(json.dumps(generation))
        try:
            read = GenerationConfig.from_pretrained(directory)
        except OSError:
            read = GenerationConfig.from_model_config(AutoConfig.from_pretrained(directory))
    eos = read.eos_token_id
    return [] if eos is None else eos if isinstance(eos, list) else [eos]


def main() -> None:
    bases = json.loads((HERE / "variants.json").read_text())["bases"]
    golden = json.loads(OUT.read_text()) if OUT.exists() else {}
    cases = {(case["config"], case["generation"]): case for case in golden.get("cases", [])}
    for (base, config), own, (name, generation) in itertools.product(bases.items(), CONFIGS, [*GENERATION.items(), ("nan", NAN)]):
        given = {key: value for key, value in config.items() if key != "eos_token_id"} | CONFIGS[own]
        generation_text = None if generation is None else json.dumps(generation)
        key = (json.dumps(given), generation_text)
        case = cases.setdefault(key, {"name": f"{base}, {own}, {name}", "config": key[0], "generation": key[1]})
        case[MAJOR] = ends(given, generation)
    golden = {"versions": golden.get("versions", {}) | {MAJOR: transformers.__version__}, "cases": list(cases.values())}
    OUT.write_text(json.dumps(golden).replace('}, {"name"', '},\n{"name"') + "\n")
    differ = [case["name"] for case in cases.values() if "4" in case and "5" in case and case["4"] != case["5"]]
    print(f"{len(cases)} cases, the versions differ in {differ}")


if __name__ == "__main__":
    main()
