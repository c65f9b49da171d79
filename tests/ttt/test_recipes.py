"""Recipes: their table is that of the documents, files of one's own are checked, impossible values are named."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

import policies.types
import ttt.recipes
from tests.ttt.conftest import letters_task
from ttt.errors import TaskError
from ttt.measure import TaskSize
from ttt.recipes import CELLS, RANGES, RECIPES, TEXT, Recipe, find_recipes, recipe
from ttt.task import Demonstration, Task

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
ROWS = Task((Demonstration("1 0 0", "0 1 0"), Demonstration("0 2 0", "0 0 2")))


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(v.removesuffix("_proj") for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def table() -> str:
    """All recipes side by side; `text / cells` where the two differ."""
    keys = [f.name for f in fields(Recipe) if f.name != "name"]
    lines = [f"| | {' | '.join(RECIPES)} |", "|---" * (len(RECIPES) + 1) + "|"]
    for key in keys:
        cells = []
        for pair in RECIPES.values():
            values = dict.fromkeys(shown(getattr(r, key)) for r in pair)
            cells.append(" / ".join(values))
        lines.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_recipes_keep_their_names_where_a_new_key_says_nothing() -> None:
    """Their adapters are found again."""
    assert TEXT.id == "standard-000a7c0d" and replace(TEXT, rows="indexed").id != TEXT.id


def test_a_shorter_training_is_a_recipe_of_its_own_and_changes_no_other() -> None:
    text, cells = RECIPES["auto"]
    assert replace(text, short=0).id == text.id, "adapters of the recipe itself are found as before"
    for long in (text, cells):
        short = long.shorter
        assert short is not None and short.shorter is None and short.id != long.id
        assert (short.name, short.steps) == (f"auto{ttt.recipes.SHORT}", long.short)
        assert short.probed == long.probed, "the probe is the beginning of both"
    short = text.shorter
    assert short is not None and (short.steps, round(short.warmup * short.steps, 9)) == (16, 1.6)
    short = cells.shorter
    assert short is not None and (short.steps, round(short.warmup * short.steps, 9)) == (30, 10.0)
    assert [replace(TEXT, short=n).shorter for n in (0, TEXT.probe_steps, TEXT.steps)] == [None] * 3
    assert ttt.recipes.SHORT == policies.types.SHORT


def test_the_table_of_the_documents_is_that_of_the_values() -> None:
    assert table() in DOCUMENT.read_text(), f"docs/recipes.md needs this table:\n{table()}"


def test_the_example_of_the_documents_is_a_recipe(tmp_path: Path) -> None:
    (block,) = DOCUMENT.read_text().split("```toml\n")[1:]
    file = tmp_path / "mine.toml"
    file.write_text(block.split("```")[0])
    text, cells = find_recipes(str(file))
    assert text.name == cells.name == "mine" and text != replace(TEXT, name="mine") and text != cells


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_pair_under_its_own_name(name: str) -> None:
    assert [r.name for r in RECIPES[name]] == [name, name]
    assert recipe(name, letters_task(4)) == RECIPES[name][0] and recipe(name, ROWS) == RECIPES[name][1]


def test_recipes_of_different_values_have_different_ids() -> None:
    ids = {r.id for pair in RECIPES.values() for r in pair}
    assert len(ids) == len({r for pair in RECIPES.values() for r in pair})


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text)
    return str(file)


def test_a_file_changes_what_it_says_and_keeps_the_rest_of_its_base(tmp_path: Path) -> None:
    path = write(tmp_path, 'rank = 8\nlearning_rate = 1\ntargets = ["q_proj"]\n[cells]\nsteps = 5\n')
    wanted = {"name": "mine", "rank": 8, "learning_rate": 1.0, "weight_rms": 0.0, "targets": ("q_proj",)}
    assert find_recipes(path) == (
        replace(TEXT, **wanted),  # type: ignore[arg-type]
        replace(CELLS, **wanted, steps=5),  # type: ignore[arg-type]
    )
    path = write(tmp_path, "learning_rate = 1e-3\nweight_rms = 0.04\n")
    assert {(r.learning_rate, r.weight_rms) for r in find_recipes(path)} == {(1e-3, 0.04)}
    path = write(tmp_path, "steps = 9\n")
    assert {r.weight_rms for r in find_recipes(path)} == {TEXT.weight_rms}
    path = write(tmp_path, 'base = "paper-bbh"\nname = "bbh-2"\n')
    assert find_recipes(path) == tuple(replace(r, name="bbh-2") for r in RECIPES["paper-bbh"])
    assert recipe(path, ROWS).name == "bbh-2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepps = 3", "unknown key 'stepps'; known are: name, rank"),
        ("[cells]\nbase = 'quick'", r"mine.toml, \[cells\] has the unknown key 'base'"),
        ("steps = 2.5", "sets steps to 2.5; it must be a whole number"),
        ("steps = true", "sets steps to True; it must be a whole number"),
        ("steps = 0", "'mine' sets steps to 0; it must be at least 1"),
        ("learning_rate = 'fast'", "sets learning_rate to 'fast'; it must be a number"),
        ("learning_rate = -1.0", "sets learning_rate to -1.0; it must be a number above 0"),
        ("learning_rate = inf", "sets learning_rate to inf"),
        ("learning_rate = nan", "sets learning_rate to nan"),
        ("learning_rate = 1" + "0" * 400, "sets learning_rate to a number without bounds"),
        ("warmup = 2", "sets warmup to 2.0; it must be a share from 0 to 1"),
        ("targets = 'q_proj'", "sets targets to 'q_proj'; it must be a list of names"),
        ("targets = []", "sets targets to .*at least one layer"),
        ("augmentations = ['colour']", "'colour'; choose from: order, symbols"),
        ("loss = 'all'", "sets loss to 'all'; it must be all-outputs or last-output or all-tokens"),
        ("form = 'chat'", "it must be in-context or direct"),
        ("data = 'all'", "it must be sampled or leave-one-out or leave-two-out"),
        ("base = 'best'", "sets base to 'best'; it must be one of: quick, standard"),
        ("base = 3", "sets base to 3"),
        ("text = 3", r"sets text to 3; it must be a table, \[text\]"),
        ("name = 'a b'", "sets name to 'a b'; it must be letters"),
        ("steps =", "is not TOML"),
    ],
)
def test_what_a_file_can_not_say_is_named_with_value_key_and_remedy(
    tmp_path: Path, text: str, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TaskError, match=says) as caught:
        find_recipes(path)
    assert "mine" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="none.toml can't be read .*correct the path"):
        find_recipes(str(tmp_path / "none.toml"))
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match="is not TOML"):
        find_recipes(str(tmp_path / "mine.toml"))


def test_every_value_of_a_recipe_is_checked() -> None:
    assert set(RANGES) | {"augmentations"} == {f.name for f in fields(Recipe)}
    with pytest.raises(TaskError, match="'mine' sets batch to 0"):
        Recipe("mine", batch=0)


def test_a_direct_recipe_runs_over_single_demonstrations() -> None:
    size = TaskSize("qa1", 10, 1000, 100, 5.0, 8)
    direct = replace(TEXT, form="direct")
    assert size.train_tokens(direct) == TEXT.steps * TEXT.batch * 100 < size.train_tokens(TEXT)


@pytest.mark.parametrize("base", ["direct", "context"])
def test_a_search_is_of_training_in_context(tmp_path: Path, base: str) -> None:
    with pytest.raises(TaskError, match="sets search to 2 and form to.*set search to 0"):
        find_recipes(write(tmp_path, f'base = "{base}"\nsearch = 2.0\n'))
