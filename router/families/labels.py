"""Short messages and their labels: real words, swapped words, and words that mean nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from router.families.procedure import Item, Make, collect

TOPICS: Mapping[str, Sequence[str]] = {
    "sport": ("the match", "a goal", "the coach", "our team", "the race", "tennis"),
    "food": ("the soup", "fresh bread", "a recipe", "the pasta", "cheese", "dinner"),
    "music": ("the song", "a concert", "the piano", "the band", "a melody", "the choir"),
    "weather": ("the rain", "a storm", "the wind", "snow", "the heat", "thick fog"),
}
TALK = (
    *("We spoke about {} {}.", "{} was on our minds {}.", "I read about {} {}.", "He wrote to me of {} {}."),
    *("Tell me about {} {}.", "They thought of {} {}.", "Nobody mentioned {} {}.", "She dreamt of {} {}."),
)
WHEN = (
    *(
        "today",
        "last week",
        "in May",
        "at noon",
        "on Sunday",
        "all day",
        "this year",
        "once",
        "again",
        "then",
    ),
)
GOOD = ("wonderful", "lovely", "excellent", "delightful", "great", "charming", "superb", "brilliant")
BAD = ("awful", "boring", "terrible", "dreadful", "poor", "annoying", "horrible", "dull")
THINGS = ("film", "hotel", "book", "meal", "trip", "show", "phone", "game", "shop", "tour", "class", "play")
VIEWS = ("The {0} was {1}.", "What {2} {1} {0}!", "I found the {0} {1}.", "It was {2} {1} {0}.")
ANIMALS = ("horse", "tiger", "goat", "eagle", "rabbit", "whale", "mouse", "camel", "otter", "snake")
TOOLS = ("hammer", "saw", "drill", "ladder", "spanner", "shovel", "chisel", "pliers", "axe", "file")
PLANTS = ("oak", "fern", "rose", "tulip", "pine", "moss", "ivy", "birch", "daisy", "maple")
COLOURS = ("red", "blue", "green", "white", "black", "brown")
PROBLEMS = {
    "high": ("the server is down", "nobody can pay", "data was lost", "smoke in the hall"),
    "medium": ("the report is slow", "a page looks odd", "one printer fails", "mail comes late"),
    "low": ("a typo on a page", "please change a colour", "a question on holidays", "the logo is small"),
}
PLACES = ("Berlin", "Lyon", "Oslo", "Rome", "Porto", "Vienna", "Dublin", "Prague", "Milan", "Athens")


def message(rng: random.Random, topics: Mapping[str, Sequence[str]] = TOPICS) -> tuple[str, str]:
    """A sentence, and its topic."""
    topic = rng.choice(list(topics))
    text = rng.choice(TALK).format(rng.choice(topics[topic]), rng.choice(WHEN))
    return text[0].upper() + text[1:], topic


def view(rng: random.Random) -> tuple[str, bool]:
    """An opinion, and whether it is a good one."""
    good = rng.random() < 0.5
    word = rng.choice(GOOD if good else BAD)
    article = "an" if word[0] in "aeiou" else "a"
    return rng.choice(VIEWS).format(rng.choice(THINGS), word, article), good


def topic(names: Mapping[str, str] | None = None) -> Make:
    def make(rng: random.Random) -> Item:
        text, found = message(rng)
        return text, names[found] if names else found

    return make


def opinion(good: str, bad: str) -> Make:
    def make(rng: random.Random) -> Item:
        text, is_good = view(rng)
        return text, good if is_good else bad

    return make


def keyword(labels: Mapping[str, Sequence[str]]) -> Make:
    """A list of shop wares with a colour; the label hangs on the ware's kind."""

    def make(rng: random.Random) -> Item:
        label = rng.choice(list(labels))
        return f"{rng.choice(COLOURS)} {rng.choice(labels[label])}, {rng.choice(PLACES)}", label

    return make


def judged(judge: Callable[[str], str], draw: Callable[[random.Random], str]) -> Make:
    """The label is a function of the text alone."""

    def make(rng: random.Random) -> Item:
        text = draw(rng)
        return text, judge(text)

    return make


def urgency(rng: random.Random) -> Item:
    level = rng.choice(list(PROBLEMS))
    return f"{rng.choice(PLACES)}: {rng.choice(PROBLEMS[level])} {rng.choice(WHEN)}", level


def asked(rng: random.Random) -> Item:
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    if rng.random() < 0.5:
        return f"{rng.choice(('Is', 'Was'))} the {thing} in {place} {rng.choice(GOOD + BAD)}?", "question"
    return f"The {thing} in {place} {rng.choice(('is', 'was'))} {rng.choice(GOOD + BAD)}.", "statement"


def denied(rng: random.Random) -> Item:
    thing, place, word = rng.choice(THINGS), rng.choice(PLACES), rng.choice(GOOD + BAD)
    if rng.random() < 0.5:
        return f"The {thing} in {place} was not {word}.", "negated"
    return f"The {thing} in {place} was {word}.", "plain"


def tense(rng: random.Random) -> Item:
    which = rng.choice(("past", "present", "future"))
    verb = {"past": "visited", "present": "visits", "future": "will visit"}[which]
    who, place = rng.choice(("She", "He", "Anna", "Tom", "My aunt", "The clerk")), rng.choice(PLACES)
    return f"{who} {verb} {place} for the {rng.choice(THINGS)}.", which


def order(rng: random.Random) -> Item:
    n = rng.randint(2, 29)
    return f"{n} {rng.choice(TOOLS)}s to {rng.choice(PLACES)}", "bulk" if n >= 12 else "parcel"


def text_of(rng: random.Random) -> str:
    return message(rng)[0]


FAMILIES = collect(
    "labels",
    topic=topic(),
    topic_nonsense=topic({"sport": "blip", "food": "dax", "music": "wug", "weather": "zorp"}),
    topic_wrong=topic({"sport": "music", "food": "weather", "music": "food", "weather": "sport"}),
    opinion=(opinion("positive", "negative"), "Is it positive or negative?"),
    opinion_swapped=opinion("negative", "positive"),
    opinion_digits=opinion("7", "3"),
    kinds=keyword({"animal": ANIMALS, "tool": TOOLS, "plant": PLANTS}),
    kinds_nonsense=keyword({"foo": ANIMALS, "bar": TOOLS, "baz": PLANTS}),
    urgency=urgency,
    question=asked,
    negation=denied,
    tense=tense,
    bulk=order,
    first_letter=judged(lambda text: "early" if text[0].lower() < "n" else "late", text_of),
    word_count=judged(lambda text: "odd" if len(text.split()) % 2 else "even", text_of),
)
