"""Writes tests/goldens/data/tokenizers.json: small tokenizers of the kinds that models come with, what they make of tokens behind
a prompt, and how transformers completes them from the files beside tokenizer.json. Needs transformers and tokenizers, no torch.
"""

import json
import os
import random
import tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerBase  # noqa: E402

OUT = Path(__file__).resolve().parents[1] / "goldens" / "data" / "tokenizers.json"

CORPUS = [
    "the cat sat on the mat, and the dog did n't run to the door .",
    "it 's a lovely morning ! is n't it ? we 've seen ' enough ' .",
    "Où est le tonneau ? Né à Zürich, naïve café.",
    "for i in range(10):\n    print(i)\n\n\tdone",
    "The capital of Kenya is Nairobi.",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  two spaces  in  front",
    "end ",
    "你好，世界 🙂🙃 x",
    "👩‍👩‍👧 family and 𝄞 clef",
    "አማርኛ ጽሑፍ",
    "\ufffd is a character",
    "<s>a</s> b<|im_start|>user\nhi<|im_end|> <tool>x</tool>",
    "▁ a ▁▁ b",
]
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted({c for text in CORPUS for c in text if c != " "} | {"▁"})
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Tokenizer:
    """GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def with_bytes(strip: bool) -> Tokenizer:
    """Llama 2 and Mistral (with `strip`), Gemma (without): BPE over letters, other characters as byte tokens."""
    base = Tokenizer(models.BPE())
    space = normalizers.Replace(" ", "▁")
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if strip else space
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, initial_alphabet=ALPHABET, show_progress=False)
    base.train_from_iterator(CORPUS, trainer)
    state = json.loads(base.to_str())
    vocab = state["model"]["vocab"]
    for token in BYTES:
        vocab[token] = len(vocab)
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    return tokenizer


def unigram(fallback: bool) -> Tokenizer:
    """T5, XLM-R, and newer SentencePiece conversions: Unigram with Metaspace."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=ALPHABET, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    state = json.loads(trained.to_str())
    if fallback:
        state["model"]["vocab"] += [[token, -20.0] for token in BYTES]
        state["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    metaspace = decoders.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if fallback else metaspace
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def suffixes() -> Tokenizer:
    """CLIP and GPT-1: words end with </w>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Tokenizer:
    """No decoder at all."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def finished(tokenizer: Tokenizer) -> Tokenizer:
    """With a token that is added but not special, and a text that begins with <s>."""
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer


KINDS = {
    "byte-level": byte_level(),
    "llama2": with_bytes(True),
    "gemma": with_bytes(False),
    "unigram": unigram(False),
    "unigram-bytes": unigram(True),
    "word-piece": word_piece(),
    "suffixes": suffixes(),
    "words": words(),
}
# Those whose text is cleaned if the configuration says so: transformers 5 leaves that of BPE tokenizers as it is.
CLEANED = ["word-piece", "unigram", "words"]


def cleaned(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return PreTrainedTokenizerBase.clean_up_tokenization(tokenizer.decode(tokens, skip_special_tokens=True))


def behind(tokenizer: Tokenizer, prompt: list[int], ids: list[int], clean: bool) -> str:
    """What `ids` add to the text of `prompt`."""

    def text(tokens: list[int]) -> str:
        decoded = tokenizer.decode(tokens, skip_special_tokens=True)
        return PreTrainedTokenizerBase.clean_up_tokenization(decoded) if clean else decoded

    return text(prompt + ids)[len(os.path.commonprefix([text(prompt), text(prompt + ids)])) :]


def decoding() -> list[dict]:
    """Texts cut anywhere, and tokens in no order."""
    draw = random.Random(11)
    cases = []
    for name, tokenizer in KINDS.items():
        size = tokenizer.get_vocab_size()
        single = [tokenizer.token_to_id(token) for token in BYTES if tokenizer.token_to_id(token) is not None]
        for clean in [False, True] if name in CLEANED else [False]:
            pairs = []
            for text in TEXTS:
                ids = tokenizer.encode(text).ids
                cut = draw.randrange(len(ids) + 1)
                pairs.append((ids[:cut], ids[cut:]))
            prompt = tokenizer.encode("The capital of Kenya is").ids
            for text in TEXTS:
                pairs.append((prompt, tokenizer.encode(text, add_special_tokens=False).ids))
            for _ in range(40):
                ids = [draw.randrange(size) for _ in range(draw.randrange(1, 30))]
                pairs.append((prompt, ids))
            for _ in range(40 if single else 0):
                few = [draw.choice(single[0x80:] + [prompt[-1]]) for _ in range(draw.randrange(1, 9))]
                face = [single[byte] for byte in "🙂é".encode()]
                pairs.append((prompt, draw.choice([face, []]) + few + draw.choice([face, [], prompt])))
            cases += [
                {"kind": name, "clean": clean, "prompt": p, "ids": i, "text": behind(tokenizer, p, i, clean)}
                for p, i in pairs
                # "did n" becomes "didn't" with what follows: there the text of the prompt is no longer that of the prompt.
                if not clean or cleaned(tokenizer, p + i).startswith(cleaned(tokenizer, p))
            ]
    return cases


def token(content: str, special: bool = True, **flags: bool) -> dict:
    """A token as added_tokens_decoder has it."""
    shape = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": content, "special": special, **shape, **flags}


def tagged(content: str) -> dict:
    """A token as newer tokenizer_config.json have it in a role."""
    return {"__type": "AddedToken", **token(content)}


LLAMA = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
# Files beside tokenizer.json; {n} is the first free id.
FILES = {
    "decoder": {
        "tokenizer_config.json": {
            **FAST,
            "eos_token": "<|eot|>",
            "added_tokens_decoder": {"{n}": token("<|eot|>"), "{n+1}": token("<think>", False), "{n+2}": token("<|pad|>")},
            "additional_special_tokens": ["<|pad|>", "<|more|>"],
        }
    },
    "decoder-strips": {
        "tokenizer_config.json": {
            **FAST,
            "added_tokens_decoder": {"{n}": token("<|sep|>", lstrip=True, rstrip=True), "{n+1}": token("word", False, single_word=True)},
        }
    },
    "decoder-overrides": {
        "tokenizer_config.json": {**FAST, "eos_token": "<tool>", "added_tokens_decoder": {"{n-1}": token("<tool>")}}
    },
    "roles": {"tokenizer_config.json": {**FAST, "eos_token": tagged("<|eot|>"), "pad_token": "<|pad|>"}},
    "extra-list": {"tokenizer_config.json": {**FAST, "additional_special_tokens": ["<|a|>", tagged("<|b|>")]}},
    "old-files": {
        "tokenizer_config.json": FAST,
        "added_tokens.json": {"<|late|>": "{n+1}", "<|eot|>": "{n}"},
        "special_tokens_map.json": {"eos_token": token("<|eot|>"), "additional_special_tokens": ["<|x|>"]},
    },
    "non-special-eos": {"tokenizer_config.json": {**FAST, "eos_token": "<tool>"}},
    "llama": {"tokenizer_config.json": LLAMA},
    "llama-no-bos": {"tokenizer_config.json": {**LLAMA, "add_bos_token": False}},
    "llama-eos": {"tokenizer_config.json": {**LLAMA, "add_bos_token": True, "add_eos_token": True}},
    "llama-slow-name": {"tokenizer_config.json": {**LLAMA, "tokenizer_class": "LlamaTokenizer", "add_eos_token": True}},
    "gemma-class": {"tokenizer_config.json": {**LLAMA, "tokenizer_class": "GemmaTokenizerFast", "add_bos_token": True}},
}
ENCODED = [
    "hi<|eot|> there",
    "<think>a</think> <|pad|><|more|>\n<|x|>",
    "a <|sep|> b <|sep|>c sword word words",
    "<tool>x <|late|> <|a|><|b|>",
    "the cat sat",
]


def numbered(value: object, first: int) -> object:
    """Files with ids for {n}."""
    if isinstance(value, dict):
        return {numbered(key, first): numbered(entry, first) for key, entry in value.items()}
    if isinstance(value, list):
        return [numbered(entry, first) for entry in value]
    names = {"{n-1}": first - 1, "{n}": first, "{n+1}": first + 1, "{n+2}": first + 2}
    if isinstance(value, str) and value in names:
        return names[value]
    return value


def completed() -> list[dict]:
    """Tokenizers with files beside them, as AutoTokenizer loads them."""
    cases = []
    for kind in ["byte-level", "llama2"]:
        first = KINDS[kind].get_vocab_size()
        for name, files in FILES.items():
            files = {file: numbered(content, first) for file, content in files.items()}
            with tempfile.TemporaryDirectory() as root:
                KINDS[kind].save(f"{root}/tokenizer.json")
                for file, content in files.items():
                    Path(root, file).write_text(json.dumps(content))
                tokenizer = AutoTokenizer.from_pretrained(root, use_fast=True)
            texts = [
                {
                    "text": text,
                    "ids": tokenizer(text)["input_ids"],
                    "bare": tokenizer(text, add_special_tokens=False)["input_ids"],
                    "decoded": tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True),
                }
                for text in ENCODED
            ]
            cases.append({"kind": kind, "name": name, "files": files, "eos": tokenizer.eos_token_id, "texts": texts})
    return cases


def main() -> None:
    for tokenizer in KINDS.values():
        finished(tokenizer)
    golden = {
        "tokenizers": {name: json.loads(tokenizer.to_str()) for name, tokenizer in KINDS.items()},
        "decoding": decoding(),
        "completed": completed(),
    }
    OUT.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(golden['decoding'])} decoded, {len(golden['completed'])} completed, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
