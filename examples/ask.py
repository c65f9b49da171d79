"""Ask a few-shot task, follow what happens, and say whether the answer was right.

    python examples/ask.py

The model and the data folder are those of the settings (`TTT_ROUTER_MODEL`, `TTT_ROUTER_DATA_DIR`).
"""

from pathlib import Path

from router.agent import Router
from router.events import Decided, Done, TrainingStep
from ttt.formats import read_demonstrations
from ttt.task import Task

task = Task(read_demonstrations(Path(__file__).parent / "dates.csv"), name="dates to ISO")

with Router.open(prefer="balanced") as router:
    for event in router.stream(task, ["7 July 2007", "19 December 2020"]):
        match event:
            case Decided(decision):
                print(decision.reason)
            case TrainingStep(phase, step, of, loss):
                print(f"{phase} step {step} of {of}, loss {loss:.2f}")
            case Done(receipt):
                print(*receipt.texts, sep="\n")
                print(f"{receipt.arm} in {receipt.seconds:.1f} s, episode {receipt.episode_id}")
    router.feedback(receipt.episode_id, answer="2007-07-07", query=0)
