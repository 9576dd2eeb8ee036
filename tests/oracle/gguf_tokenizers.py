"""Small tokenizers, as llama.cpp's converter writes them to GGUF, and the tokens and texts that transformers has for what they were made from.

    LLAMA_CPP=DIR python tests/oracle/gguf_tokenizers.py

It needs what gguf_models.py does, and sentencepiece with protobuf. Writes tests/goldens/gguf/tokenizers: `spm.gguf` (Llama 2's kind), `gemma.gguf` and `bpe.gguf`,
and `cases.json`: of each file, and of `bpe.gguf` for each name of a way to split texts, texts with their `ids` and what those are as a text again.

Vocabularies of real models come with llama.cpp itself, with tokens that transformers had for them: `PETALS_GGUF_VOCABULARIES=DIR/models` has the tests of petals-tune compare those.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch
import transformers as T
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

sys.path[:0] = [os.environ["LLAMA_CPP"], os.environ["LLAMA_CPP"] + "/gguf-py"]
import gguf  # noqa: E402
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class  # noqa: E402

OUT = Path(__file__).parent.parent / "goldens/gguf/tokenizers"
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and doesn't look back. " * 3,
    "def quicksort(items):\n    if len(items) < 2:\n        return items\n\n    pivot = items[0]\n",
    "Nairobi ist die Hauptstadt von Kenia; größer als Kampala. Où est la bibliothèque? ¿Dónde está?",
    "In 1984 there were 12345 and 678 of them, 3.14159 each. I'll say they've said we're fine!!!",
    "Где находится библиотека? 图书馆在哪里？ 東京 123 ١٢٣ हिन्दी",
] * 4
TEXTS = [
    "", " ", "The quick brown fox", " The fox  jumps   over", "def f(x):\n    return x\n\n\n", "I'll've DON'T 12345 3.14", "größer naïve cafe\u0301",
    "<s>The</s> dog<tool> fox <tool>", "图书馆 Где 🦙 ١٢٣ हिन्दी", "\n\n a \t b\r\n", "  leading and trailing  ", "a,b;c...!? (d) [e] ```f``` =====", "camelCaseHTTPServer's",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def by(*expressions):
    parts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# By llama.cpp's names: the parts of the tokenizer.json of models of that kind; whether merges are ignored; whether texts are composed.
SPLITS = {
    "llama-bpe": (by(LLAMA3), True, False),
    "qwen2": (by(LLAMA3.replace("{1,3}", "")), False, True),
    "tekken": (by(rf"{UPPER}*{LOWER}+|{UPPER}+{LOWER}*|\p{{N}}|{REST}"), True, False),
    "gpt-4o": (by(rf"{UPPER}*{LOWER}+{SHORT}|{UPPER}+{LOWER}*{SHORT}|\p{{N}}{{1,3}}|{REST}"), False, False),
    "gpt-2": (gpt2(), False, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), gpt2()]), False, False),
    "falcon": (pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), gpt2(), pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]), False, False),
    "bloom": (by(r" ?[^(\s|[.,!?…。，、।۔،])]+"), False, False),
}


def convert(directory: Path, out: Path, pre: str | None) -> None:
    cls = get_model_class(get_model_architecture(ModelBase.load_hparams(directory, False), ModelType.TEXT), mmproj=False)
    named = {"model_arch": cls.model_arch}
    if pre is not None:
        named["get_vocab_base_pre"] = lambda self, tokenizer: pre
    with torch.inference_mode():
        type("Named", (cls,), named)(directory, gguf.LlamaFileType.ALL_F32, out, eager=True, model_name="tiny").write_vocab()


def cases(tokenizer) -> list:
    out = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        out.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)})
    return out


def sentence_pieces(directory: Path, gemma: bool) -> None:
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(line for text in CORPUS for line in text.split("\n")))
    more = ["\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<tool>"] if gemma else ["<tool>"]
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(directory / "tokenizer"), vocab_size=420, model_type="bpe", byte_fallback=True, character_coverage=0.99,
        user_defined_symbols=more, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=not gemma,
        minloglevel=2, num_threads=1, pad_id=0 if gemma else -1, eos_id=1 if gemma else 2, bos_id=2 if gemma else 1, unk_id=3 if gemma else 0,
        pad_piece="<pad>", bos_piece="<bos>" if gemma else "<s>", eos_piece="<eos>" if gemma else "</s>")
    corpus.unlink()


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    all_cases = {}
    for name, config, cls in [
        ("spm", T.LlamaConfig(vocab_size=420), T.LlamaTokenizerFast),
        ("gemma", T.Gemma2Config(vocab_size=420), T.GemmaTokenizerFast),
    ]:
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary)
            sentence_pieces(directory, name == "gemma")
            config.architectures = ["LlamaForCausalLM" if name == "spm" else "Gemma2ForCausalLM"]
            config.save_pretrained(directory)
            tokenizer = cls.from_pretrained(directory)
            tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
            # With the list of added tokens, by which the converter knows them.
            tokenizer.save_pretrained(directory)
            convert(directory, OUT / f"{name}.gguf", None)
            all_cases[name] = cases(tokenizer)
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = by(LLAMA3), decoders.ByteLevel()
    special = [AddedToken("<s>", special=True, normalized=False), AddedToken("</s>", special=True, normalized=False)]
    plain.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    plain.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    for name, (splits, ignores, composes) in SPLITS.items():
        parts = json.loads(plain.to_str())
        parts["model"]["ignore_merges"] = ignores
        tokenizer = Tokenizer.from_str(json.dumps(parts))
        tokenizer.pre_tokenizer = splits
        if composes:
            tokenizer.normalizer = normalizers.NFC()
        fast = T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
        all_cases[f"bpe {name}"] = cases(fast)
        if name == "llama-bpe":
            with tempfile.TemporaryDirectory() as temporary:
                fast.save_pretrained(temporary)
                config = T.LlamaConfig(vocab_size=432, architectures=["LlamaForCausalLM"])
                config.save_pretrained(temporary)
                path = Path(temporary) / "tokenizer_config.json"
                path.write_text(json.dumps(dict(json.loads(path.read_text()), add_bos_token=False)))
                convert(Path(temporary), OUT / "bpe.gguf", name)
    (OUT / "cases.json").write_text(json.dumps(all_cases, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
