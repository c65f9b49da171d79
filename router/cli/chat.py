"""`ttt-router chat`: a conversation on the terminal. Replies go to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from unicodedata import category

import typer

from router.cli.options import DataDir, Device, Dtype, Model, Prefer, RecipeOption, Votes, settings_of
from router.cli.progress import Reporter, ctrl_c
from router.cli.render import columns, counted, duration, event_line, receipt_lines, shortened
from router.conversation import note
from router.errors import exit_code
from router.events import AnswerGrew, Done, Event, FellBack, GuardDone, Started

if TYPE_CHECKING:
    from router.chat import Chat
    from router.receipt import Receipt

T = TypeVar("T")

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
  /save NAME  /load NAME  conversations by name      /history        this one, and those that are kept
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
                if left := router.outlive():
                    reporter.keep(
                        f"{counted(left, 'task')} that was left in the middle of training is trained behind."
                    )
                if prefer is not None:
                    opened.change(prefer=prefer)
                if mode is not None:
                    opened.change(when=mode)
                _talk(opened, reporter)
            finally:
                opened.close()


def _talk(chat: Chat, reporter: Reporter) -> None:
    n = len(chat.talk["messages"])
    reporter.keep(f"Conversation {chat.name!r}, {counted(n, 'message')} so far; /help lists the commands.")
    _go_on(chat, reporter)
    going_on = True
    _tell_behind(chat, reporter)
    while going_on and (text := _read(reporter)) is not None:
        if text.startswith("/"):
            going_on = _try(reporter, lambda said=text: _command(chat, reporter, said)) is not False  # type: ignore[misc]
        elif text.strip():
            _try(
                reporter,
                lambda said=text: _answer(chat, reporter, lambda on, stop: chat.say(said, on, stop)),  # type: ignore[misc]
            )
        _tell_behind(chat, reporter)


def _go_on(chat: Chat, reporter: Reporter) -> None:
    """Answer what was not answered when this conversation was broken off."""
    if chat.unanswered:
        reporter.keep(f"Going on with {shortened(chat.unanswered)}, which was not answered.")
        _try(reporter, lambda: _answer(chat, reporter, chat.go_on))


def _tell_behind(chat: Chat, reporter: Reporter) -> None:
    """What came of trainings behind earlier answers."""
    while chat.router.done_behind:
        receipt = chat.router.done_behind.popleft()
        chat.costs.add_behind(receipt)
        if receipt.adapter:
            reporter.keep(
                f"Trained behind in {duration(receipt.seconds)}: the next queries of this task use it."
            )


def _try(reporter: Reporter, work: Callable[[], T]) -> T | None:
    """`work`'s result; None where it failed for a reason that is told in a line."""
    try:
        return work()
    except Exception as error:
        if exit_code(error) is None:
            raise
        reporter.rest()
        reporter.keep(f"error: {' '.join(str(error).split())}")
        return None


def _read(reporter: Reporter) -> str | None:
    """What the user says next; None at the end."""
    reporter.rest()
    lines: list[str] = []
    while True:
        prompt = "> " if not lines else ". "
        try:
            line = _line(prompt)
        except KeyboardInterrupt:
            lines = []
            print("\nCtrl-C: nothing is being answered; Ctrl-D or /quit ends the chat.", file=sys.stderr)
            continue
        if line is None:
            return "\n".join(lines) if lines else None
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)


def _line(prompt: str) -> str | None:
    """One line of input without its end; None where there is none."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # not everywhere; without it a line can't be edited
            import readline  # noqa: F401 – changes what `input` does
        try:
            return input(prompt)
        except EOFError:
            return None
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _answer(
    chat: Chat, reporter: Reporter, ask: Callable[[Callable[[Event], None], Callable[[], bool]], str]
) -> None:
    """Ask, and write the reply as it grows; then what answered, and why."""
    stop, known, said = threading.Event(), set(chat.understood), ""
    answered: Receipt | None = None
    later: list[str] = []  # what must not come between two pieces of a reply

    def understood() -> None:
        for sentence in chat.understood:
            if sentence not in known:
                known.add(sentence)
                reporter.keep(sentence)

    def follow(event: Event) -> None:
        nonlocal said, answered
        understood()
        match event:
            case AnswerGrew():
                reporter.rest()
                print(_harmless(event.text[len(said) :]), end="", flush=True)
                said = event.text
            case Done(receipt):
                answered = receipt
            case FellBack() | GuardDone() | Started() if line := event_line(event):
                later.append(line)
            case _ if not said:
                reporter.step(event)

    with ctrl_c(STOPPING, stop.set):
        reply = ask(follow, stop.is_set)
    reporter.rest()
    print(_harmless(reply[len(said) :] if reply.startswith(said) else f"\n{reply}"), flush=True)
    understood()
    width = shutil.get_terminal_size().columns
    if answered is not None:
        later.append(f"{answered.arm}, {duration(answered.seconds)}: {answered.reason}")
    for line in dict.fromkeys(later):
        for part in textwrap.wrap(line, max(width, 40), initial_indent="  ", subsequent_indent="  "):
            reporter.keep(part)


def _harmless(text: str) -> str:
    """Without characters that a terminal takes for commands, where there is one."""
    if not sys.stdout.isatty():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if c not in "\n\t" and category(c) == "Cc" else c for c in text
    )


def _command(chat: Chat, reporter: Reporter, text: str) -> bool:
    """Do what a line that begins with `/` says; False to end."""
    from router.chat import NO_ANSWER

    name, _, rest = text[1:].partition(" ")
    rest = rest.strip()
    match name, rest:
        case "quit" | "exit", "":
            return False
        case "help", "":
            tell = HELP
        case "demo", _ if arrow := next((a for a in (" => ", " -> ") if a in rest), None):
            chat.demonstrate(*rest.split(arrow, 1))
            tell = note(chat.task)
        case "demos", "":
            shown = chat.task.demonstrations
            tell = (
                "\n".join(f"{shortened(d.input, 60)} => {shortened(d.output, 40)}" for d in shown)
                or "None yet."
            )
        case "right", "":
            tell = chat.say("right") if chat.has_answer else NO_ANSWER
        case "wrong", "":
            chat.wrong()
            tell = "Noted as wrong. With /wrong ANSWER it becomes a demonstration."
        case "wrong", answer:
            tell = chat.say(f"correction: “{answer}”") if chat.has_answer else NO_ANSWER
        case "why", "":
            width = shutil.get_terminal_size().columns
            tell = (
                "\n".join(receipt_lines(chat.receipt, width))
                if chat.receipt
                else "Nothing was answered in this session."
            )
        case "cost", "":
            rows = [(step, duration(s)) for step, s in chat.costs.by_step.items()]
            whole = ("all", duration(sum(chat.costs.by_step.values())))
            tell = "\n".join(
                [f"{counted(chat.costs.answers, 'answer')} in this session", *columns([*rows, whole])]
            )
        case "prefer", _:
            if rest:
                chat.change(prefer=rest)
            tell = f"Preference: {chat.talk['prefer'] or 'as in the settings'}."
        case "mode", _:
            if rest:
                chat.change(when=rest)
            tell = f"Mode: {chat.talk['when']}."
        case "save", _ if rest:
            chat.save(rest)
            tell = f"Saved; going on as {rest!r}."
        case "load", _ if rest:
            chat.load(rest)
            reporter.keep(f"Conversation {rest!r}, {counted(len(chat.talk['messages']), 'message')}.")
            _go_on(chat, reporter)
            tell = ""
        case "history", "":
            told = [f"{role:<9}  {shortened(text)}" for role, text in chat.talk["messages"]]
            kept = ", ".join(map(repr, chat.names())) or "none yet"
            tell = "\n".join([*told, f"Conversations that are kept: {kept}. This one is {chat.name!r}."])
        case "new", "":
            chat.begin()
            tell = "Forgotten."
        case _:
            tell = f"{shortened(text)} is no command, or lacks something; /help lists them."
    for line in tell.splitlines():
        reporter.keep(line)
    return True
