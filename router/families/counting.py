"""How many, which most, odd or even: answers that need every symbol of the input."""

from __future__ import annotations

import random
from collections import Counter
from itertools import groupby

from router.families.letters import VOWELS, row
from router.families.procedure import Make, collect, rule, spaced

NOUNS = ("cat", "dog", "hat", "box", "cup", "pen", "key", "map", "sun", "car", "bee", "fox", "jar", "log")


def symbols(alphabet: str, least: int, most: int) -> Make:
    """The symbol that is there most often; ties are drawn again."""

    def draw(rng: random.Random) -> list[str]:
        while True:
            drawn = row(least, most, alphabet)(rng)
            (_, first), *rest = Counter(drawn).most_common(2)
            if not rest or first > rest[0][1]:
                return drawn

    return rule(draw, lambda found: Counter(found).most_common(1)[0][0], spaced)


def words(rng: random.Random) -> list[str]:
    return rng.choices(NOUNS, k=rng.randint(2, 9))


def longest_run(found: list[str]) -> str:
    return str(max(len(list(run)) for _, run in groupby(found)))


def place(rng: random.Random) -> tuple[str, str]:
    n = rng.randint(5, 9)
    at = rng.randrange(n)
    rest = rng.choices("abcdefgh", k=n)
    return spaced([*rest[:at], "x", *rest[at + 1 :]]), str(at + 1)


def differing(rng: random.Random) -> tuple[str, str]:
    first, second = (rng.choices("ab", k=6) for _ in range(2))
    return f"{''.join(first)} {''.join(second)}", str(sum(a != b for a, b in zip(first, second, strict=True)))


def of_letter(rng: random.Random) -> tuple[str, str]:
    drawn = rng.choices("abcd", k=rng.randint(5, 9))
    wanted = rng.choice("abcd")
    return f"{wanted} in {''.join(drawn)}", str(drawn.count(wanted))


FAMILIES = collect(
    "counting",
    letter_a=rule(row(5, 9, "abc"), lambda s: str(s.count("a")), spaced),
    of_letter=(of_letter, "How often is the letter there?"),
    words=(rule(words, lambda w: str(len(w)), spaced), "How many words?"),
    vowels=rule(row(4, 8), lambda s: str(sum(c in VOWELS for c in s)), "".join),
    parity=rule(row(6, 9, "01"), lambda s: "odd" if s.count("1") % 2 else "even", spaced),
    majority=symbols("01", 7, 9),
    commonest=symbols("abcd", 7, 10),
    longest_run=rule(row(7, 10, "xo"), longest_run, spaced),
    distinct=rule(row(5, 8, "abcdef"), lambda s: str(len(set(s))), spaced),
    length=rule(row(2, 12), lambda s: str(len(s)), "".join),
    place=place,
    differing=differing,
)
