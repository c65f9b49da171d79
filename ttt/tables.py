"""Tables of demonstrations and queries (CSV, TSV, JSONL, JSON lists), and how text and JSON are read at all.

The everyday way in: a person has pairs in a spreadsheet or a log. Whatever is wrong is told with its
file, its line, the value and a remedy; nothing is guessed that could turn a label into an input.
Knows nothing of benchmarks, task files or prompts.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from ttt.errors import FormatError, TaskError
from ttt.task import Demonstration, Query, canonical_text

SIZE_LIMIT = 64 * 2**20
"""Larger files (bytes) are refused: no language model's context comes near."""

INPUT_NAMES = ("input", "question", "prompt", "x", "text")
OUTPUT_NAMES = ("output", "answer", "completion", "y", "label")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")

_BOM = b"\xef\xbb\xbf"
_WHOLE_NUMBER = re.compile(r"-?\d+")


class Number(str):
    """A JSON number as it was written: `1.50` stays `1.50`, and no number is too long."""


def read_demonstrations(path: Path) -> tuple[Demonstration, ...]:
    """The demonstrations of a CSV, TSV or JSONL file, or of a JSON list; the suffix says which.

    Columns: one named input, question, prompt, x or text, and one named output, answer, completion, y
    or label, in any case; other columns are ignored. The first line of a CSV or TSV file is a header if
    it has one name of each kind. If it has neither, there is no header: the file must have exactly two
    columns, input then output, and its first line is data. Anything between is refused.

    JSONL lines and list elements are objects that use these names. Numbers, true and false become text
    as written; a list of whole numbers becomes `0 0 5`. Blank lines are skipped, values are kept as they are.

    Raises:
        TaskError: the file can't be read.
        FormatError: it is not what its suffix says, not UTF-8, above `SIZE_LIMIT`, or a value is missing.
    """
    return tuple(Demonstration(text, output) for text, output in read_pairs(path))


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """As `read_demonstrations`, as plain (input, output)."""
    return [(text, output) for text, output in _read_rows(path, need_output=True) if output is not None]


def read_queries(path: Path) -> tuple[tuple[Query, ...], tuple[str | None, ...]]:
    """The queries of a file, and for each its gold answer or None (gold answers are for evaluation only).

    As `read_demonstrations`, but the output may be absent, in a column or in a row (empty cell, null). The
    first line of a CSV or TSV file is a header if it has one input name. Without a header, one column
    holds the inputs, two hold inputs and gold answers. JSON elements may be bare strings.

    Raises:
        TaskError, FormatError: as `read_demonstrations`.
    """
    rows = _read_rows(path, need_output=False)
    return tuple(Query(text) for text, _ in rows), tuple(output for _, output in rows)


def _read_rows(path: Path, *, need_output: bool) -> list[tuple[str, str | None]]:
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        if not path.exists():
            raise TaskError(f"{path} does not exist; check the path.")
        raise FormatError(
            f"{path} has the suffix {suffix!r}; its format must be one of {', '.join(TABLE_SUFFIXES)}."
        )
    text = read_text(path)
    if suffix == ".csv":
        rows = _delimited(text, ",", path, need_output)
    elif suffix == ".tsv":
        rows = _delimited(text, "\t", path, need_output)
    elif suffix == ".jsonl":
        lines = [(f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), start=1)]
        rows = [_record(parse_json(line, where), where, need_output) for where, line in lines if line.strip()]
    else:
        data = parse_json(text, str(path))
        if not isinstance(data, list):
            raise FormatError(
                f"{path} holds {kind(data)}; put its objects in a list, or give it as a whole task."
            )
        rows = [_record(value, f"{path}, element {n}", need_output) for n, value in enumerate(data, start=1)]
    if not rows:
        raise FormatError(f"{path} has no rows of data; give it at least one.")
    return rows


def _delimited(text: str, delimiter: str, path: Path, need_output: bool) -> list[tuple[str, str | None]]:
    """The data rows of a CSV or TSV text, each as (input, output or None)."""
    raw = _raw_rows(text, delimiter, path)
    if not raw:
        return []
    where, first = raw[0]
    input_column, output_column, is_header = _columns(first, where, need_output)
    rows: list[tuple[str, str | None]] = []
    for where, cells in raw[1:] if is_header else raw:
        if len(cells) != len(first):
            raise FormatError(
                f"{where} has {len(cells)} column(s), not {len(first)}: {shorten(delimiter.join(cells))}; "
                f"put a value that holds a {'tab' if delimiter != ',' else 'comma'} in double quotes."
            )
        output = None if output_column is None else cells[output_column]
        if output is not None and not need_output and not canonical_text(output):
            output = None
        rows.append(
            (
                render(cells[input_column], f"{where}: the input"),
                None if output is None else render(output, f"{where}: the output"),
            )
        )
    return rows


def _raw_rows(text: str, delimiter: str, path: Path) -> list[tuple[str, list[str]]]:
    """All rows that are not blank, each with its place."""
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[tuple[str, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append((f"{path}, line {line}", cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise FormatError(
            f"{path}, line {line}: {error}, in the row that begins {shorten(lines[line - 1])}; "
            "double each quote inside a quoted value and close the value, or use JSONL."
        ) from error
    return rows


def _columns(cells: list[str], where: str, need_output: bool) -> tuple[int, int | None, bool]:
    """Where input and output stand in the first row, and whether that row is a header."""
    names = [cell.strip().lower() for cell in cells]
    inputs = [i for i, name in enumerate(names) if name in INPUT_NAMES]
    outputs = [i for i, name in enumerate(names) if name in OUTPUT_NAMES]
    if not inputs and not outputs:
        if len(cells) == 2:
            return 0, 1, False
        if len(cells) == 1 and not need_output:
            return 0, None, False
        raise FormatError(
            f"{where} has {len(cells)} column(s) and names none that is known: {shorten(', '.join(cells))}; "
            "add a header line that names the columns input and output."
        )
    if len(inputs) == 1 and (len(outputs) == 1 or not (outputs or need_output)):
        return inputs[0], outputs[0] if outputs else None, True
    raise FormatError(
        f"{where} may be a header, but names {len(inputs)} input and {len(outputs)} output column(s): "
        f"{shorten(', '.join(cells))}; make the first line name one column input and one output."
    )


def _record(value: object, where: str, need_output: bool) -> tuple[str, str | None]:
    """Input and output of one JSON element."""
    if not need_output and isinstance(value, str):
        return render(value, f"{where}: the input"), None
    if not isinstance(value, dict):
        raise FormatError(f'{where} is {kind(value)}; write an object, {{"input": "…", "output": "…"}}.')
    inputs = [key for key in value if key.strip().lower() in INPUT_NAMES]
    outputs = [key for key in value if key.strip().lower() in OUTPUT_NAMES]
    if len(inputs) != 1 or len(outputs) > 1 or (need_output and not outputs):
        raise FormatError(
            f"{where} has {len(inputs)} input and {len(outputs)} output key(s): {shorten(', '.join(value))}; "
            "name one key input and one output."
        )
    output = value[outputs[0]] if outputs else None
    return (
        render(value[inputs[0]], f"{where}: the input"),
        None if output is None and not need_output else render(output, f"{where}: the output"),
    )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte-order mark if it has one.

    Raises:
        TaskError: the file can't be read.
        FormatError: it is above `SIZE_LIMIT` or not UTF-8; the message gives the first bad byte's position.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise TaskError(f"{path} can't be read ({error.strerror}); check path and permissions.") from error
    if len(data) > SIZE_LIMIT:
        raise FormatError(f"{path} is larger than {SIZE_LIMIT // 2**20} MiB, the limit; leave rows out.")
    start = len(_BOM) if data.startswith(_BOM) else 0
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path} is not UTF-8: byte {start + error.start} is 0x{data[start + error.start]:02x}; "
            "save it as UTF-8."
        ) from error


def parse_json(text: str, where: str) -> object:
    """JSON as dict, list, str, `Number`, bool or None.

    Raises:
        FormatError: not JSON, a key given twice in one object, NaN or infinity, or nested too deeply.
    """
    try:
        data: object = json.loads(
            text,
            parse_int=Number,
            parse_float=Number,
            parse_constant=_no_constant,
            object_pairs_hook=_unique_keys,
        )
    except json.JSONDecodeError as error:
        near = shorten(text[error.pos : error.pos + 80]) if error.pos < len(text) else "the end"
        raise FormatError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}, "
            f"near {near}; correct it there."
        ) from error
    except ValueError as error:
        raise FormatError(f"{where} is not usable JSON: {error}.") from error
    except RecursionError as error:
        raise FormatError(f"{where} is nested too deeply to be a task; flatten it.") from error
    return data


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value; write it as text in quotes")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shorten(twice)} stands twice in one object; keep one")
    return found


def render(value: object, where: str, *, may_be_empty: bool = False) -> str:
    """A JSON value as the text that a model reads.

    Text and numbers stay as written, booleans become true and false, `[0, 0, 5]` and `[[0, 0, 5]]` become
    `0 0 5`, and a grid of more rows has one line a row. Anything else is refused.

    Raises:
        FormatError: as said, or the text is empty or can't be written as UTF-8.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return _render_grid(value, where)
    if not isinstance(value, str):
        raise FormatError(f"{where} is {kind(value)}; give text, a number, true, false or a grid of numbers.")
    if not may_be_empty and not canonical_text(value):
        raise FormatError(f"{where} is empty; fill it in or leave the whole entry out.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{where} holds half of a surrogate pair at character {error.start} "
            f"({value[error.start]!a}); replace it by a whole character."
        ) from error
    return str(value)


def _render_grid(value: list[object], where: str) -> str:
    rows = value if any(isinstance(row, list) for row in value) else [value]
    lines = [" ".join(row) for row in rows if isinstance(row, list) and row and all(map(_is_whole, row))]
    if len(lines) != len(rows):
        raise FormatError(f"{where} is a list, but no grid (whole numbers, rows of one length); give text.")
    widths = [len(line.split()) for line in lines]
    for number, width in enumerate(widths, start=1):
        if width != widths[0]:
            raise FormatError(
                f"{where} is no grid: row {number} has {width} cells and row 1 has {widths[0]}; make all rows of one "
                "length, or give text."
            )
    return "\n".join(lines)


def _is_whole(value: object) -> bool:
    return isinstance(value, Number) and _WHOLE_NUMBER.fullmatch(value) is not None


def kind(value: object) -> str:
    """What a JSON value is, for people, with the value when it is short enough to show."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {shorten(value)}"
    return "an object" if isinstance(value, dict) else "a list"


def shorten(text: str) -> str:
    """`text` quoted, cut to 60 characters."""
    return repr(str(text) if len(text) <= 60 else text[:59] + "…")
