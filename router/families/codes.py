"""House codes: a form that only this house uses, with a small table behind some of its letters."""

from __future__ import annotations

import random

from router.families.procedure import Item, collect
from router.families.records import FIRST, LAST

TOPICS = {"invoice overdue": "FIN", "screen is black": "TEC", "parcel is late": "LOG", "contract ends": "LAW"}
CITIES = ("Lyon", "Paris", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Lisbon", "Prague")
CALLERS = {"customer": 2, "supplier": 1, "partner": 5}
SIZES = {"small": "S", "medium": "M", "large": "L", "huge": "XX"}
COLOURS = {"red": 10, "blue": 20, "green": 35, "black": 99}
GARMENTS = {"shirt": "SH", "coat": "CT", "skirt": "SK", "scarf": "SC", "glove": "GL"}
STATES = {"paid": "+", "open": "?", "refused": "!", "returned": "<"}
SKIES = {"sunny": "Q", "cloudy": "V", "rainy": "J", "snowy": "K"}
SHIFTS = {"morning": "A", "evening": "C", "night": "F"}
FLOORS = {"ground floor": "0", "first floor": "1", "attic": "9", "cellar": "X"}


def department(rng: random.Random) -> Item:
    topic, caller, city = rng.choice(list(TOPICS)), rng.choice(list(CALLERS)), rng.choice(CITIES)
    return f"{topic}, {caller} in {city}", f"{TOPICS[topic]}-{city[:3].upper()}-{CALLERS[caller]}"


def ware(rng: random.Random) -> Item:
    size, colour, garment = rng.choice(list(SIZES)), rng.choice(list(COLOURS)), rng.choice(list(GARMENTS))
    return f"{size} {colour} {garment}, {(n := rng.randint(1, 9))} pieces", (
        f"{GARMENTS[garment]}{COLOURS[colour]}{SIZES[size]}*{n}"
    )


def order(rng: random.Random) -> Item:
    number, state, n = rng.randint(100, 999), rng.choice(list(STATES)), rng.randint(2, 40)
    return f"order {number}: {n} pieces, {state}", f"{STATES[state]}{number}/{n}"


def weather(rng: random.Random) -> Item:
    sky, degrees, wind = rng.choice(list(SKIES)), rng.randint(-9, 35), rng.randint(0, 90)
    return (
        f"{sky}, {degrees} degrees, wind {wind} km/h",
        f"{SKIES[sky]}{'m' if degrees < 0 else 'p'}{abs(degrees)}w{wind}",
    )


def roster(rng: random.Random) -> Item:
    first, last, shift = rng.choice(FIRST), rng.choice(LAST), rng.choice(list(SHIFTS))
    return f"{first} {last}, {shift} shift", f"{last[:2].upper()}{first[0]}.{SHIFTS[shift]}"


def room(rng: random.Random) -> Item:
    floor, number, side = rng.choice(list(FLOORS)), rng.randint(1, 60), rng.choice(("east", "west"))
    return f"{floor}, room {number}, {side} wing", f"{side[0].upper()}{FLOORS[floor]}{number:02d}"


def seat(rng: random.Random) -> Item:
    row, place = rng.randint(1, 40), rng.randint(1, 26)
    return f"row {row} seat {place}", f"{chr(64 + place)}{row}"


def flight(rng: random.Random) -> Item:
    start, goal = rng.sample(CITIES, 2)
    number = rng.randint(10, 99)
    return f"{start} to {goal}, flight {number}", f"{start[0]}{goal[0]}{number}-{goal[-2:].upper()}"


def account(rng: random.Random) -> Item:
    """The last digit is a check digit: the others' sum, modulo ten."""
    number = "".join(rng.choices("0123456789", k=5))
    return f"account {number}", f"AC{number}-{sum(map(int, number)) % 10}"


def licence(rng: random.Random) -> Item:
    """The letters turned round, the number with zeros in front."""
    letters, number = "".join(rng.sample("ABCDEFGHKLMNPRST", 3)), rng.randint(1, 999)
    return f"{letters} {number}", f"{number:04d}{letters[::-1]}"


FAMILIES = collect(
    "codes",
    department=department,
    ware=ware,
    order=order,
    weather=weather,
    roster=roster,
    room=room,
    seat=seat,
    flight=flight,
    account=account,
    licence=licence,
)
