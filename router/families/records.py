"""Everyday rewriting of records: dates, times, names, phone numbers, small tables, paths, log lines."""

from __future__ import annotations

import json
import random
from datetime import date, timedelta

from router.families.procedure import Item, Make, collect, rule

FIRST = ("Maria", "John", "Aisha", "Peter", "Lucia", "David", "Emma", "Ravi", "Sofia", "Karl", "Nora", "Omar")
LAST = (
    "Lopez",
    "Smith",
    "Khan",
    "Novak",
    "Rossi",
    "Cohen",
    "Weber",
    "Patel",
    "Silva",
    "Berg",
    "Moore",
    "Sato",
)
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DAYS = (date(1990, 1, 1), date(2029, 12, 31))
FRUITS = ("apple", "pear", "plum", "fig", "lime", "kiwi", "melon", "grape")
LEVELS = ("ERROR", "WARN", "INFO")
SERVICES = ("auth", "billing", "search", "cart", "mail", "cache")
HOSTS = ("example", "shop", "news", "mysite", "forum", "data")
ENDINGS = ("com", "org", "net", "io")
WORDS = ("user", "total", "item", "count", "first", "name", "last", "order", "page", "size", "max", "date")


def day(rng: random.Random) -> date:
    return DAYS[0] + timedelta(rng.randrange((DAYS[1] - DAYS[0]).days + 1))


def long_date(when: date) -> str:
    return f"{when.day} {MONTHS[when.month - 1]} {when.year}"


def mixed_dates(rng: random.Random) -> Item:
    """Three ways to write a date → ISO 8601."""
    when = day(rng)
    month = MONTHS[when.month - 1]
    forms = (long_date(when), f"{month} {when.day}, {when.year}", f"{when.day}.{when.month}.{when.year}")
    return rng.choice(forms), when.isoformat()


def clock(n: int) -> str:
    hours, minutes = divmod(n, 60)
    return f"{hours:02d}:{minutes:02d}"


def half_day(n: int) -> str:
    hours, minutes = divmod(n, 60)
    return f"{(hours - 1) % 12 + 1}:{minutes:02d} {'am' if hours < 12 else 'pm'}"


def minute(rng: random.Random) -> int:
    return rng.randrange(24 * 60)


def person(rng: random.Random) -> tuple[str, str]:
    return rng.choice(FIRST), rng.choice(LAST)


def people(form: str) -> Make:
    """`First Last` with an age → another form."""

    def make(rng: random.Random) -> Item:
        (first, last), age = person(rng), rng.randint(18, 89)
        return f"{first} {last}, {age}", form.format(
            first=first, last=last, upper=last.upper(), age=age, f=first[0]
        )

    return make


def phone(rng: random.Random) -> Item:
    n = "".join(rng.choices("23456789", k=10))
    return n, f"({n[:3]}) {n[3:6]}-{n[6:]}"


def row(rng: random.Random) -> dict[str, object]:
    return {"item": rng.choice(FRUITS), "count": rng.randint(1, 99), "price": rng.randint(1, 9)}


def to_csv(cells: dict[str, object]) -> str:
    return ",".join(map(str, cells.values()))


def pairs(cells: dict[str, object]) -> str:
    return "; ".join(f"{k}={v}" for k, v in cells.items())


def reordered(cells: dict[str, object]) -> str:
    return pairs(dict(sorted(cells.items(), reverse=True)))


def log_line(rng: random.Random) -> Item:
    level, service, code = rng.choice(LEVELS), rng.choice(SERVICES), rng.randint(100, 599)
    return f"[{service}] {level} {code} at {clock(minute(rng))}", f"{level}|{service}|{code}"


def url(rng: random.Random) -> Item:
    host = f"{rng.choice(HOSTS)}.{rng.choice(ENDINGS)}"
    return f"https://www.{host}/{rng.choice(WORDS)}/{rng.randint(1, 99)}", host


def path(rng: random.Random) -> Item:
    name = f"{rng.choice(WORDS)}{rng.randint(1, 99)}"
    return f"/home/{rng.choice(FIRST).lower()}/{rng.choice(WORDS)}/{name}.txt", name


def variable(rng: random.Random) -> list[str]:
    return rng.sample(WORDS, rng.randint(2, 3))


def camel(words: list[str]) -> str:
    return words[0] + "".join(w.title() for w in words[1:])


def cents(n: int) -> str:
    return f"${n // 100}.{n % 100:02d}"


FAMILIES = collect(
    "records",
    date_to_iso=rule(day, date.isoformat, long_date),
    iso_to_date=rule(day, long_date, date.isoformat),
    us_to_iso=rule(day, date.isoformat, lambda d: f"{d.month}/{d.day}/{d.year}"),
    mixed_dates=(mixed_dates, "Write the date as year-month-day."),
    time_to_half_day=rule(minute, half_day, clock),
    time_to_clock=rule(minute, clock, half_day),
    last_name_first=people("{upper}, {first} ({age})"),
    initial=people("{f}. {last}"),
    address=people("{first}.{last}{age}@mail.org"),
    phone=phone,
    csv_to_json=rule(row, json.dumps, to_csv),
    json_to_csv=rule(row, to_csv, json.dumps),
    reorder_pairs=rule(row, reordered, pairs),
    log_line=log_line,
    host=url,
    file_name=path,
    camel_to_snake=rule(variable, "_".join, camel),
    snake_to_camel=rule(variable, camel, "_".join),
    cents=rule(lambda rng: rng.randint(5, 9999), cents, lambda n: f"{n} cents"),
)
