"""`ttt-router chat`: a conversation on the terminal. Replies go to stdout, all else to stderr."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from router.cli.options import DataDir, Device, Dtype, Model, Prefer, RecipeOption, Votes, settings_of
from router.cli.progress import Reporter, ctrl_c
from router.cli.render import columns, duration, receipt_lines, shortened
from router.errors import exit_code
from router.events import AnswerGrew, Event

if TYPE_CHECKING:
    from router.chat import Chat

STOPPING = (
    "Ctrl-C: training stops at its next step, and in-context learning answers. Once more ends the chat."
)
HELP = """\
Say something, and correct the answer when it is wrong: "no, it should be …". Several lines: end each but
the last with a backslash.
  /demo INPUT => OUTPUT   add a demonstration       /demos          the demonstrations so far
  /right                  the last answer was right  /wrong [ANSWER]  it was wrong; the right one
  /why                    why it was answered so     /cost           seconds of this session
  /prefer fast|balanced|accurate                     /mode wait|background|never
  /save NAME  /load NAME  conversations by name      /history        those that are kept
  /new                    forget this conversation   /quit"""


def chat(
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", metavar="NAME", help="Go on with this one, or begin it.")
    ] = "last",
    mode: Annotated[
        Literal["wait", "background", "never"] | None,
        typer.Option("--mode", help="Train before an answer, behind it, or not."),
    ] = None,
    prefer: Prefer = None,
    recipe: RecipeOption = None,
    votes: Votes = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    data_dir: DataDir = None,
) -> None:
    """Talk with the router; it learns from being corrected.

    Replies go to stdout; progress and all else to stderr. Ctrl-C ends a training and has in-context learning
    answer. The conversation is kept, and goes on the next time, also where it was broken off.

    \b
    Examples:
      ttt-router chat
      ttt-router chat --conversation dates --mode background
      printf 'a -> 1\\\\\\nb -> 2\\\\\\nc ->\\n' | ttt-router chat -c new
    """
    settings = settings_of(
        model=model, device=device, dtype=dtype, data_dir=data_dir, recipe=recipe, votes=votes
    )
    with Reporter() as reporter:
        reporter.say(f"Loading {settings.model}")
        from router.agent import Router
        from router.chat import Chat

        with Router.open(settings, progress=reporter.say) as router:
            for note in router.parts.notes:
                reporter.keep(note)
            opened = Chat(router, conversation)
            try:
                if prefer is not None:
                    opened.change(prefer=prefer)
                if mode is not None:
                    opened.change(when=mode)
                _talk(opened, reporter)
            finally:
                opened.close()


def _talk(chat: Chat, reporter: Reporter) -> None:
    n = len(chat.talk["messages"])
    reporter.keep(f"Conversation {chat.name!r}, {n} messages so far; /help lists the commands.")
    if chat.unanswered:
        reporter.keep(f"Going on with {shortened(chat.unanswered)}, which was not answered.")
        _answer(chat, reporter, chat.go_on)
    while (text := _read()) is not None:
        if not text.strip():
            continue
        try:
            if not text.startswith("/"):
                _answer(chat, reporter, lambda on, stop, said=text: chat.say(said, on, stop))  # type: ignore[misc]
            elif not _command(chat, reporter, text):
                return
        except Exception as error:
            if exit_code(error) is None:
                raise
            reporter.keep(f"error: {' '.join(str(error).split())}")


def _read() -> str | None:
    """What the user says next; None at the end."""
    lines: list[str] = []
    while True:
        if sys.stdin.isatty():
            print("> " if not lines else ". ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return "\n".join(lines) if lines else None
        line = line.rstrip("\n")
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)


def _answer(
    chat: Chat, reporter: Reporter, ask: Callable[[Callable[[Event], None], Callable[[], bool]], str]
) -> None:
    """Ask, and write the reply as it grows."""
    stop, said = threading.Event(), ""

    def follow(event: Event) -> None:
        nonlocal said
        if isinstance(event, AnswerGrew):
            print(event.text[len(said) :], end="", flush=True)
            said = event.text
        else:
            reporter.event(event)

    with ctrl_c(STOPPING, stop.set):
        reply = ask(follow, stop.is_set)
    print(reply[len(said) :] if reply.startswith(said) else f"\n{reply}", flush=True)


def _command(chat: Chat, reporter: Reporter, text: str) -> bool:
    """Do what a line that begins with `/` says; False to end."""
    name, _, rest = text[1:].partition(" ")
    rest = rest.strip()
    match name, rest:
        case "quit" | "exit", "":
            return False
        case "help", "":
            tell = HELP
        case "demo", _ if " => " in rest:
            chat.demonstrate(*rest.split(" => ", 1))
            tell = f"The task has {len(chat.task.demonstrations)} demonstration(s) now."
        case "demos", "":
            shown = chat.task.demonstrations
            tell = (
                "\n".join(f"{shortened(d.input, 60)} => {shortened(d.output, 40)}" for d in shown)
                or "None yet."
            )
        case "right", "":
            tell = chat.say("right") if _has_answer(chat) else "Nothing was answered yet."
        case "wrong", "":
            chat.wrong()
            tell = "Noted as wrong. With /wrong ANSWER it becomes a demonstration."
        case "wrong", answer:
            tell = chat.say(f"correction: “{answer}”") if _has_answer(chat) else "Nothing was answered yet."
        case "why", "":
            tell = (
                "\n".join(receipt_lines(chat.receipt, 100))
                if chat.receipt
                else "Nothing was answered in this session."
            )
        case "cost", "":
            rows = [(step, duration(s)) for step, s in chat.costs.by_step.items()]
            whole = ("all", duration(sum(chat.costs.by_step.values())))
            tell = "\n".join([f"{chat.costs.answers} answer(s) in this session", *columns([*rows, whole])])
        case "prefer", _ if rest:
            chat.change(prefer=rest)
            tell = f"Preference: {rest}."
        case "mode", _ if rest:
            chat.change(when=rest)
            tell = f"Mode: {rest}."
        case "save", _ if rest:
            chat.save(rest)
            tell = f"Saved; going on as {rest!r}."
        case "load", _ if rest:
            chat.load(rest)
            tell = f"Conversation {rest!r}, {len(chat.talk['messages'])} messages."
        case "history", "":
            tell = "\n".join(chat.names()) or "None is kept."
        case "new", "":
            chat.begin()
            tell = "Forgotten."
        case _:
            tell = f"{shortened(text)} is no command, or lacks something; /help lists them."
    for line in tell.splitlines():
        reporter.keep(line)
    return True


def _has_answer(chat: Chat) -> bool:
    messages = chat.talk["messages"]
    return bool(messages) and str(len(messages) - 1) in chat.talk["own"]
