"""The process that trains for another: `python -m ttt.worker`. Its death is nobody's but that of one training.

JSON lines on standard input and output. First `{"load": …}`, then `{"train": …}` one at a time, `{"stop": true}` to
cancel; back come `{"ready": true}`, `{"step": [step, of, loss]}`, `{"done": report}`, `{"failed": [kind, text]}` and
`{"beat": true}` each second. It ends with its standard input. The other side is `ttt.executor`.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

BEAT_S = 1.0


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is none of our lines
    lock = threading.Lock()

    def say(**item: Any) -> None:
        with lock:
            out.write(json.dumps(item) + "\n")
            out.flush()

    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(sys.stdin, inbox, stop), daemon=True).start()
    threading.Thread(target=_beat, args=(say,), daemon=True).start()
    from ttt.process import prepare

    prepare()
    from ttt.engine import Engine
    from ttt.errors import TTTError

    engine: Engine | None = None
    while True:
        item = inbox.get()
        try:
            if "load" in item:
                engine = _load(item["load"])
                say(ready=True)
            elif engine is not None:
                say(done=_train(engine, item["train"], say, stop))
        except TTTError as error:
            say(failed=[type(error).__name__, str(error)])
        except Exception as error:  # told to the other side, which raises it
            say(failed=["TrainingFailed", f"Training failed in its process: {error!r:.500}"])


def _listen(stdin: TextIO, inbox: queue.Queue[dict[str, Any]], stop: threading.Event) -> None:
    for line in stdin:
        item = json.loads(line)
        if "stop" in item:
            stop.set()
        else:
            stop.clear()  # one that came too late was for the training before
            inbox.put(item)
    os._exit(0)  # whoever asked is gone


def _beat(say: Any) -> None:
    while True:
        time.sleep(BEAT_S)
        try:
            say(beat=True)
        except OSError:
            os._exit(0)


def _load(given: dict[str, Any]) -> Any:
    from dataclasses import replace

    from ttt.engine import Engine
    from ttt.model import ModelSource, load

    if given["memory_bytes"]:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (given["memory_bytes"], most))
    source = ModelSource(given["name"], Path(given["folder"]), given["revision"])
    loaded = load(source, given["device"], given["dtype"])
    return Engine(replace(loaded, as_turns=given["as_turns"]))


def _train(engine: Any, given: dict[str, Any], say: Any, stop: threading.Event) -> dict[str, Any]:
    from ttt.executor import read_beginning
    from ttt.recipes import Recipe
    from ttt.task import Demonstration, Task
    from ttt.train import TrainRequest, TrainStep, train_adapter

    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["recipe"].items()}
    recipe = Recipe(**values)
    task = Task(tuple(Demonstration(*pair) for pair in given["demonstrations"]), given["instruction"])
    begin = given["begin"] and read_beginning(given["begin"], str(engine.loaded.model.device))
    request = TrainRequest(task, recipe, given["seed"], Path(given["folder"]), given["name"], begin or None)

    def emit(step: TrainStep) -> None:
        say(step=[step.step, step.of, step.loss])

    report = asyncio.run(train_adapter(engine, request, emit, stop.is_set))
    return asdict(report) | {"reached": None}


if __name__ == "__main__":
    main()
