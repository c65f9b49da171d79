"""Examples inside one message: a deterministic parser of the ways in which people write them.

    Input: 3 March 2021        3 March 2021 -> 2021-03-03      {"input": "3 March 2021", "output": "2021-03-03"}
    Output: 2021-03-03         12 May 1999 ->                  {"input": "12 May 1999"}

    Input: 12 May 1999         | input | output |              input,output
    Output:                    | ----- | ------ |              3 March 2021,2021-03-03
                               | 3 March 2021 | 2021-03-03 |   12 May 1999,
                               | 12 May 1999 |  |

The rules, all of them:

1. One notation explains the *whole* message, but for an instruction before the first example (whole
   paragraphs, or a last line that ends with a colon) and, after JSON lines and tables, one paragraph that is
   the query. Otherwise nothing is recognised, and the message is a plain text.
2. The example without an output, which must be the last one, is the query. Without one there are only examples,
   two at least.
3. Labels are `Input:`/`Output:`, `Q:`/`A:` and `Question:`/`Answer:`, in any case, at the start of a line. The first
   label in the message settles which; the others are then text. Values may have several lines.
4. Arrows are `->`, `=>` and `→`, one kind in a message, once a line with spaces around it. Two lines with one at
   least; the query ends with the arrow, or is a last line without one.
5. JSON lines are objects with the names of columns that files may have (`ttt.tables`). CSV needs a header with such
   names; a Markdown table has a header of them, or exactly two columns.
6. What stands inside a value, a quoted cell or a JSON text is never looked at.

Knows nothing of conversations or models.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttt.errors import FormatError
from ttt.tables import INPUT_NAMES, OUTPUT_NAMES, parse_json, render
from ttt.task import Demonstration

LABELS = (("input", "output"), ("question", "answer"), ("q", "a"))
ARROWS = ("->", "=>", "→")
Row = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Examples:
    """What was recognised in one message."""

    notation: str
    """For people: `Input:/Output:`, `x -> y`, `JSON lines`, `Markdown table`, `CSV table`."""
    demonstrations: tuple[Demonstration, ...]
    query: str | None
    instruction: str


def parse_examples(text: str) -> Examples | None:
    """The examples that make up `text`, or None where it is a plain text."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    notations: Sequence[tuple[str, Callable[[list[str]], Found | None]]] = (
        ("JSON lines", _json_lines),
        ("Markdown table", _markdown),
        ("CSV table", _csv),
        *((f"{i.capitalize()}:/{o.capitalize()}:", _labelled(i, o)) for i, o in LABELS),
        *((f"x {arrow} y", _arrows(arrow)) for arrow in ARROWS),
    )
    for notation, read in notations:
        found = read(lines)
        if found is None:
            continue
        rows = [(x.strip(), None if y is None else y.strip()) for x, y in found.rows]
        query = found.after
        if query is None and rows and not rows[-1][1]:
            query = rows.pop()[0]
        if not rows or (query is None and len(rows) < 2):
            continue
        if all(x and y for x, y in rows) and (query is None or query):
            pairs = tuple(Demonstration(x, y) for x, y in rows if y is not None)
            return Examples(notation, pairs, query, found.before)
    return None


@dataclass(frozen=True, slots=True)
class Found:
    """Rows in one notation, and the text around them."""

    rows: tuple[Row, ...]
    before: str = ""
    after: str | None = None


def _instruction(lines: Sequence[str]) -> str | None:
    """The text before the first example; None where it does not end as an instruction does."""
    text = "\n".join(lines).strip()
    if not text or not lines[-1].strip() or text.endswith(":"):
        return text
    return None


def _around(lines: Sequence[str], first: int, last: int, rows: Sequence[Row]) -> Found | None:
    """`rows` stood on lines first to last; the rest must be an instruction and at most one paragraph."""
    before = _instruction(lines[:first])
    after = "\n".join(lines[last + 1 :]).strip()
    apart = last + 1 >= len(lines) or not lines[last + 1].strip()
    asked_twice = bool(after) and bool(rows) and not rows[-1][1]
    if before is None or not apart or asked_twice or "\n\n" in after:
        return None
    return Found(tuple(rows), before, after or None)


def _json_lines(lines: list[str]) -> Found | None:
    marked = [n for n, line in enumerate(lines) if line.lstrip().startswith("{")]
    if not marked:
        return None
    first, last = marked[0], marked[0]
    while last + 1 < len(lines) and lines[last + 1].lstrip().startswith("{"):
        last += 1
    rows = []
    for n in range(first, last + 1):
        try:
            value = parse_json(lines[n], "line")
            row = _record(value)
        except FormatError:
            return None
        if row is None:
            return None
        rows.append(row)
    return _around(lines, first, last, rows)


def _record(value: object) -> Row | None:
    if not isinstance(value, dict):
        return None
    inputs = [k for k in value if k.strip().lower() in INPUT_NAMES]
    outputs = [k for k in value if k.strip().lower() in OUTPUT_NAMES]
    if len(inputs) != 1 or len(outputs) > 1 or len(value) != len(inputs) + len(outputs):
        return None
    given = value[outputs[0]] if outputs else None
    output = None if given is None else render(given, "the output", may_be_empty=True)
    return render(value[inputs[0]], "the input"), output


def _markdown(lines: list[str]) -> Found | None:
    marked = [n for n, line in enumerate(lines) if line.strip().startswith("|")]
    if len(marked) < 3 or marked != list(range(marked[0], marked[-1] + 1)):
        return None
    cells = [_cells(lines[n]) for n in marked]
    if not all(re.fullmatch(r":?-+:?", c) for c in cells[1]) or len({len(row) for row in cells}) != 1:
        return None
    columns = _columns(cells[0])
    if columns is None and len(cells[0]) == 2:
        columns = (0, 1)
    if columns is None:
        return None
    rows = [(row[columns[0]], row[columns[1]]) for row in cells[2:]]
    return _around(lines, marked[0], marked[-1], rows)


def _cells(line: str) -> list[str]:
    """Cells of one row; `\\|` is a bar inside a cell."""
    inner = re.sub(r"(?<!\\)\|\s*$", "", line.strip().removeprefix("|"))
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _csv(lines: list[str]) -> Found | None:
    headers = ((n, line.split(",")) for n, line in enumerate(lines))
    first, header = next(((n, cells) for n, cells in headers if _columns(cells)), (0, []))
    columns = _columns(header)
    if columns is None:
        return None
    rows: list[Row] = []
    reader = csv.reader(io.StringIO("\n".join(lines[first + 1 :]), newline=""), strict=True)
    last = first
    try:
        for cells in reader:
            if not cells:
                break
            if len(cells) != len(header):
                return None
            rows.append((cells[columns[0]], cells[columns[1]]))
            last = first + reader.line_num
    except csv.Error:
        return None
    return _around(lines, first, last, rows)


def _columns(header: Sequence[str]) -> tuple[int, int] | None:
    names = [name.strip().lower() for name in header]
    inputs = [i for i, name in enumerate(names) if name in INPUT_NAMES]
    outputs = [i for i, name in enumerate(names) if name in OUTPUT_NAMES]
    return (inputs[0], outputs[0]) if len(inputs) == len(outputs) == 1 else None


def _labelled(input_label: str, output_label: str) -> Callable[[list[str]], Found | None]:
    pattern = re.compile(rf"[ \t]*({input_label}|{output_label}):[ \t]?(.*)", re.IGNORECASE)
    any_label = re.compile(rf"[ \t]*({'|'.join(i for i, _ in LABELS)}):", re.IGNORECASE)

    def read(lines: list[str]) -> Found | None:
        first = next((n for n, line in enumerate(lines) if any_label.match(line)), None)
        if first is None or not pattern.match(lines[first]):
            return None
        before = _instruction(lines[:first])
        rows: list[
            tuple[list[str], list[str]]
        ] = []  # lines of the input, and of the output where there is one
        for line in lines[first:]:
            found = pattern.match(line)
            if found is None:
                (rows[-1][1] or rows[-1][0]).append(line)
                continue
            is_input = found[1].lower() == input_label
            if is_input == bool(rows and not rows[-1][1]):
                return None  # two inputs or two outputs in a row
            if is_input:
                rows.append(([found[2]], []))
            else:
                rows[-1][1].append(found[2])
        pairs = tuple(("\n".join(x), "\n".join(y) if y else None) for x, y in rows)
        return None if before is None else Found(pairs, before)

    return read


def _arrows(arrow: str) -> Callable[[list[str]], Found | None]:
    def read(lines: list[str]) -> Found | None:
        marked = [n for n, line in enumerate(lines) if re.search(rf"\s{arrow}(\s|$)", line)]
        if not marked:
            return None
        before = _instruction(lines[: marked[0]])
        rows: list[Row] = []
        for line in lines[marked[0] : marked[-1] + 1]:
            if not line.strip():
                continue
            parts = re.split(rf"\s{arrow}(?:\s|$)", line)
            if len(parts) != 2 or any(a in part for a in ARROWS for part in parts):
                return None
            rows.append((parts[0], parts[1]))
        rest = "\n".join(lines[marked[-1] + 1 :]).strip()
        complete = sum(bool(y and y.strip()) for _, y in rows)
        asks = bool(rows) and not (rows[-1][1] or "").strip()
        if before is None or complete + asks < 2 or (asks and rest) or "\n" in rest:
            return None
        return Found(tuple(rows), before, rest or None)

    return read
