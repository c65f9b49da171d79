"""Training in a process of its own: what it takes down when it dies is one training.

The process loads the base model once more and then trains one adapter at a time (see `ttt.worker`). It costs the
model's memory again and shares no passes with other trainings; a crash, a kill or memory that runs out ends it alone,
and the next training starts another. Knows nothing of when to train.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from ttt import errors
from ttt.errors import Cancelled, TrainingFailed, TTTError
from ttt.hardware import memory
from ttt.model import memory_needed
from ttt.train import Beginning, TrainReport, TrainRequest, TrainStep

if TYPE_CHECKING:
    from ttt.hardware import Hardware
    from ttt.model import ModelSource

Kind = Literal["thread", "process"]
STOP_S = 1.5
"""Given to a training that is cancelled, before its process is ended."""
SILENT_S = 60.0
"""Without a heartbeat, after which the process is given up."""
POLL_S = 0.05
LEAST_CORES = 4


def choose(wanted: str, hardware: Hardware, n_parameters: int) -> tuple[Kind, str]:
    """Where to train, and why: as wanted or, for `auto`, in a process where the machine can hold the model twice.

    Args:
        hardware: with the model not loaded yet.
    """
    if wanted == "thread":
        return "thread", "trains in this process, as set"
    if wanted == "process":
        return "process", "trains in a process of its own, as set"
    if hardware.device != "cpu":
        return "thread", f"trains in this process: {hardware.device} holds the model once"
    if hardware.cores < LEAST_CORES:
        return "thread", f"trains in this process: {hardware.cores} core(s), a second one needs {LEAST_CORES}"
    if 2 * memory_needed(n_parameters, hardware.dtype) > hardware.memory_free_bytes / 2:
        return "thread", "trains in this process: half of the free memory does not hold the model twice"
    return "process", "trains in a process of its own, since the machine holds the model twice"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one training may take."""

    memory_bytes: int = 0
    """Of the process, the model included; 0 is no limit."""
    memory_share: float = 0.0
    """In place of a number of bytes: of what is free when the process starts."""
    seconds: float = 3600.0


class Worker:
    """One training process, started at the first training; `train` may be called from several event loops. Close it
    when done."""

    def __init__(
        self,
        source: ModelSource,
        device: str,
        dtype: str,
        *,
        as_turns: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._load = {
            "name": source.name,
            "folder": str(source.folder),
            "revision": source.revision,
            "device": device,
            "dtype": dtype,
            "as_turns": as_turns,
        }
        self.limits = limits or Limits()
        self._process: subprocess.Popen[str] | None = None
        self._inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._heard = threading.Event()
        """Set at each heartbeat."""
        self._turn = threading.Lock()
        self._ready = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def train(
        self,
        request: TrainRequest,
        emit: Callable[[TrainStep], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
        waits: Callable[[], None] = lambda: None,
    ) -> TrainReport:
        """As `train_adapter`, without `pause_at` and `keep`; `request.folder` is needed.

        Args:
            waits: called several times a second until the training ends.

        Raises:
            TrainingFailed: also where the process could not start, died, was silent or took too long.
        """
        while not self._turn.acquire(blocking=False):
            _check(should_stop)
            waits()
            await asyncio.sleep(POLL_S)
        done = False
        try:
            _check(should_stop)
            self._start(request)
            report = await self._follow(emit, should_stop, waits)
            done = True
            return report
        except TTTError as error:
            done = self._ready and getattr(error, "told", False)
            raise
        finally:
            if not done:  # in what state it is nobody knows
                self.close()
            self._turn.release()

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(30)

    def _start(self, request: TrainRequest) -> None:
        assert request.folder is not None
        try:
            begin = None if request.begin is None else write_beginning(request.begin, request.folder)
            self._ensure()
        except (OSError, SafetensorError) as error:
            raise TrainingFailed(
                f"The training process could not start ({error}); free some memory and disk space."
            ) from error
        self._send({"train": _plain(request) | {"begin": begin}})

    async def _follow(
        self, emit: Callable[[TrainStep], None], should_stop: Callable[[], bool], waits: Callable[[], None]
    ) -> TrainReport:
        started, silent_s = time.monotonic(), 0.0
        stopped: float | None = None
        while True:
            item: dict[str, Any] | None
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                await asyncio.sleep(POLL_S)
                waits()
                item = {}
            now = time.monotonic()
            silent_s = (
                0.0 if item or self._heard.is_set() else silent_s + POLL_S
            )  # not by the clock: this may sleep
            self._heard.clear()
            if item is None:
                raise TrainingFailed(self._epitaph())
            if "ready" in item:
                self._ready = True
            elif "step" in item:
                emit(TrainStep(*item["step"]))
            elif "done" in item:
                return TrainReport(**item["done"] | {"losses": tuple(item["done"]["losses"])})
            elif "failed" in item:
                raise _told(*item["failed"])
            if stopped is None and should_stop():
                stopped = now
                self._send({"stop": True})
            if stopped is not None and now - stopped > STOP_S:
                raise Cancelled("Training was cancelled and its process ended; the model is unchanged.")
            if silent_s > SILENT_S:
                raise TrainingFailed(
                    f"The training process was silent for {SILENT_S:g} s and was ended; try again."
                )
            if now - started > self.limits.seconds:
                raise TrainingFailed(
                    f"Training took longer than {self.limits.seconds:g} s, the limit, and was ended; use a recipe with "
                    "fewer steps."
                )

    def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        ours = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ttt.worker"],  # not from the folder where the user is
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._inbox, self._ready = queue.SimpleQueue(), False
        reading = (self._process, self._inbox, self._heard)
        threading.Thread(target=_read, args=reading, name="ttt-worker-reader", daemon=True).start()
        most = self.limits.memory_bytes or int(memory()[1] * self.limits.memory_share)
        self._send({"load": self._load | {"memory_bytes": most}})

    def _send(self, item: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(item) + "\n")
            self._process.stdin.flush()
        except OSError:  # it is dead, which its end of output tells, too
            return

    def _epitaph(self) -> str:
        assert self._process is not None
        code = self._process.wait(30)
        how = f"with exit code {code}"
        if code < 0:
            how = f"by {signal.Signals(-code).name}"
        return (
            f"The training process died {how}, as when memory runs out or somebody kills it; the model is unchanged, "
            "and the next training starts another."
        )


def _read(
    process: subprocess.Popen[str],
    inbox: queue.SimpleQueue[dict[str, Any] | None],
    heard: threading.Event,
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        item = json.loads(line)
        if "beat" in item:
            heard.set()
        else:
            inbox.put(item)
    inbox.put(None)


def _check(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Cancelled("Training was cancelled before it began; the model is unchanged.")


def _plain(request: TrainRequest) -> dict[str, Any]:
    return {
        "demonstrations": [[d.input, d.output] for d in request.task.demonstrations],
        "instruction": request.task.instruction,
        "recipe": asdict(request.recipe),
        "seed": request.seed,
        "folder": str(request.folder),
        "name": request.name,
    }


def write_beginning(begin: Beginning, folder: Path) -> str:
    """As a safetensors file for another process, which removes it; its path."""
    from safetensors.torch import save_file

    file = folder / "begin.safetensors"
    tensors = {"weights": begin.weights} | {f"moments.{k}": v for k, v in begin.moments.items()}
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(plain, file, {"losses": json.dumps(begin.losses)})
    return str(file)


def read_beginning(file: str, device: str) -> Beginning:
    """What `write_beginning` wrote; the file is gone then, since the folder is to hold the adapter alone."""
    from safetensors import safe_open

    with safe_open(file, "pt", device=device) as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - no mapping
        losses = tuple(json.loads(stored.metadata()["losses"]))
    os.unlink(file)
    weights = tensors.pop("weights")
    return Beginning(weights, {k.removeprefix("moments."): v for k, v in tensors.items()}, losses)


def _told(kind: str, text: str) -> Exception:
    """The error that the process raised; the process itself is well."""
    found = getattr(errors, kind, None)
    error: Exception = (
        found(text) if isinstance(found, type) and issubclass(found, Exception) else TrainingFailed(text)
    )
    error.told = True  # type: ignore[attr-defined]
    return error
