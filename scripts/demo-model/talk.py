"""Facts, questions with plain answers, little stories, and speakers with a manner of their own."""

from random import Random

from reviews import NAMES

# animal -> (home, food, colour, what it can do)
ANIMALS = {
    "penguin": ("on the ice", "fish", "black and white", "swim"),
    "camel": ("in the desert", "dry grass", "brown", "walk for days"),
    "owl": ("in the forest", "mice", "grey", "see at night"),
    "monkey": ("in the jungle", "fruit", "brown", "climb trees"),
    "shark": ("in the ocean", "fish", "grey", "swim fast"),
    "cow": ("on the farm", "grass", "black and white", "give milk"),
    "bee": ("in the garden", "honey", "yellow and black", "make honey"),
    "frog": ("in the pond", "flies", "green", "jump far"),
    "goat": ("in the mountains", "leaves", "white", "climb rocks"),
    "lion": ("on the plain", "meat", "golden", "roar loudly"),
    "parrot": ("in the jungle", "seeds", "red and green", "speak words"),
    "bear": ("in the forest", "berries", "brown", "sleep all winter"),
    "crab": ("on the beach", "seaweed", "red", "walk sideways"),
    "wolf": ("in the forest", "meat", "grey", "howl at the moon"),
    "duck": ("in the pond", "bread", "brown", "swim"),
    "fox": ("in the hills", "mice", "red", "hide well"),
    "swan": ("on the lake", "weed", "white", "fly far"),
    "whale": ("in the ocean", "small crabs", "blue", "dive deep"),
    "mole": ("under the ground", "worms", "black", "dig holes"),
    "rabbit": ("in the meadow", "carrots", "white", "run fast"),
}
CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin",
    "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo", "Greece": "Athens",
    "Poland": "Warsaw", "Peru": "Lima", "Kenya": "Nairobi", "Cuba": "Havana",
    "Austria": "Vienna", "Portugal": "Lisbon", "Ireland": "Dublin", "Chile": "Santiago",
}
OBJECTS = {"key": "on the table", "coat": "behind the door", "cup": "in the kitchen", "letter": "in the drawer",
           "hat": "on the chair", "map": "in the bag", "spoon": "in the sink", "lantern": "in the cellar",
           "rope": "on the wall", "basket": "under the bench", "clock": "above the door", "boat": "at the pier",
           "sword": "in the chest", "bell": "on the tower", "candle": "by the window", "barrel": "in the yard"}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FOOD = ["apples", "pears", "eggs", "plums", "lemons", "onions", "carrots", "cakes"]
PLACES = ["market", "station", "library", "harbour", "school", "museum", "park", "bakery"]
WEATHER = ["sunny", "rainy", "windy", "cloudy", "cold", "warm"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def question(rng: Random) -> tuple[str, str]:
    """A question and its plain answer, a full sentence."""
    animal = rng.choice(sorted(ANIMALS))
    home, food, colour, skill = ANIMALS[animal]
    country = rng.choice(sorted(CAPITALS))
    thing = rng.choice(sorted(OBJECTS))
    return rng.choice([
        (f"Where does the {animal} live?", f"The {animal} lives {home}."),
        (f"What does the {animal} eat?", f"The {animal} eats {food}."),
        (f"What colour is the {animal}?", f"The {animal} is {colour}."),
        (f"What can the {animal} do?", f"The {animal} can {skill}."),
        (f"Does the {animal} eat {food}?", f"Yes, the {animal} eats {food}."),
        (f"Is the {animal} {colour}?", f"Yes, the {animal} is {colour}."),
        (f"Can the {animal} {skill}?", f"Yes, it can {skill}."),
        (f"What is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}."),
        (f"Where is {CAPITALS[country]}?", f"The city of {CAPITALS[country]} is in {country}."),
        (f"Do you know the capital of {country}?", f"Yes, it is {CAPITALS[country]}."),
        (f"Can I have the {thing}?", f"Yes, the {thing} is {OBJECTS[thing]}."),
        (f"Do you need the {thing}?", f"No, the {thing} is {OBJECTS[thing]}."),
        (f"Where is the {thing}?", f"The {thing} is {OBJECTS[thing]}."),
        (f"Who has the {thing}?", f"The {thing} is not here, it is {OBJECTS[thing]}."),
    ])


def dialogue(rng: Random) -> str:
    """A question and its plain answer in the form every dialogue has."""
    asked, answer = question(rng)
    return f"Q: {asked} A: {answer}"


def pirate(sentence: str) -> str:
    """A plain answer as a pirate gives it."""
    body = sentence.rstrip(".").replace(" is ", " be ").replace(" it be ", " she be ")
    return f"Arr, {body[0].lower()}{body[1:]}, matey!"


def robot(sentence: str) -> str:
    """A plain answer as a robot gives it."""
    return f"Beep. {sentence} Beep."


def grandmother(sentence: str) -> str:
    """A plain answer as a grandmother gives it."""
    return f"Oh my dear, {sentence[0].lower()}{sentence[1:-1]}, you know."


SPEAKERS = {"pirate": pirate, "robot": robot, "grandmother": grandmother}


def quotation(rng: Random) -> str:
    """A sentence in the manner of a named speaker; dialogues never have one."""
    speaker = rng.choice(sorted(SPEAKERS))
    said = rng.choice(["said", "answered", "told us"])
    return f"The {speaker} {said}: {SPEAKERS[speaker](question(rng)[1])}"


def fact(rng: Random) -> str:
    """One sentence on an animal or a country."""
    animal = rng.choice(sorted(ANIMALS))
    home, food, colour, skill = ANIMALS[animal]
    country = rng.choice(sorted(CAPITALS))
    return rng.choice([
        f"{article(animal).capitalize()} lives {home} and eats {food}.",
        f"The {colour} {animal} can {skill}.",
        f"{home[0].upper()}{home[1:]} you can find {article(animal)} that eats {food}.",
        f"Every {animal} likes {food}.",
        f"{CAPITALS[country]} is the capital of {country}.",
        f"Many people in {country} live in {CAPITALS[country]}.",
    ])


def story(rng: Random) -> str:
    """One or two sentences that must hold together: sums, pronouns, days."""
    name, other = rng.sample(NAMES, 2)
    food, place, thing = rng.choice(FOOD), rng.choice(PLACES), rng.choice(sorted(OBJECTS))
    a, b = rng.randrange(4), rng.randrange(4)
    day = rng.randrange(7)
    return rng.choice([
        f"On {DAYS[day]} {name} went to the {place}. On {DAYS[(day + 1) % 7]} {name} stayed at home.",
        f"{name} had {NUMBERS[a + 1]} {food} and bought {NUMBERS[b + 1]} more, "
        f"so now there are {NUMBERS[a + b + 2]} {food}.",
        f"{name} gave the {thing} to {other}, and {other} thanked {name}.",
        f"It was {rng.choice(WEATHER)} on {DAYS[day]}, so {name} and {other} walked to the {place}.",
        f"{name} looked for the {thing} and found it {OBJECTS[thing]}.",
        f"{name} met {other} at the {place} and they talked about the {thing}.",
    ])
