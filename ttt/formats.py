"""Task files and benchmark families: native JSON, ARC and 1D-ARC, BIG-Bench-Hard, and tables.

A *task* is what a person asks: demonstrations and queries. A *family* is what a benchmark gives: many
items of one rule, of which tasks are drawn (see `ttt.pools`). What a file is, is told from its content,
never from its name. Knows nothing of prompts, models or how families are split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Literal

from ttt.errors import FormatError, TaskError
from ttt.tables import (
    TABLE_SUFFIXES,
    kind,
    parse_json,
    read_demonstrations,
    read_pairs,
    read_queries,
    read_text,
    render,
    shorten,
)
from ttt.task import Demonstration, Query, Task

__all__ = [
    "Collection",
    "Family",
    "Item",
    "TaskFile",
    "answerable_when_pooled",
    "read_demonstrations",
    "read_families",
    "read_family",
    "read_queries",
    "read_task",
]

Collection = Literal["bbh", "1d-arc", "arc", "native", "table"]

TASK_KEYS = ("name", "instruction", "demonstrations", "queries")
NOT_BY_CHANCE = 0.01
"""Likelier agreement within files is no evidence of parameters (see `answerable_when_pooled`)."""


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One task with its queries, as a file or standard input gave them."""

    task: Task
    queries: tuple[Query, ...]
    answers: tuple[str | None, ...]
    """Gold answer of each query, None where the file has none; for evaluation only."""
    notes: tuple[str, ...] = ()
    """A sentence for each thing in the file that was left out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled example of a family."""

    input: str
    output: str
    group: str = ""
    """Name of the file that it came from when a folder is one family, else empty."""


@dataclass(frozen=True, slots=True)
class Family:
    """All items of one rule."""

    name: str
    instruction: str
    items: tuple[Item, ...]
    answerable: bool
    """False if the rule has parameters that differ between the pooled files."""
    collection: Collection
    notes: tuple[str, ...] = ()
    folder: str = ""
    """Name of the folder that its file is in."""


def read_task(source: Path | str) -> TaskFile:
    """One task from a file (a `Path`) or from its JSON text (a `str`).

    Native: `{"name", "instruction", "demonstrations": [{"input", "output"}], "queries": ["…" | {"input",
    "output"?}]}`, all keys optional but one of the last two. ARC: `{"train": […], "test": […]}`, where the
    test outputs may be absent and other keys are left out with a note. Values: see `ttt.tables.render`.

    Raises:
        TaskError: the file can't be read.
        FormatError: it is neither form; the message names the place, the value and the remedy.
    """
    where = str(source) if isinstance(source, Path) else "The task"
    data = parse_json(read_text(source) if isinstance(source, Path) else source, where)
    if not isinstance(data, dict):
        raise FormatError(
            f"{where} is {kind(data)}, an object with the keys {', '.join(TASK_KEYS)} is needed."
        )
    if _is_bbh(data):
        raise FormatError(
            f"{where} is a BIG-Bench-Hard family without queries; evaluate it instead of solving it."
        )
    arc = _is_arc(data)
    if not arc:
        _check_keys(data, TASK_KEYS, where)
        if "demonstrations" not in data and "queries" not in data:
            raise FormatError(f"{where} has neither demonstrations nor queries; give it one of these keys.")
    left_out = sorted(set(data) - {"train", "test"}) if arc else []
    demonstrations = _pairs(data, "train" if arc else "demonstrations", where, need_output=True)
    queries = _pairs(data, "test" if arc else "queries", where, need_output=False)
    name = source.stem if isinstance(source, Path) else ""
    instruction = ""
    if not arc:
        name = render(data.get("name", name), f"{where}: name", may_be_empty=True)
        instruction = render(data.get("instruction", ""), f"{where}: instruction", may_be_empty=True)
    return TaskFile(
        task=Task(
            demonstrations=tuple(Demonstration(text, out) for text, out in demonstrations if out is not None),
            instruction=instruction,
            name=name,
        ),
        queries=tuple(Query(text) for text, _ in queries),
        answers=tuple(output for _, output in queries),
        notes=tuple(
            f"The key {shorten(key)} is not part of an ARC task and was left out." for key in left_out
        ),
    )


def read_family(path: Path) -> Family:
    """One family: a BIG-Bench-Hard, ARC, native JSON, CSV, TSV or JSONL file, or a folder of ARC files.

    The train and test items of all files of such a folder are pooled. Benchmark files carry no instruction,
    so theirs is empty.

    Raises:
        TaskError: the path can't be read.
        FormatError: it is none of these, or an item is damaged.
    """
    found = read_families([path])
    if len(found) != 1:
        raise FormatError(f"{path} holds {len(found)} families, one is needed; name one of its files.")
    return found[0]


def read_families(paths: Iterable[Path]) -> list[Family]:
    """All families under the paths, in the order of the paths, then by name.

    A folder of ARC files is one family. In any other folder each data file is a family and each subfolder
    is read likewise; files with another suffix (licence, notes) and hidden ones are passed over.

    Raises:
        TaskError, FormatError: as `read_family`; also for a folder without data, or one family name twice.
    """
    places: dict[str, Path] = {}
    families: list[Family] = []
    for path in paths:
        found = _families_of_folder(path) if path.is_dir() else [_family_of_file(path)]
        if not found:
            raise FormatError(f"{path} holds no {', '.join(TABLE_SUFFIXES)} file; name a folder that does.")
        for family in found:
            if family.name in places:
                first = places[family.name]
                raise FormatError(
                    f"Two families are named {family.name!r}, in {first} and {path}; rename one."
                )
            places[family.name] = path
        families.extend(found)
    return families


def _families_of_folder(folder: Path) -> list[Family]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise TaskError(f"{folder} can't be listed ({error.strerror}); check its permissions.") from error
    files = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in TABLE_SUFFIXES]
    families = [_family_of_file(file) for file in files]
    arc = [family for family in families if family.collection in ("1d-arc", "arc")]
    if arc and len(arc) < len(families):
        raise FormatError(f"{folder} mixes ARC files ({len(arc)} of {len(families)}) with others; part them.")
    if arc:
        items = tuple(item for family in arc for item in family.items)
        one_row = all(family.collection == "1d-arc" for family in arc)
        answerable = answerable_when_pooled(items)
        notes = () if answerable else ("Not answerable when pooled: the rule differs from file to file.",)
        form: Collection = "1d-arc" if one_row else "arc"
        families = [Family(folder.name, "", items, answerable, form, notes, folder.resolve().parent.name)]
    return families + [f for entry in entries if entry.is_dir() for f in _families_of_folder(entry)]


def _family_of_file(path: Path) -> Family:
    if path.suffix.lower() != ".json":
        return _family_of_table(path)
    where = str(path)
    data = parse_json(read_text(path), where)
    if isinstance(data, list):
        return _family_of_table(path)
    if not isinstance(data, dict):
        raise FormatError(f"{where} is {kind(data)}; a family is an object or a list.")
    if _is_bbh(data):
        return _family(path, "bbh", _pairs(data, "examples", where, need_output=True, output_key="target"))
    if _is_arc(data):
        pairs = [pair for key in ("train", "test") for pair in _pairs(data, key, where, need_output=True)]
        one_row = all("\n" not in text and "\n" not in (output or "") for text, output in pairs)
        return _family(path, "1d-arc" if one_row else "arc", pairs, group=path.name)
    file = read_task(path)
    pairs = [(d.input, d.output) for d in file.task.demonstrations]
    pairs += [(query.input, answer) for query, answer in zip(file.queries, file.answers, strict=True)]
    return _family(path, "native", pairs, name=file.task.name, instruction=file.task.instruction)


def _family_of_table(path: Path) -> Family:
    return _family(path, "table", list(read_pairs(path)))


def _family(
    path: Path,
    collection: Collection,
    pairs: list[tuple[str, str | None]],
    *,
    group: str = "",
    name: str = "",
    instruction: str = "",
) -> Family:
    items = tuple(Item(text, output, group) for text, output in pairs if output is not None)
    if not items:
        raise FormatError(f"{path} has no item with an output; a family needs labelled items.")
    unlabelled = len(pairs) - len(items)
    notes = (f"{unlabelled} query or queries of {path} without an output left out.",) if unlabelled else ()
    folder = path.resolve().parent.name
    return Family(name or path.stem, instruction, items, True, collection, notes, folder)


def answerable_when_pooled(items: Iterable[Item]) -> bool:
    """Whether items of several files (groups) can share one rule, as far as their content tells.

    Looks at the symbols (between white space) that an output introduces, i.e. that its input does not
    have; what a file introduces is the union over its items. Pooled items are *not* answerable if

    - every item introduces something, and some item of each file introduces all that the file does
      (others may need only a part of it);
    - two files have items whose inputs are made of the same symbols, yet introduce sets of which
      neither holds the other;
    - dealing the items to the files at random would give as constant files with a probability of at
      most `NOT_BY_CHANCE`.

    Then what is written is a parameter of the file, and no pooled demonstration tells it. As a
    contradiction is needed, a rule that writes another symbol for another input stays answerable. The
    test does not see parameters that introduce no symbol, such as a distance, nor those of files that
    hold a single item.
    """
    files: dict[str, list[tuple[frozenset[str], frozenset[str]]]] = defaultdict(list)
    for item in items:
        symbols = frozenset(item.input.split())
        files[item.group].append((symbols, frozenset(item.output.split()) - symbols))
    unions: dict[frozenset[str], set[frozenset[str]]] = defaultdict(set)
    for entries in files.values():
        union = frozenset[str]().union(*(new for _, new in entries))
        if union not in [new for _, new in entries] or not all(new for _, new in entries):
            return True
        for symbols, _ in entries:
            unions[symbols].add(union)
    if all(a <= b or b <= a for sets in unions.values() for a, b in combinations(sets, 2)):
        return True
    counts = Counter(new for entries in files.values() for _, new in entries)
    # Share of items that introduce no more than a given set: a file of n items is constant by chance
    # with a probability of at most the sum of share ** n (union bound over the sets).
    shares = [sum(n for other, n in counts.items() if other <= new) / counts.total() for new in counts]
    return prod(min(1.0, sum(share ** len(f) for share in shares)) for f in files.values()) > NOT_BY_CHANCE


def _is_bbh(data: dict[str, object]) -> bool:
    return "examples" in data


def _is_arc(data: dict[str, object]) -> bool:
    return "train" in data


def _check_keys(data: dict[str, object], known: tuple[str, ...], where: str) -> None:
    unknown = [key for key in data if key not in known]
    if unknown:
        raise FormatError(f"{where} has the unknown key {shorten(unknown[0])}; known are {', '.join(known)}.")


def _pairs(
    data: dict[str, object], key: str, where: str, *, need_output: bool, output_key: str = "output"
) -> list[tuple[str, str | None]]:
    """The (input, output or None) entries under `key`, none if it is absent."""
    entries = data.get(key, [])
    if not isinstance(entries, list):
        raise FormatError(f"{where}: {key} is {kind(entries)}, a list is needed; put [ ] around its entries.")
    pairs: list[tuple[str, str | None]] = []
    for i, entry in enumerate(entries):
        place = f"{where}: {key}[{i}]"
        if not isinstance(entry, dict):
            if need_output or isinstance(entry, list):
                raise FormatError(f"{place} is {kind(entry)}; give an object with input and {output_key}.")
            pairs.append((render(entry, place), None))
            continue
        _check_keys(entry, ("input", output_key), place)
        for needed in ("input", output_key) if need_output else ("input",):
            if needed not in entry:
                raise FormatError(f"{place} has no {needed}; give it one or leave the entry out.")
        output = render(entry[output_key], f"{place}.{output_key}") if output_key in entry else None
        pairs.append((render(entry["input"], f"{place}.input"), output))
    return pairs
