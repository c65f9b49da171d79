"""`ttt-router model`: which base models are here, fetching one, and what one is."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli.options import settings_of
from router.cli.progress import Reporter
from router.cli.render import columns

app = typer.Typer(
    help="Base models: list, fetch, describe.",
    no_args_is_help=False,
    rich_markup_mode=None,
    add_completion=False,
)

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[M]", help="Built-in name, folder, .gguf file or hub id; the set one if left out."
    ),
]


@app.command("list")
def list_() -> None:
    """List the built-in models and the converted GGUF files.

    \b
    Example:
      ttt-router model list
    """
    from ttt.model import list_models

    rows = [("NAME", "KIND", "SIZE", "WHERE")]
    for model in list_models():
        size = f"{model.n_bytes / 1e6:.0f} MB"
        where = str(model.folder) if model.folder else "not fetched yet"
        rows.append((model.name, model.kind, size if model.folder else f"{size} to fetch", where))
    print("\n".join(columns(rows)))


@app.command("pull")
def pull(model: Name = None) -> None:
    """Fetch a model, so that it is there without a network.

    \b
    Examples:
      ttt-router model pull
      ttt-router model pull organisation/model
    """
    from ttt.process import prepare

    prepare()
    from ttt.model import resolve

    with Reporter() as reporter:
        source = resolve(settings_of(model=model).model, progress=reporter.say)
    print(f"{source.name}  {source.revision}  {source.folder}")


@app.command("info")
def info(
    model: Name = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash all files again and compare with what was written.")
    ] = False,
) -> None:
    """Say what a model on this machine is, without loading it.

    \b
    Examples:
      ttt-router model info
      ttt-router model info smollm2-135m --verify
    """
    from ttt.process import prepare

    prepare()
    from ttt.hardware import DTYPE_BYTES
    from ttt.model import model_info
    from ttt.model_files import MANIFEST, gib

    found = model_info(settings_of(model=model).model, verify=verify)
    needs = ", ".join(f"{gib(found.memory_bytes(dtype))} in {dtype}" for dtype in DTYPE_BYTES)
    rows = [
        ("name", found.source.name),
        ("folder", str(found.source.folder)),
        ("revision", found.source.revision),
        ("architecture", found.architecture),
        ("parameters", f"{found.n_parameters:,}, of them {found.n_nonembedding:,} outside the embeddings"),
        ("weights", f"{gib(found.n_bytes)} on disk"),
        ("context", f"{found.context_length:,} tokens"),
        ("memory", f"{needs} (weights and work)"),
    ]
    if verify:
        kept = (found.source.folder / MANIFEST).is_file()
        rows.append(
            (
                "verified",
                "every file is what was written"
                if kept
                else "nothing to compare with: no manifest in the folder",
            )
        )
    print("\n".join(columns(rows)))
