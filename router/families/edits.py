"""Small edits of a short sentence, as a person would ask for them or show them."""

from __future__ import annotations

import random
from collections.abc import Callable

from router.families.letters import VOWELS
from router.families.procedure import Item, Make, collect, rule

WHO = ("the cat", "a child", "my uncle", "the nurse", "our guide", "a pilot", "the judge", "her boss")
DOES = ("sees", "wants", "paints", "finds", "likes", "carries", "draws", "sells")
WHAT = ("a red box", "two pens", "the old map", "some bread", "a small key", "three books", "the last cup")


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(WHO)} {rng.choice(DOES)} {rng.choice(WHAT)}"


def by_word(change: Callable[[list[str]], list[str]]) -> Make:
    return rule(sentence, lambda text: " ".join(change(text.split())))


def pig_latin(word: str) -> str:
    return f"{word}way" if word[0] in VOWELS else f"{word[1:]}{word[0]}ay"


def masked(rng: random.Random) -> Item:
    card = "".join(rng.choices("0123456789", k=8))
    return f"card {card[:4]} {card[4:]}", f"card #### {card[4:]}"


def tidy(rng: random.Random) -> Item:
    text = sentence(rng)
    loud = "".join(c.upper() if rng.random() < 0.4 else c for c in text)
    return loud, f"{text[0].upper()}{text[1:]}."


FAMILIES = collect(
    "edits",
    a_to_o=rule(sentence, lambda text: text.replace("a", "o")),
    shout_last=by_word(lambda w: [*w[:-1], w[-1].upper()]),
    swap_first=by_word(lambda w: [w[1], w[0], *w[2:]]),
    backwards=(by_word(lambda w: w[::-1]), "Write the words in reverse order."),
    drop_second=by_word(lambda w: [w[0], *w[2:]]),
    quote_verb=by_word(lambda w: [*w[:2], f'"{w[2]}"', *w[3:]]),
    dashes=by_word(lambda w: ["-".join(w)]),
    initials=by_word(lambda w: ["".join(x[0].upper() for x in w)]),
    title=(rule(sentence, str.title), "Write every word with a capital letter."),
    no_vowels=by_word(lambda w: [x[0] + "".join(c for c in x[1:] if c not in VOWELS) for x in w]),
    pig_latin=by_word(lambda w: [pig_latin(x) for x in w]),
    repeat_last=by_word(lambda w: [*w, w[-1]]),
    mask=masked,
    tidy=tidy,
)
