//! How texts are split before BPE, by the names that llama.cpp has for it (`llama-vocab.cpp`), with the expressions of the models' own
//! `tokenizer.json`.

use serde_json::{Value, json};

/// A way to split.
pub(super) struct Splits {
    /// Whether texts are composed (NFC) first.
    pub(super) composes: bool,
    /// Whether a part that is a token is that token, whatever merges there are.
    pub(super) ignores_merges: bool,
    kind: &'static Kind,
}

enum Kind {
    /// By expressions, one after the other, then to bytes.
    Expressions(&'static [&'static str]),
    /// GPT-2's.
    Gpt2,
    /// GPT-2's, with each digit apart.
    Digits,
    /// Falcon's: GPT-2's between punctuation, digits by threes.
    Falcon,
}

const LLAMA3: Kind = Kind::Expressions(&[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]);
const QWEN2: Kind = Kind::Expressions(&[
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]);
const TEKKEN: Kind = Kind::Expressions(&[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]);
const GPT4O: Kind = Kind::Expressions(&[
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]);
const BLOOM: Kind = Kind::Expressions(&[r" ?[^(\s|.,!?…。，、।۔،)]+"]);
/// llama.cpp's own, of files that were made before there were names.
const DEFAULT: Kind = Kind::Expressions(&[
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
]);

/// The names of each way.
const ALL: [(&[&str], Splits); 12] = [
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"], plain(&LLAMA3).ignoring_merges()),
    (&["glm4"], plain(&LLAMA3).ignoring_merges()),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], plain(&LLAMA3)),
    (&["qwen2"], plain(&QWEN2).composing()),
    (&["deepseek-r1-qwen", "stablelm2", "megrez"], plain(&QWEN2)),
    (&["tekken"], plain(&TEKKEN).ignoring_merges()),
    (&["gpt-4o"], plain(&GPT4O)),
    (&["gpt-2", "phi-2", "olmo", "mpt", "jais", "gigachat"], plain(&Kind::Gpt2)),
    (&["smollm", "starcoder", "refact", "codeshell", "minerva-7b"], plain(&Kind::Digits)),
    (&["falcon"], plain(&Kind::Falcon)),
    (&["bloom", "gpt3-finnish"], plain(&BLOOM)),
    (&["default"], plain(&DEFAULT)),
];
/// Those whose texts begin with a token of their own, if metadata say nothing of it.
const BEGIN: [&str; 6] = ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken"];

const fn plain(kind: &'static Kind) -> Splits {
    Splits { composes: false, ignores_merges: false, kind }
}

/// The way of a name.
pub(super) fn of(name: &str) -> Option<&'static Splits> {
    ALL.iter().find(|(names, _)| names.contains(&name)).map(|(_, splits)| splits)
}

/// All names.
pub(super) fn names() -> Vec<&'static str> {
    ALL.iter().flat_map(|(names, _)| names.iter().copied()).collect()
}

/// Whether texts begin with a token of their own.
pub(super) fn begins(name: &str) -> bool {
    BEGIN.contains(&name)
}

impl Splits {
    const fn composing(self) -> Self {
        Self { composes: true, ..self }
    }

    const fn ignoring_merges(self) -> Self {
        Self { ignores_merges: true, ..self }
    }

    /// As `tokenizer.json` has it.
    pub(super) fn json(&self) -> Value {
        let to_bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = |expression: &str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let parts = match self.kind {
            Kind::Gpt2 => return to_bytes(true),
            Kind::Expressions(all) => all.iter().map(|one| split(one)).chain([to_bytes(false)]).collect(),
            Kind::Digits => vec![json!({"type": "Digits", "individual_digits": true}), to_bytes(true)],
            Kind::Falcon => vec![
                json!({"type": "Punctuation", "behavior": "Contiguous"}),
                to_bytes(true),
                json!({"type": "Digits", "individual_digits": false}),
                split("[0-9][0-9][0-9]"),
            ],
        };
        json!({"type": "Sequence", "pretokenizers": parts})
    }
}
