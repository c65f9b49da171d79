"""`ttt-router serve`: the OpenAI-compatible server. FastAPI and uvicorn are imported when it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from router.cli.options import (
    DataDir,
    Device,
    Dtype,
    Model,
    Prefer,
    RecipeOption,
    Votes,
    Worth,
    check_worth,
    settings_of,
)
from router.cli.progress import Reporter


def serve(
    host: Annotated[str, typer.Option("--host", metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="P", min=0, max=65535, help="0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="TTT_ROUTER_API_KEY",
            show_envvar=True,
            help="Asked of every client; needed to listen beyond this machine.",
        ),
    ] = "",
    when: Annotated[
        Literal["wait", "background", "never"],
        typer.Option(
            "--when", help="Train before an answer, behind it, or not, where a request does not say."
        ),
    ] = "background",
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=1, help="Questions waiting or answered; then 429.")
    ] = 64,
    drain: Annotated[
        float, typer.Option("--drain", metavar="S", min=0, help="Seconds trainings have after SIGTERM.")
    ] = 30.0,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write the bodies of requests to the log.")
    ] = False,
    prefer: Prefer = None,
    worth: Worth = None,
    recipe: RecipeOption = None,
    votes: Votes = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    data_dir: DataDir = None,
) -> None:
    """Serve clients of OpenAI's API.

    Answers at once and trains behind, unless told otherwise. Log lines go to stderr, without prompts. The
    server needs the extra: pip install 'ttt-router[server]'.

    \b
    Examples:
      ttt-router serve
      ttt-router serve --port 0 --when wait
      TTT_ROUTER_API_KEY=… ttt-router serve --host 0.0.0.0
    """
    check_worth(prefer, worth)
    settings = settings_of(
        model=model,
        device=device,
        dtype=dtype,
        data_dir=data_dir,
        prefer=prefer,
        worth_s=worth,
        recipe=recipe,
        votes=votes,
    )
    try:
        from router.server.options import ServerOptions
        from router.server.run import serve as run
    except ImportError as error:
        raise typer.BadParameter(
            f"the server needs {error.name}: pip install 'ttt-router[server]'.", param_hint="serve"
        ) from error
    options = ServerOptions(
        host, port, api_key, queue=queue, when=when, drain_s=drain, log_prompts=log_prompts
    )
    with Reporter() as reporter:
        reporter.say(f"Loading {settings.model}")
        run(
            settings,
            options,
            progress=reporter.say,
            on_start=lambda url: reporter.keep(f"Serving {settings.model} at {url}/v1"),
        )
