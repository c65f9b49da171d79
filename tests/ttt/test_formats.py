"""Readers: what comes out of good files, and what people are told about bad ones."""

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ttt import tables
from ttt.errors import FormatError, TaskError
from ttt.formats import (
    Item,
    answerable_when_pooled,
    read_demonstrations,
    read_families,
    read_family,
    read_queries,
    read_task,
)
from ttt.task import Demonstration, Query

COLOURS = "123456789"


def write(folder: Path, name: str, content: str | bytes | object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline=""
        )
    return path


def arc(rows: list[tuple[list[int], list[int]]]) -> dict[str, object]:
    entries = [{"input": [a], "output": [b]} for a, b in rows]
    return {"train": entries[:-1], "test": entries[-1:], "uuid": "1"}


# Tasks ---------------------------------------------------------------------------------------------------


def test_native_task_with_bare_and_labelled_queries() -> None:
    file = read_task(
        '{"name": "days", "instruction": "ISO, please.", "demonstrations": [{"input": "3 May", "output": '
        '"2020-05-03"}], "queries": ["1 June 2021", {"input": "2 June 2021", "output": "2021-06-02"}]}'
    )
    assert file.task.name == "days"
    assert file.task.instruction == "ISO, please."
    assert file.task.demonstrations == (Demonstration("3 May", "2020-05-03"),)
    assert file.queries == (Query("1 June 2021"), Query("2 June 2021"))
    assert file.answers == (None, "2021-06-02")


def test_task_name_defaults_to_the_file_name(tmp_path: Path) -> None:
    assert read_task(write(tmp_path, "days.json", {"queries": ["x"]})).task.name == "days"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("7", "7"),
        ("-0.50", "-0.50"),
        ("1e-10", "1e-10"),
        ("true", "true"),
        ("[0, 0, 5]", "0 0 5"),
        ("[[0, 0, 5]]", "0 0 5"),
        ("[[0, 1], [2, -3]]", "0 1\n2 -3"),
        ("9" * 6000, "9" * 6000),
    ],
)
def test_numbers_booleans_and_grids_are_rendered_plainly(written: str, text: str) -> None:
    file = read_task(f'{{"demonstrations": [{{"input": {written}, "output": {written}}}], "queries": [1]}}')
    assert file.task.demonstrations == (Demonstration(text, text),)


@pytest.mark.parametrize(
    "written",
    [
        *("null", '{"a": 1}', "[]", "[[]]", '["a"]', "[1.5]", "[true]", "[[1], [1, 2]]", "[1, [2]]"),
        *('[[1, 2], [1, 2, "a"]]', '""', '" \\n "', '"\\ud800"'),
    ],
)
def test_other_values_are_refused_with_their_place(written: str) -> None:
    text = f'{{"demonstrations": [{{"input": "a", "output": "b"}}, {{"input": "a", "output": {written}}}]}}'
    with pytest.raises(FormatError, match=r"demonstrations\[1\]\.output"):
        read_task(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON.*line 1, column 1.*the end"),
        ('{"queries": ["a",]}', "line 1, column 18"),
        ("[1, 2]", "is a list"),
        ("3", "the number 3"),
        ("{}", "neither demonstrations nor queries"),
        ('{"demos": []}', "unknown key 'demos'; known are name, instruction, demonstrations, queries"),
        ('{"queries": "a"}', "queries is the text 'a', a list"),
        ('{"demonstrations": ["a"]}', r"demonstrations\[0\] is the text 'a'"),
        ('{"demonstrations": [{"input": "a"}]}', r"demonstrations\[0\] has no output"),
        ('{"queries": [{"output": "a"}]}', r"queries\[0\] has no input"),
        ('{"queries": [{"input": "a", "gold": "b"}]}', "unknown key 'gold'"),
        ('{"queries": [], "queries": []}', "'queries' stands twice"),
        ('{"queries": [NaN]}', "NaN is not a JSON value"),
        ('{"queries": ' + "[" * 200_000 + "}", "nested too deeply"),
        ('{"instruction": {"a": 1}, "queries": []}', "instruction is an object"),
        ('{"examples": []}', "evaluate it"),
    ],
)
def test_bad_task_text_is_told_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(FormatError, match=told) as error:
        read_task(text)
    assert len(str(error.value)) < 400


def test_arc_file_is_a_task_whose_test_outputs_may_be_absent(tmp_path: Path) -> None:
    data = {"train": [{"input": [[1, 0]], "output": [[0, 1]]}], "test": [{"input": [[2, 0]]}], "uuid": "9"}
    file = read_task(write(tmp_path, "swap.json", data))
    assert file.task.demonstrations == (Demonstration("1 0", "0 1"),)
    assert (file.queries, file.answers) == ((Query("2 0"),), (None,))
    assert "'uuid'" in file.notes[0]


def test_enormous_output_is_read_whole(tmp_path: Path) -> None:
    output = "word " * 500_000
    data = {"demonstrations": [{"input": "a", "output": output}]}
    assert read_task(write(tmp_path, "t.json", data)).task.demonstrations[0].output == output


# Tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "input,output\na,1\nb,2\n"),
        ("a.csv", "a,1\n\nb,2\n"),
        ("a.csv", "id,Answer, Question \n7,1,a\n8,2,b\n"),
        ("a.csv", b"\xef\xbb\xbfprompt,completion\r\na,1\r\nb,2"),
        ("a.tsv", "x\ty\na\t1\nb\t2\n"),
        ("a.jsonl", '{"text": "a", "label": 1, "id": 3}\n\n{"label": "2", "text": "b"}\r\n'),
        ("a.json", '[{"input": "a", "output": "1"}, {"input": "b", "output": 2}]'),
    ],
)
def test_same_demonstrations_from_every_table_format(tmp_path: Path, name: str, content: str | bytes) -> None:
    found = read_demonstrations(write(tmp_path, name, content))
    assert found == (Demonstration("a", "1"), Demonstration("b", "2"))


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("q.csv", "a\nb\n", (None, None)),
        ("q.csv", "question\na\nb\n", (None, None)),
        ("q.csv", "id,question\n1,a\n2,b\n", (None, None)),
        ("q.csv", "question,answer\na,1\nb,\n", ("1", None)),
        ("q.tsv", "a\t1\nb\t2\n", ("1", "2")),
        ("q.jsonl", '"a"\n{"input": "b", "output": null}\n', (None, None)),
        ("q.json", '[{"input": "a", "output": 1}, "b"]', ("1", None)),
    ],
)
def test_queries_with_and_without_gold_answers(
    tmp_path: Path, name: str, content: str, answers: tuple[str | None, ...]
) -> None:
    assert read_queries(write(tmp_path, name, content)) == ((Query("a"), Query("b")), answers)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "no rows"),
        ("a.csv", "input,output\n", "no rows"),
        ("a.csv", "a,b,c\n", "line 1 has 3 column.*'a, b, c'; add a header"),
        ("a.csv", "only\n", "line 1 has 1 column"),
        ("a.csv", "text,category\na,b\n", "line 1 may be a header.*1 input and 0 output"),
        ("a.csv", "input,question,output\na,b,c\n", "2 input and 1 output"),
        ("a.csv", "input,output\na,1\nb\n", r"line 3 has 1 column\(s\), not 2: 'b'"),
        ("a.csv", "input,output\na,1\nb,2,3\n", r"line 3 has 3 column\(s\), not 2: 'b,2,3'; put .* comma"),
        ("a.csv", 'input,output\n"a\nb",1\n,2\n', "line 4: the input is empty"),
        ("a.csv", "input,output\na, \n", "line 2: the output is empty"),
        ("a.csv", 'input,output\na,1\n"b" c,2\n', "line 3: ',' expected after '\"'.*b.* c,2"),
        ("a.csv", 'input,output\n"a,1\nb,2\n', "line 2: unexpected end of data"),
        ("a.csv", "input,output\na," + "b" * 200_000, "line 2: field larger than field limit.*JSONL"),
        ("a.tsv", "a,1\n", "line 1 has 1 column"),
        ("a.jsonl", '{"input": "a", "output": "b"}\n{"input": "c"}\n', "line 2 has 1 input and 0 output"),
        ("a.jsonl", '{"input": "a", "output": "b"}\n{"input": \n', "line 2 is not valid JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1 is a list"),
        ("a.json", '{"demonstrations": []}', "holds an object"),
        (
            "a.json",
            '[{"input": [[1, 2], [3]], "output": 1}]',
            "row 2 has 1 cells and row 1 has 2; make all rows",
        ),
        ("a.json", '[{"input": "a", "output": null}]', "element 1: the output is null"),
        ("a.xlsx", "a,b", r"suffix '\.xlsx'"),
        ("a.csv", b"\xef\xbb\xbfa,b\nc,\xe9\n", "not UTF-8: byte 9 is 0xe9"),
        ("a.csv", "a,b\n".encode("utf-16"), "byte 0 is 0xff"),
    ],
)
def test_bad_table_is_told_with_place_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(FormatError, match=told) as error:
        read_demonstrations(path)
    assert str(path) in str(error.value)


def test_unreadable_paths_are_task_errors(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="No such file"):
        read_demonstrations(tmp_path / "none.csv")
    with pytest.raises(TaskError, match="nowhere does not exist; check the path"):
        read_demonstrations(tmp_path / "nowhere")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TaskError, match="Is a directory"):
        read_queries(tmp_path / "folder.csv")


def test_file_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    with path.open("wb") as file:
        file.truncate(tables.SIZE_LIMIT + 1)
    with pytest.raises(FormatError, match="larger than 64 MiB"):
        read_demonstrations(path)


def is_name(text: str) -> bool:
    return text.strip().lower() in tables.INPUT_NAMES + tables.OUTPUT_NAMES


values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda t: t.strip()
)
pairs = st.lists(st.tuples(values, values), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(rows=pairs, header=st.booleans(), suffix=st.sampled_from(["csv", "tsv"]))
def test_what_the_csv_module_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], header: bool, suffix: str
) -> None:
    header = header or any(is_name(cell) for cell in rows[0])
    path = tmp_path / f"rows.{suffix}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t")
        writer.writerows([("input", "output"), *rows] if header else rows)
    expected = rows if header else [(rows[0][0].removeprefix("\ufeff"), rows[0][1]), *rows[1:]]
    assert read_demonstrations(path) == tuple(Demonstration(a, b) for a, b in expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(rows=pairs, ascii_only=st.booleans())
def test_what_the_json_module_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], ascii_only: bool
) -> None:
    records = [{"input": a, "output": b} for a, b in rows]
    expected = tuple(Demonstration(a, b) for a, b in rows)
    lines = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    assert read_demonstrations(write(tmp_path, "rows.jsonl", lines)) == expected
    task = json.dumps({"demonstrations": records}, ensure_ascii=ascii_only)
    assert read_task(task).task.demonstrations == expected


# Families ------------------------------------------------------------------------------------------------


def test_folder_of_arc_files_is_one_family_with_the_file_as_group(tmp_path: Path) -> None:
    write(tmp_path, "fill/a.json", arc([([1, 0], [1, 1]), ([2, 0], [2, 2])]))
    write(tmp_path, "fill/b.json", arc([([3, 0], [3, 3]), ([4, 0], [4, 4])]))
    write(tmp_path, "fill/LICENSE", "free")
    write(tmp_path, "fill/notes.md", "# notes")
    family = read_family(tmp_path / "fill")
    assert (family.name, family.collection, family.instruction) == ("fill", "1d-arc", "")
    assert family.items[:2] == (Item("1 0", "1 1", "a.json"), Item("2 0", "2 2", "a.json"))
    assert [item.group for item in family.items[2:]] == ["b.json", "b.json"]
    assert family.answerable


def test_tree_of_folders_and_files_gives_all_families(tmp_path: Path) -> None:
    write(tmp_path, "arc/flip/a.json", arc([([1, 0], [0, 1])]))
    write(tmp_path, "arc/fill/a.json", arc([([1, 0], [1, 1])]))
    write(tmp_path, "bbh/LICENSE", "free")
    write(tmp_path, "bbh/words.json", {"canary": "c", "examples": [{"input": "b a", "target": "a b"}]})
    write(
        tmp_path,
        "own.json",
        {"demonstrations": [{"input": 1, "output": 2}], "queries": [3, {"input": 4, "output": 5}]},
    )
    write(tmp_path, "rows.csv", "a,1\n")
    families = read_families([tmp_path])
    assert [(f.name, f.collection) for f in families] == [
        ("own", "native"),
        ("rows", "table"),
        ("fill", "1d-arc"),
        ("flip", "1d-arc"),
        ("words", "bbh"),
    ]
    assert families[4].items == (Item("b a", "a b"),)
    assert families[0].items == (Item("1", "2"), Item("4", "5"))
    assert "1 query or queries" in families[0].notes[0]


def test_family_errors_name_the_path(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="empty holds no"):
        read_families([tmp_path / "empty"])
    with pytest.raises(TaskError, match=r"none.json can't be read"):
        read_families([tmp_path / "none.json"])
    one = write(tmp_path, "mixed/one.json", arc([([1], [2])]))
    write(tmp_path, "mixed/two.csv", "a,b\n")
    with pytest.raises(FormatError, match=r"mixes ARC files \(1 of 2\)"):
        read_family(tmp_path / "mixed")
    with pytest.raises(FormatError, match="Two families are named 'one'"):
        read_families([one, one])
    with pytest.raises(FormatError, match="no item with an output"):
        read_family(write(tmp_path, "bare.json", {"queries": ["a"]}))
    with pytest.raises(FormatError, match=r"examples\[0\] has no target"):
        read_family(write(tmp_path, "bbh.json", {"examples": [{"input": "a"}]}))


def recoloured(file: int, colour: str, written: str, n: int = 4) -> list[Item]:
    return [Item(f"0 {colour} " + "0 " * i, f"0 {written} " + "0 " * i, f"{file}.json") for i in range(n)]


def test_output_symbol_that_is_a_parameter_of_the_file_is_not_answerable() -> None:
    items = [item for file in range(6) for item in recoloured(file, "1", COLOURS[1 + file])]
    assert not answerable_when_pooled(items)
    assert answerable_when_pooled(recoloured(0, "1", "2"))


def test_item_that_needs_only_part_of_the_parameters_does_not_hide_them() -> None:
    items: list[Item] = []
    for file in range(6):
        odd, even = COLOURS[file + 1], COLOURS[file + 2]
        items += [
            Item(f"1 0 1 1 {'0 ' * i}", f"{odd} 0 {even} {even} {'0 ' * i}", str(file)) for i in range(3)
        ]
        items.append(Item("1 0 0", f"{odd} 0 0", str(file)))
    assert not answerable_when_pooled(items)


def test_output_symbol_that_the_input_tells_is_answerable() -> None:
    successor = [item for file in range(6) for item in recoloured(file, COLOURS[file], COLOURS[file + 1])]
    assert answerable_when_pooled(successor)


def test_rule_that_writes_no_new_symbol_is_answerable() -> None:
    items = [
        Item(f"{c} 0 0", f"{c} {c} 0", f"{file}.json") for file, c in enumerate(COLOURS) for _ in range(4)
    ]
    assert answerable_when_pooled(items)


def test_labels_that_vary_within_files_are_answerable() -> None:
    items = [
        Item("1 " * n + "0", "odd" if n % 2 else "even", f"{file}.json")
        for file in range(6)
        for n in range(1 + file, 5 + file)
    ]
    assert answerable_when_pooled(items)


def test_few_constant_files_are_no_evidence() -> None:
    assert answerable_when_pooled(recoloured(0, "1", "2", n=2) + recoloured(1, "1", "3", n=2))
    assert answerable_when_pooled(
        [item for f in range(6) for item in recoloured(f, "1", COLOURS[1 + f], n=1)]
    )


def test_pooled_folder_whose_rule_differs_says_so(tmp_path: Path) -> None:
    for file in range(5):
        colour = file + 2
        pairs = [([1] * n + [0], [colour] * n + [0]) for n in range(1, 5)]
        write(tmp_path, f"recolour/{file}.json", arc(pairs))
    family = read_family(tmp_path / "recolour")
    assert not family.answerable
    assert "Not answerable when pooled" in family.notes[0]


@pytest.mark.skipif(
    "TTT_ROUTER_BENCHMARK_DATA" not in os.environ, reason="TTT_ROUTER_BENCHMARK_DATA does not name the folder"
)
def test_benchmark_families_that_differ_between_files_are_found() -> None:
    families = read_families([Path(os.environ["TTT_ROUTER_BENCHMARK_DATA"])])
    assert {f.name for f in families if not f.answerable} == {"1d_recolor_oe", "1d_recolor_cmp"}
    assert sum(f.collection == "1d-arc" for f in families) == 11
    assert all(len(f.items) == 200 for f in families if f.collection == "1d-arc")
