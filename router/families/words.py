"""What a language model may know of English and of the world: forms of words, opposites, capitals, numerals."""

from __future__ import annotations

import random
from collections.abc import Sequence

from router.families.arithmetic import spelled
from router.families.procedure import Item, Make, collect, rule

NOUNS = (
    *("cat", "dog", "box", "bus", "city", "baby", "leaf", "knife", "child", "foot", "tooth", "man", "woman"),
    *("mouse", "goose", "wife", "wolf", "party", "story", "watch", "dish", "church", "potato", "hero", "key"),
    *("boy", "toy", "lady", "fly", "glass", "class", "kiss", "fox", "tax", "car", "tree", "book", "shelf"),
    *(
        "half",
        "loaf",
        "thief",
        "calf",
        "country",
        "berry",
        "cherry",
        "bench",
        "beach",
        "brush",
        "bush",
        "wish",
    ),
    *("echo", "tomato", "photo", "piano", "roof", "chief", "cliff", "day", "way", "monkey", "ox", "sheep"),
    *("deer", "person", "lamp", "chair", "road", "house"),
)
PLURALS = {
    **{"leaf": "leaves", "knife": "knives", "child": "children", "foot": "feet", "tooth": "teeth"},
    **{"man": "men", "woman": "women", "mouse": "mice", "goose": "geese", "wife": "wives", "wolf": "wolves"},
    **{"shelf": "shelves", "half": "halves", "loaf": "loaves", "thief": "thieves", "calf": "calves"},
    **{"potato": "potatoes", "hero": "heroes", "echo": "echoes", "tomato": "tomatoes", "ox": "oxen"},
    **{"sheep": "sheep", "deer": "deer", "person": "people"},
}
VERBS = (
    *("go went", "see saw", "take took", "make made", "come came", "give gave", "find found", "tell told"),
    *("know knew", "think thought", "leave left", "feel felt", "bring brought", "begin began", "keep kept"),
    *(
        "hold held",
        "write wrote",
        "stand stood",
        "hear heard",
        "let let",
        "mean meant",
        "set set",
        "meet met",
    ),
    *("run ran", "pay paid", "sit sat", "speak spoke", "lie lay", "lead led", "read read", "grow grew"),
    *(
        "lose lost",
        "fall fell",
        "send sent",
        "build built",
        "win won",
        "break broke",
        "buy bought",
        "eat ate",
    ),
    *("walk walked", "play played", "call called", "move moved", "live lived", "look looked", "ask asked"),
    *(
        "talk talked",
        "wait waited",
        "jump jumped",
        "help helped",
        "open opened",
        "close closed",
        "stop stopped",
    ),
    *("plan planned", "carry carried", "try tried", "cry cried", "sing sang", "drink drank", "swim swam"),
    *("drive drove", "fly flew", "throw threw", "catch caught", "teach taught", "sleep slept"),
)
OPPOSITES = (
    *("hot cold", "big small", "up down", "fast slow", "old new", "good bad", "light dark", "high low"),
    *(
        "hard soft",
        "wet dry",
        "full empty",
        "rich poor",
        "happy sad",
        "early late",
        "open closed",
        "left right",
    ),
    *(
        "in out",
        "near far",
        "strong weak",
        "thick thin",
        "wide narrow",
        "long short",
        "loud quiet",
        "clean dirty",
    ),
    *(
        "true false",
        "first last",
        "always never",
        "day night",
        "love hate",
        "win lose",
        "push pull",
        "buy sell",
    ),
    *("begin end", "come go", "give take", "ask answer"),
)
CAPITALS = (
    *("France Paris", "Germany Berlin", "Italy Rome", "Spain Madrid", "Portugal Lisbon", "Austria Vienna"),
    *("Norway Oslo", "Sweden Stockholm", "Finland Helsinki", "Denmark Copenhagen", "Poland Warsaw"),
    *(
        "Hungary Budapest",
        "Greece Athens",
        "Ireland Dublin",
        "Belgium Brussels",
        "Russia Moscow",
        "Ukraine Kyiv",
    ),
    *("Turkey Ankara", "Egypt Cairo", "Kenya Nairobi", "Nigeria Abuja", "Ghana Accra", "Morocco Rabat"),
    *("Japan Tokyo", "China Beijing", "India Delhi", "Thailand Bangkok", "Vietnam Hanoi", "Iran Tehran"),
    *(
        "Iraq Baghdad",
        "Syria Damascus",
        "Israel Jerusalem",
        "Canada Ottawa",
        "Mexico Mexico City",
        "Cuba Havana",
    ),
    *(
        "Peru Lima",
        "Chile Santiago",
        "Brazil Brasilia",
        "Colombia Bogota",
        "Ecuador Quito",
        "Australia Canberra",
    ),
    *("Bulgaria Sofia", "Romania Bucharest", "Serbia Belgrade", "Croatia Zagreb", "Slovenia Ljubljana"),
    *("Slovakia Bratislava", "Latvia Riga", "Estonia Tallinn", "Lithuania Vilnius", "Iceland Reykjavik"),
    *("Switzerland Bern", "Netherlands Amsterdam", "Czechia Prague", "Albania Tirana", "Cyprus Nicosia"),
    *("Nepal Kathmandu", "Indonesia Jakarta", "Philippines Manila", "Malaysia Kuala Lumpur", "Qatar Doha"),
    *(
        "Lebanon Beirut",
        "Jordan Amman",
        "Tunisia Tunis",
        "Algeria Algiers",
        "Senegal Dakar",
        "Uganda Kampala",
    ),
)
ADJECTIVES = (
    *("tall", "big", "happy", "nice", "hot", "large", "easy", "thin", "old", "young", "cold", "warm", "dry"),
    *(
        "wide",
        "brave",
        "busy",
        "early",
        "fat",
        "sad",
        "wet",
        "late",
        "safe",
        "strong",
        "weak",
        "rich",
        "poor",
    ),
    *("heavy", "light", "angry", "clean", "dirty", "fast", "slow", "short", "long", "deep", "high", "low"),
    *(
        "kind",
        "loud",
        "noisy",
        "pretty",
        "quick",
        "quiet",
        "rude",
        "sharp",
        "simple",
        "sweet",
        "tiny",
        "ugly",
    ),
    *("wise", "funny", "lazy", "lucky", "hungry", "dark", "bright", "smart", "soft", "hard", "close", "new"),
)
ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
GERUND_DOUBLES = ("let", "set", "run", "sit", "win", "plan", "stop", "swim", "begin")


def plural(noun: str) -> str:
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def comparative(word: str) -> str:
    if word in ("big", "hot", "thin", "fat", "sad", "wet"):
        return f"{word}{word[-1]}er"
    if word.endswith("y"):
        return f"{word[:-1]}ier"
    return f"{word}r" if word.endswith("e") else f"{word}er"


def gerund(verb: str) -> str:
    if verb in GERUND_DOUBLES:
        return f"{verb}{verb[-1]}ing"
    if verb == "lie":
        return "lying"
    return f"{verb[:-1]}ing" if verb.endswith("e") and not verb.endswith("ee") else f"{verb}ing"


def roman(n: int) -> str:
    found = ""
    for value, sign in ROMAN:
        found += sign * (n // value)
        n %= value
    return found


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def known(pairs: Sequence[str]) -> Make:
    """`key value`; the value may hold spaces."""

    def make(rng: random.Random) -> Item:
        key, _, value = rng.choice(pairs).partition(" ")
        return key, value

    return make


def opposite(rng: random.Random) -> Item:
    pair = rng.choice(OPPOSITES).split()
    rng.shuffle(pair)
    return pair[0], pair[1]


def article(rng: random.Random) -> Item:
    word = rng.choice((*ADJECTIVES, "orange", "empty", "odd", "open", "ancient", "icy", "even"))
    noun = rng.choice(("box", "map", "house", "street", "animal", "door"))
    return f"{word} {noun}", f"{'an' if word[0] in 'aeiou' else 'a'} {word} {noun}"


FAMILIES = collect(
    "words",
    plural=rule(lambda rng: rng.choice(NOUNS), plural),
    past=(known(VERBS), "Write the verb in the past tense."),
    gerund=rule(lambda rng: rng.choice(VERBS).split()[0], gerund),
    comparative=rule(lambda rng: rng.choice(ADJECTIVES), comparative),
    opposite=(opposite, "What is the opposite?"),
    capital=known(CAPITALS),
    article=article,
    number_to_words=rule(lambda rng: rng.randint(1, 99), spelled),
    words_to_number=rule(lambda rng: rng.randint(1, 99), str, spelled),
    roman=rule(lambda rng: rng.randint(1, 399), roman),
    ordinal=rule(lambda rng: rng.randint(1, 400), ordinal),
)
