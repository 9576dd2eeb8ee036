"""Reviews: one or two opinions on one thing, always of one mind, with negation and intensifiers."""

from random import Random

NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Laura", "Max", "Nora",
         "Oscar"]

# thing -> (its parts, adjectives that praise, adjectives that blame)
THINGS = {
    "film": (["plot", "ending", "music", "acting", "dialogue", "first half"],
             "moving clever gripping funny charming fresh bold".split(),
             "dull silly predictable clumsy tedious lifeless confusing".split()),
    "restaurant": (["soup", "fish", "bread", "service", "dessert", "coffee", "pasta"],
                   "delicious fresh tasty superb warm generous perfect".split(),
                   "cold bland stale greasy awful burnt salty".split()),
    "phone": (["screen", "battery", "camera", "sound", "case", "keyboard"],
              "bright reliable sharp fast sturdy elegant smooth".split(),
              "dim broken blurry slow fragile cheap noisy".split()),
    "book": (["story", "hero", "style", "last chapter", "humour", "beginning"],
             "gripping clever witty moving honest vivid charming".split(),
             "dull flat tedious confusing shallow clumsy predictable".split()),
    "hotel": (["room", "bed", "breakfast", "view", "garden", "bathroom", "staff"],
              "lovely clean quiet friendly comfortable spotless warm".split(),
              "dirty noisy rude cold smelly dark cramped".split()),
    "lamp": (["light", "switch", "base", "colour", "cable", "design"],
             "bright sturdy elegant handy lovely solid useful".split(),
             "ugly fragile dim useless broken flimsy cheap".split()),
}
STRONG = ["very", "really", "truly", "quite", "so"]
PRAISE = ["I loved it", "I enjoyed every minute", "I would buy it again", "it made me happy", "it was worth the money",
          "we will come back soon", "my friends liked it too", "it was a pleasure", "I recommend it to everyone",
          "we smiled all evening"]
BLAME = ["I hated it", "I regret every minute", "I want my money back", "it made me angry", "it was a waste of money",
         "we will never come back", "my friends disliked it too", "it was a disappointment", "I warn everyone about it",
         "we were bored all evening"]
STARS = {True: ["Four stars", "Five stars"], False: ["One star", "Two stars"]}


def opinion(rng: Random, thing: str, positive: bool) -> str:
    """A clause such as "the soup was not bland" on a part of the thing."""
    parts, good, bad = THINGS[thing]
    part = rng.choice(parts)
    likes, dislikes = (good, bad) if positive else (bad, good)
    shape = rng.randrange(8)
    if shape == 0:
        return f"the {part} was not {rng.choice(dislikes)} at all"
    if shape == 1:
        return f"the {part} was never {rng.choice(dislikes)}"
    if shape < 4:
        first, second = rng.sample(likes, 2)
        return f"the {part} was {first} and {second}"
    if shape < 6:
        return f"the {part} was {rng.choice(STRONG)} {rng.choice(likes)}"
    return f"the {part} seemed {rng.choice(likes)} to {rng.choice(['me', 'us', 'everyone'])}"


def review(rng: Random, positive: bool, stars: bool = False) -> str:
    """A review, with `stars` closed by a verdict in stars (which the classification data must not have)."""
    thing = rng.choice(sorted(THINGS))
    verdict = rng.choice(PRAISE if positive else BLAME)
    first = opinion(rng, thing, positive)
    lead = rng.choice([f"In this {thing} {first}", f"{first}".capitalize(), f"{rng.choice(NAMES)} said {first}",
                       f"A {thing} where {first}", f"We tried this {thing} and {first}"])
    shape = rng.randrange(5)
    if shape == 0:
        text = f"{lead}."
    elif shape == 1:
        text = f"{lead}, and {verdict}."
    elif shape == 2:
        text = f"{lead}. {verdict[0].upper()}{verdict[1:]}."
    else:
        text = f"{lead}, and {opinion(rng, thing, positive)}."
    return f"{text} {rng.choice(STARS[positive])} out of five." if stars else text
