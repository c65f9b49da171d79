"""Training recipes: named frozen values. docs/recipes.md has them side by side.

Rates go in proportion to the model's own weights (`Recipe.weight_rms`): the published 1e-4, for 8 billion parameters,
hardly moves a model of 135 million, whose weights are ten times as large.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ttt.augment import DEFAULT, check_names, symbol_alphabet
from ttt.errors import TaskError
from ttt.prompts import is_cells
from ttt.task import Task

Data = Literal["sampled", "leave-one-out", "leave-two-out"]
Form = Literal["in-context", "direct", "prefix"]
Loss = Literal["all-outputs", "last-output", "all-tokens"]
Rows = Literal["plain", "indexed", "long-indexed"]
SHORT = "-short"
"""Ends the name of a shorter training."""
LONG = 40
"""Cells of a row, on average over the demonstrations, from which on it is long."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter is trained. The recipe's hash is part of the adapter's key.

    Raises:
        TaskError: an impossible value; the message names recipe, key, value and remedy.
    """

    name: str
    rank: int = 32
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter (the published ones: query, value, output and MLP)."""
    learning_rate: float = 1e-3
    weight_rms: float = 0.0
    """Root mean square of the base weights that the rate was chosen on; it goes in proportion to that of the model at
    hand (the median over its adapted layers), since a step of the optimiser moves every weight of B as far, whatever
    it is added to. 0 takes the rate as it is."""
    steps: int = 32
    """At most; see `stop_loss`."""
    stop_loss: float = 0.01
    """When the mean loss of the last eight steps is below this, in nats a labelled token, what is left to learn is noise: the
    rate decays over a few more steps, and training ends. 0 never ends early."""
    batch: int = 1
    """Sequences a step."""
    probe_steps: int = 8
    """How many of the steps the probe takes, on either half of the demonstrations: the beginning of the training
    that goes on from them (see `crossfit`)."""
    warmup: float = 0.1
    """Share of the steps with a rising rate; cosine decay after."""
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    shots: int = 5
    """A training sequence holds at most so many demonstrations, in random order: for the same tokens, more
    and shorter steps."""
    sequence_tokens: int = 1536
    """And at most as many as fit in this."""
    augmentations: tuple[str, ...] = DEFAULT
    """Names of `augment.AUGMENTATIONS`; each sequence is a view drawn from those that apply to the task."""
    data: Data = "sampled"
    """Where sequences come from: `sampled` draws some demonstrations for each; `leave-one-out` makes a fixed
    set of tasks, each demonstration last once a copy; `leave-two-out` tops that up with those where one
    further demonstration is missing."""
    copies: int = 1
    """Augmented copies of each explicit task, every one with an order of its own."""
    data_tokens: int = 0
    """The fixed set ends once it holds so many tokens; 0 only ends it at `steps` × `batch` sequences."""
    form: Form = "in-context"
    """`direct` trains and answers input → output without demonstrations in the prompt. `prefix` trains no LoRA, but the
    keys and values of the demonstrations (context tuning, see `prefix`): each step predicts `batch` of them, one a
    sequence; `rank`, `alpha`, `targets`, `shots`, `sequence_tokens`, `augmentations` and `data` say nothing there."""
    loss: Loss = "all-outputs"
    """What is predicted: every answer of a sequence, only its last one, or all tokens."""
    rows: Rows = "plain"
    """How single rows of cells are written: `indexed` with a letter before every few cells (see `prompts`), `long-indexed`
    so where they are long."""
    short: int = 0
    """Steps of a shorter training (`shorter`) that a policy may choose in its place after the same probe; 0, as many
    as `steps`, or no more than a probe takes offers none."""
    search: float = 0.0
    """0 trains with these values. Otherwise they are where a search starts (see `search`), and this bounds further
    candidates and steps beyond these, as a multiple of the tokens of training with these values."""

    def __post_init__(self) -> None:
        for key, (fits, needed) in RANGES.items():
            value = getattr(self, key)
            if not fits(value):
                raise TaskError(f"The recipe {self.name!r} sets {key} to {value!r}; it must be {needed}.")
        if self.search and self.form != "in-context":
            raise TaskError(
                f"The recipe {self.name!r} sets search to {self.search:g} and form to {self.form!r}; candidates are "
                "judged in context: set search to 0, or form to 'in-context'."
            )
        try:
            check_names(self.augmentations)
        except TaskError as error:
            raise TaskError(f"The recipe {self.name!r} sets augmentations: {error}") from error

    @property
    def id(self) -> str:
        """Name and hash of all values, e.g. `standard-3f2a9c01`."""
        named = asdict(self)
        del named["short"]  # changes no training by this recipe itself
        if (
            self.rows == "plain"
        ):  # as before there was this key: adapters that were trained then are still found
            del named["rows"]
        values = json.dumps(named, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"

    def with_steps(self, steps: int) -> Recipe:
        return replace(self, steps=steps)

    @property
    def shorter(self) -> Recipe | None:
        """The shorter training, under a name of its own: its rate rises for as many steps, but for a third of them at most."""
        if not self.probed < self.short < self.steps:
            return None
        rising = min(self.warmup * self.steps, self.short / 3)
        return replace(
            self, name=f"{self.name}{SHORT}", steps=self.short, warmup=rising / self.short, short=0
        )

    @property
    def probed(self) -> int:
        """Steps of a probe: `probe_steps`, but at least one is left to the training on all demonstrations."""
        return max(1, min(self.probe_steps, self.steps - 1))


def _one_of(literal: Any) -> tuple[Any, str]:
    return (lambda value: value in get_args(literal)), " or ".join(get_args(literal))


_POSITIVE = (lambda value: 0 < value < math.inf), "a number above 0"
_NOT_NEGATIVE = (lambda value: 0 <= value < math.inf), "a number of at least 0"
_COUNT = (lambda value: value >= 1), "at least 1"

RANGES: dict[str, tuple[Any, str]] = {
    "name": (
        lambda value: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value) is not None,
        "letters, digits, dots, dashes and underscores",
    ),
    "rank": _COUNT,
    "alpha": _COUNT,
    "targets": (lambda value: len(value) > 0, "a list of at least one layer, such as q_proj"),
    "learning_rate": _POSITIVE,
    "weight_rms": _NOT_NEGATIVE,
    "steps": _COUNT,
    "probe_steps": _COUNT,
    "stop_loss": _NOT_NEGATIVE,
    "batch": _COUNT,
    "warmup": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "weight_decay": _NOT_NEGATIVE,
    "max_gradient_norm": _POSITIVE,
    "shots": _COUNT,
    "sequence_tokens": _COUNT,
    "data": _one_of(Data),
    "copies": _COUNT,
    "data_tokens": _NOT_NEGATIVE,
    "form": _one_of(Form),
    "loss": _one_of(Loss),
    "rows": _one_of(Rows),
    "short": _NOT_NEGATIVE,
    "search": (lambda value: value == 0 or 1 <= value < math.inf, "0 or a number of at least 1"),
}
"""What each value must be, and that in words."""


def as_written(task: Task, rows: str) -> Task:
    """The task as a recipe with these `rows` writes it."""
    if rows == "long-indexed":
        texts = [text.strip() for d in task.demonstrations for text in (d.input, d.output)]
        single = all(is_cells(text) and "\n" not in text for text in texts)
        long = sum(len(text.split()) for text in texts) >= LONG * len(texts) > 0
        return replace(task, indexed=single and long)
    return replace(task, indexed=rows == "indexed")


SMOLLM2_RMS = 0.19
"""Of SmolLM2-135M, on which rates were chosen. That of larger models is less by what their customary rates are: Gemma 3
270M has 0.04."""
TEXT = Recipe("standard", learning_rate=1e-3, weight_rms=SMOLLM2_RMS, steps=16, probe_steps=3, shots=10)
"""Without symbols to permute the same answers come round again: more steps memorise them. What three steps on halves have
not moved, six seldom do; and steps on all demonstrations teach more."""
CELLS = Recipe(
    "standard",
    learning_rate=2e-3,
    weight_rms=SMOLLM2_RMS,
    steps=40,
    probe_steps=10,
    warmup=0.5,
    shots=10,
    augmentations=("order", "symbols", "symmetry", "shift"),
)
"""Permuted symbols, mirrored and shifted cells make every step a new task, which bears twice the rate and more
steps; sequences as long as the prompt that is answered generalise better than twice as many of half the length.
The rate rises slowly, since a probe's steps at 2e-3 memorise half of the demonstrations and mislead."""


def _derived(name: str, **values: Any) -> tuple[Recipe, Recipe]:
    return replace(TEXT, name=name, **values), replace(CELLS, name=name, **values)


_QUICK = (
    replace(TEXT, name="quick", steps=TEXT.steps // 2),
    replace(CELLS, name="quick", steps=CELLS.steps // 2),
)
"""Half the steps of `standard`."""
_AUTO = (
    replace(TEXT, name="auto", search=1.08, steps=32, warmup=0.05, short=16),
    replace(CELLS, name="auto", search=1.15, steps=60, warmup=0.33, short=30, rows="long-indexed"),
)
"""Looks at what the first steps of `standard` have taught, and goes on accordingly, for one of two lengths. Of cells the longer
takes half as many steps again as `standard`, since it mirrors from the eleventh on, if at all; the rate rises over as many
steps, since a look at steps of a lower one sees less. Of texts twice as many: some rules are only learned then."""
_THOROUGH = (
    replace(TEXT, name="thorough", search=3.0),
    replace(_AUTO[1], name="thorough", search=3.0, short=0),
)
"""`auto` with room for other recipes."""
_DIRECT = _derived("direct", form="direct", batch=5)
"""Five single demonstrations a step; the published ablation finds it worse than in-context sequences."""
_CONTEXT = _derived(
    "context", form="prefix", learning_rate=1e-2, weight_rms=0.0, steps=40, batch=5, augmentations=("order",)
)
"""Context tuning (arXiv 2507.04221): predicts five demonstrations a step, each hidden from itself. At 1e-2 SmolLM2 learns as much
as at 3e-3, and sooner."""
_BBH = Recipe(
    "paper-bbh",
    rank=64,
    alpha=64,
    learning_rate=1e-3,
    weight_rms=SMOLLM2_RMS,
    steps=8,
    probe_steps=3,
    stop_loss=0.0,
    batch=5,
    shots=10,
    sequence_tokens=4096,
    augmentations=("order",),
)
"""arXiv 2411.07279, BIG-Bench-Hard: 40 random orders of ten demonstrations, loss on every answer, LoRA r64 α64,
cosine, 8 steps of 5. Scaled for small models: the rate, ten times the published 1e-4. Left out: the dropout of
.05, which the fused training does not have."""
_ARC = Recipe(
    "paper-arc",
    rank=128,
    alpha=128,
    targets=("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
    learning_rate=1e-3,
    weight_rms=SMOLLM2_RMS,
    steps=250,
    probe_steps=25,
    stop_loss=0.0,
    batch=2,
    shots=100,
    sequence_tokens=4096,
    augmentations=("order", "symbols", "symmetry", "shift", "scale", "tile"),
    data="leave-two-out",
    copies=10,
    data_tokens=250_000,
)
"""arXiv 2411.07279, ARC: leave-one-out tasks topped up with leave-two-out, all transformations, r128 on q, v and
MLP, batch 2, two epochs over at most 250 sequences (here: some 250,000 tokens). Scaled for small models: the
rate, twenty times the published 5e-5 (1B). α is ours; the first demonstration's answer counts in the loss, too."""

RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "quick": _QUICK,
    "standard": (TEXT, CELLS),
    "auto": _AUTO,
    "thorough": _THOROUGH,
    "direct": _DIRECT,
    "context": _CONTEXT,
    "paper-bbh": (_BBH, _BBH),
    "paper-arc": (_ARC, _ARC),
}
"""By name: the recipe for texts, and the one for tasks made of cells."""


def find_recipes(name: str) -> tuple[Recipe, Recipe]:
    """The recipes called `name`, or those of the TOML file that it names (see `recipe_files`): the one for
    texts, and the one for tasks made of cells.

    Raises:
        TaskError: there is none of this name, or the file is not usable.
    """
    if name.endswith(".toml"):
        from ttt.recipe_files import read_recipes

        return read_recipes(name)
    if name not in RECIPES:
        raise TaskError(
            f"Unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}, or name a .toml file of your own."
        )
    return RECIPES[name]


def fitting(recipes: tuple[Recipe, Recipe], task: Task) -> Recipe:
    """The one of the two that is for tasks like this."""
    return recipes[1] if symbol_alphabet(task) else recipes[0]


def probing(recipe: Recipe, task: Task) -> Recipe:
    """What a probe trains by: the recipe itself, or where that does not answer in context, the standard one."""
    return recipe if recipe.form == "in-context" else fitting(RECIPES["standard"], task)


def recipe(name: str, task: Task) -> Recipe:
    """The recipe called `name`, as it is for tasks like this one.

    Raises:
        TaskError: there is none of this name.
    """
    return fitting(find_recipes(name), task)
