"""The demo's task families, generated here so that the demo needs no download beyond the model.

A family is a function (rng, n) → n items with distinct inputs. Some are puzzles on a row of cells, some
are everyday rewriting; `lottery` and `recolour` can't be learned from any number of demonstrations, so
there training is wasted. All are short: a training on two slow cores takes well under a minute.
Knows nothing of models, arms or prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count

from router.errors import RouterError
from ttt.task import Demonstration, Task

Item = tuple[str, str]
"""Input and right output."""

CELLS = 10
"""Length of a puzzle's row."""
DATES = (date(1990, 1, 1), date(2029, 12, 31))
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
LEVELS = ("ERROR", "WARN", "INFO")
SERVICES = ("auth", "billing", "search", "cart", "mail", "cache", "login", "report")
EVENTS = ("timed out", "failed", "restarted", "is slow", "was refused")
TOPICS = (
    ("Invoice overdue", "FIN"),
    ("App keeps crashing", "TEC"),
    ("Parcel is late", "LOG"),
    ("Refund missing", "FIN"),
    ("Screen stays black", "TEC"),
    ("Box was damaged", "LOG"),
)
CALLERS = (("customer", "2"), ("supplier", "1"))
CITIES = (
    *("Lyon", "Paris", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Lisbon", "Prague"),
    *("Milan", "Geneva", "Athens", "Warsaw", "Zurich", "Brussels", "Hamburg", "Porto", "Turin", "Nice"),
)
UNITS = (("kg", "g"), ("km", "m"), ("l", "ml"))
PRIZES = ("red", "blue", "green", "gold")


def fill(rng: random.Random, n: int) -> list[Item]:
    """The cells between two markers take their colour."""

    def make(_: int) -> Item:
        first = rng.randrange(CELLS - 3)
        last = rng.randrange(first + 2, min(first + 7, CELLS))
        colour = rng.choice("123456789")
        row, filled = ["0"] * CELLS, ["0"] * CELLS
        row[first] = row[last] = colour
        filled[first : last + 1] = [colour] * (last + 1 - first)
        return " ".join(row), " ".join(filled)

    return _distinct(n, make)


def shift(rng: random.Random, n: int) -> list[Item]:
    """A block moves right by one cell."""

    def make(_: int) -> Item:
        length = rng.randint(2, 5)
        start = rng.randrange(CELLS - length)
        colour = rng.choice("123456789")
        return _block(start, colour * length), _block(start + 1, colour * length)

    return _distinct(n, make)


def denoise(rng: random.Random, n: int) -> list[Item]:
    """Lone cells beside a block disappear."""

    def make(_: int) -> Item:
        length = rng.randint(3, 5)
        start = rng.randrange(CELLS - length + 1)
        colour = rng.choice("123456789")
        clean = _block(start, colour * length)
        noisy = clean.split(" ")
        free = [i for i in range(CELLS) if not start - 1 <= i <= start + length]
        for i in rng.sample(free, k=min(len(free), 2)):
            if all(noisy[j] == "0" for j in (i - 1, i + 1) if 0 <= j < CELLS):
                noisy[i] = colour
        return " ".join(noisy), clean

    return _distinct(n, make)


def mirror(rng: random.Random, n: int) -> list[Item]:
    """A block of different colours is reversed where it stands."""

    def make(_: int) -> Item:
        length = rng.randint(3, 4)
        start = rng.randrange(CELLS - length + 1)
        colours = "".join(rng.sample("123456789", k=length))
        return _block(start, colours), _block(start, colours[::-1])

    return _distinct(n, make)


def recolour(rng: random.Random, n: int) -> list[Item]:
    """A block takes another colour, drawn anew for each item: nobody can know which."""

    def make(_: int) -> Item:
        length = rng.randint(2, 5)
        start = rng.randrange(CELLS - length + 1)
        before, after = rng.sample("123456789", k=2)
        return _block(start, before * length), _block(start, after * length)

    return _distinct(n, make)


def dates(rng: random.Random, n: int) -> list[Item]:
    """A date in one of two written forms → ISO 8601."""
    days = (DATES[1] - DATES[0]).days

    def make(i: int) -> Item:
        day = DATES[0] + timedelta(rng.randrange(days + 1))
        month = MONTHS[day.month - 1]
        written = f"{month} {day.day}, {day.year}" if i % 2 else f"{day.day} {month} {day.year}"
        return written, day.isoformat()

    return _distinct(n, make)


def log_fields(rng: random.Random, n: int) -> list[Item]:
    """A log line → level|service|code."""

    def make(i: int) -> Item:
        level, service = LEVELS[i % len(LEVELS)], rng.choice(SERVICES)
        code = rng.randint(100, 599)
        return f"[{service}] {level} {code} call {rng.choice(EVENTS)}", f"{level}|{service}|{code}"

    return _distinct(n, make)


def house_code(rng: random.Random, n: int) -> list[Item]:
    """A message → department, first three letters of the city, kind of caller."""

    def make(i: int) -> Item:
        (topic, department), (caller, rank) = TOPICS[i % len(TOPICS)], rng.choice(CALLERS)
        city = rng.choice(CITIES)
        return f"{topic}, {caller} in {city}", f"{department}-{city[:3].upper()}-{rank}"

    return _distinct(n, make)


def units(rng: random.Random, n: int) -> list[Item]:
    """A quantity in two units → in the smaller one; every fourth needs a zero in between."""

    def make(i: int) -> Item:
        large, small = UNITS[i % len(UNITS)]
        whole, rest = rng.randint(1, 9), rng.randint(10, 99) if i % 4 == 3 else rng.randint(100, 999)
        return f"{whole} {large} {rest} {small}", f"{whole * 1000 + rest} {small}"

    return _distinct(n, make)


def lottery(rng: random.Random, n: int) -> list[Item]:
    """A ticket's number → its prize, drawn by lot: there is no rule to learn."""

    def make(_: int) -> Item:
        return f"Ticket {rng.randint(10000, 99999)}", rng.choice(PRIZES)

    return _distinct(n, make)


Family = Callable[[random.Random, int], list[Item]]

FAMILIES: dict[str, Family] = {
    "fill": fill,
    "shift": shift,
    "denoise": denoise,
    "mirror": mirror,
    "recolour": recolour,
    "dates": dates,
    "log-fields": log_fields,
    "house-code": house_code,
    "units": units,
    "lottery": lottery,
}
DEFAULT_FAMILIES = ("fill", "shift", "denoise", "dates", "log-fields", "house-code", "units", "lottery")
"""What the demo asks unless told otherwise, in this order."""


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One family's demonstrations, and queries that they do not contain."""

    family: str
    summary: str
    """The rule, in a sentence for people; no model sees it."""
    task: Task
    queries: tuple[str, ...]
    gold: tuple[str, ...]
    """Right answers to `queries`; for judging only."""


def demo_task(name: str, n_demonstrations: int, n_queries: int, seed: int) -> DemoTask:
    """The same task for the same arguments, whatever other families are asked.

    Families with several kinds of items take turns through them, so the demonstrations show all kinds;
    their order is random.

    Raises:
        RouterError: unknown family, or a number that is not positive or beyond what the family has.
    """
    if name not in FAMILIES:
        raise RouterError(f"There is no demo family {name!r}; choose from: {', '.join(FAMILIES)}.")
    if n_demonstrations < 1 or n_queries < 1:
        raise RouterError(
            f"{n_demonstrations} demonstrations and {n_queries} queries make no demo; give at least one of each."
        )
    rng = random.Random(f"{name}-{seed}")
    items = FAMILIES[name](rng, n_demonstrations + n_queries)
    shown, asked = items[:n_demonstrations], items[n_demonstrations:]
    rng.shuffle(shown)
    rng.shuffle(asked)
    task = Task(tuple(Demonstration(x, y) for x, y in shown), name=name)
    summary = (FAMILIES[name].__doc__ or "").strip()
    return DemoTask(name, summary, task, tuple(x for x, _ in asked), tuple(y for _, y in asked))


def _block(start: int, colours: Sequence[str]) -> str:
    """A row of `CELLS` cells, `colours` from `start` on and 0 elsewhere."""
    return " ".join(["0"] * start + list(colours) + ["0"] * (CELLS - start - len(colours)))


def _distinct(n: int, make: Callable[[int], Item]) -> list[Item]:
    """`n` items with distinct inputs; `make` is told the position to fill.

    Raises:
        RouterError: a hundred tries in a row brought nothing new.
    """
    found: dict[str, str] = {}
    failures = count(1)
    while len(found) < n:
        given, answer = make(len(found))
        if given not in found:
            found[given] = answer
            failures = count(1)
        elif next(failures) >= 100:
            raise RouterError(
                f"A demo family has about {len(found)} different items, not {n}; ask for fewer."
            )
    return list(found.items())
