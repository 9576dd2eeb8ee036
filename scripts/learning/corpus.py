"""The text that the base model of scripts/bench-learning is trained on: sentences of SST-2 without their labels, and English of Debian packages.

Nothing of Shakespeare is in it: what a base learns of his style by tuning it cannot have known. Exercises run through all of it, because a
small model that saw a few million tokens does not look further back than a few words on its own, and then has nothing that a head could classify:
`words:` asks for the rare words of the text before it, `again:` for one of its sentences, and `mood:` whether it is a friendly one. What large
models know of moods they have from texts that people gave stars; this one has it from VADER, a lexicon with rules (Hutto and Gilbert, 2014),
whose word on a sentence of SST-2 agrees with that data set's label in two of three cases. Lists of words that come twice teach it to copy."""

import gzip
import html
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

PACKAGES = ["anarchism", "wordnet-base", "fortunes", "debian-handbook", "jargon-text"]
SHAKESPEARE = re.compile(r"shakespeare|shak\.", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
WORDS, AGAIN, MOOD = "\nwords:", "\nagain:", "\nmood:"
# From how friendly a text is, between -1 and 1, to a word.
MOODS = [(0.5, " great"), (0.05, " good"), (-0.05, " plain"), (-0.5, " bad"), (-1.0, " awful")]


def unpack(folder):
    """Downloads and unpacks the packages, without installing them."""
    root = folder / "packages"
    if not (root / "done").exists():
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for package in root.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        (root / "done").touch()
    return root / "usr/share"


def vader(folder):
    """The analyser of the package vaderSentiment."""
    target = folder / "vader"
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, "vaderSentiment==3.3.2"]
        subprocess.run(command, check=True)
    sys.path.insert(0, str(target))
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def paragraphs(text):
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if len(part.split()) > 8]


def of_html(path):
    text = path.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"(?is)<(script|style|pre|head)\b.*?</\1>", " ", text)
    text = re.sub(r"(?i)</?(p|div|li|ul|ol|h[1-6]|td|tr|blockquote|br)\b[^>]*>", "\n\n", text)
    return paragraphs(html.unescape(re.sub(r"<[^>]+>", " ", text)))


def wordnet(folder):
    """One line a meaning: its words, its gloss and its examples."""
    lines = []
    for name in ["data.adj", "data.adv", "data.verb"]:
        for line in (folder / name).read_text(encoding="latin-1").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, gloss = line.split("|", 1)
            fields = fields.split()
            words = [fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(int(fields[3], 16))]
            lines.append(f"{', '.join(words)}: {gloss.strip()}")
    return lines


def documents(folder, sst2):
    """Lists of paragraphs by source."""
    share = unpack(folder)
    fortunes = []
    for path in sorted((share / "games/fortunes").iterdir()):
        if path.suffix == "" and "art" not in path.name and not path.is_symlink():
            fortunes += [" ".join(text.split()) for text in path.read_text(encoding="utf-8", errors="replace").split("\n%\n")]
    prose = [of_html(path) for path in sorted((share / "doc/anarchism/html").glob("*.html"))]
    prose += [of_html(path) for path in sorted((share / "doc/debian-handbook/html/en-US").glob("*.html"))]
    prose.append(paragraphs(gzip.open(share / "doc/jargon-text/jargon.txt.gz", "rt", encoding="utf-8", errors="replace").read()))
    reviews = [json.loads(line)["text"] for line in (sst2 / "train.jsonl").open()]
    known = {"reviews": reviews, "short": [text for text in fortunes + wordnet(share / "wordnet") if not SHAKESPEARE.search(text)]}
    known["prose"] = [[text for text in document if not SHAKESPEARE.search(text)] for document in prose]
    return known


class Exercises:
    """Documents of the corpus in an order drawn by `seed`, with their exercises; `analyser` knows moods."""

    def __init__(self, sources, analyser, seed=0):
        self.sources = sources
        self.analyser, self.moods = analyser, {}
        self.random = random.Random(seed)
        counted = Counter()
        for text in sources["reviews"] + sources["short"] + [part for document in sources["prose"] for part in document]:
            counted.update(set(WORD.findall(text)))
        self.rarity = {word: -math.log(count) for word, count in counted.items()}
        self.vocabulary = sorted(counted)
        self.weights = [len(part) for part in sources["prose"]]
        self.friendly = [word for word in analyser.lexicon if WORD.fullmatch(word)]

    def words(self, text, most=6):
        """The rarest words of a text, in any order."""
        found = sorted(set(WORD.findall(text)), key=lambda word: -self.rarity.get(word, 0))
        found = [word for word in found if len(word) > 2][:most]
        self.random.shuffle(found)
        return WORDS + "".join(f" {word}" for word in found)

    def mood(self, text):
        if text not in self.moods:
            friendly = self.analyser.polarity_scores(text)["compound"]
            self.moods[text] = next(word for least, word in MOODS if friendly >= least)
        return MOOD + self.moods[text]

    def again(self, sentences):
        return f"{AGAIN} {self.random.choice(sentences)}"

    def copies(self, most):
        """Words in no order, twice or three times."""
        words = " ".join(self.random.choices(self.vocabulary, k=self.random.randint(4, most)))
        return "\n".join([words] * self.random.randint(2, 3))

    def short(self):
        """One text of a few sentences."""
        draw = self.random.random()
        if draw < 0.06:
            return self.copies(30)
        if draw < 0.1:
            return "\n".join(word + self.mood(word) for word in self.random.choices(self.friendly, k=6))
        if draw < 0.4:
            text = self.random.choice(self.sources["reviews"])
            exercises = [self.words, self.mood]
            self.random.shuffle(exercises)
            return text + "".join(exercise(text) for exercise in exercises[: self.random.randint(1, 2)])
        if draw < 0.55:
            text = self.random.choice(self.sources["short"])
        else:
            document = self.random.choices(self.sources["prose"], weights=self.weights)[0]
            start = self.random.randrange(max(1, len(document)))
            text = "\n".join(document[start : start + 3])
        draw = self.random.random()
        if draw < 0.2:
            return text + self.words(text)
        if draw < 0.35:
            return text + self.mood(text)
        return text + self.again(SENTENCE.split(text)) if draw < 0.55 else text

    def long(self, tokens, count):
        """A text of about `tokens` tokens, and sentences of it again and again; `count` counts tokens."""
        if self.random.random() < 0.1:
            return self.copies(tokens // 8)
        documents = [document for document in self.sources["prose"] if len(document) > 40]
        document = self.random.choice(documents)
        start = self.random.randrange(len(document) - 30)
        size, parts = int(tokens * self.random.uniform(0.3, 0.9)), []
        for part in document[start:]:
            parts.append(part)
            size -= count(part)
            if size < 0:
                break
        text = "\n".join(parts)
        sentences = [sentence for sentence in SENTENCE.split(text) if 5 < len(sentence.split()) < 60] or [text[:200]]
        return text + "".join(self.again(sentences) for _ in range(40))
