"""Test-time training as published, written the way a user of transformers and PEFT would today.

    python benchmarks/reference_ttt.py job.json

A job is {"model": folder, "out": folder, "rows": [[ids, labelled], …], "batch": 2, "learning_rate": 1e-3,
"steps": n}. Loads the model, trains a LoRA adapter for a fixed number of steps with logits over all tokens, saves
it, loads it again, and prints its seconds as JSON. Learning rate and steps are those with the lowest loss on
further items of two families that are not measured here, for SmolLM2-135M (the published 1e-4, for 8 billion
parameters, hardly moves it). Texts (`word_sorting`), 16 steps of two: 2.33 nats at 2.5e-4, 2.25 at 5e-4, 2.40 at
1e-3. Cells (`1d_move_2p`), 40 steps of two: 0.166 at 1e-3, 0.161 at 2e-3, 35 % right in both; 1e-3 was kept.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

TEXT_RATE, CELL_RATE = 5e-4, 1e-3
TEXT_STEPS, CELL_STEPS, BATCH = 16, 40, 2
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(model: Any, job: dict[str, Any]) -> tuple[Any, list[float], list[float]]:
    """The trained PEFT model, losses and seconds by step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import get_cosine_schedule_with_warmup

    torch.manual_seed(0)
    config = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM")
    peft = get_peft_model(model, config)
    peft.train()
    optimizer = torch.optim.AdamW(
        [p for p in peft.parameters() if p.requires_grad], lr=job["learning_rate"], weight_decay=0.0
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, job["of"] // 10), job["of"])
    losses, seconds = [], []
    for step in range(job["steps"]):
        started = time.perf_counter()
        rows = job["rows"][step * job["batch"] : (step + 1) * job["batch"]]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)
        for i, (row, labelled) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            wanted = torch.tensor(labelled)
            labels[i, : len(row)][wanted] = ids[i, : len(row)][wanted]
        loss = peft(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peft.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return peft, losses, seconds


def peak_bytes() -> int:
    """Most resident memory of this process so far; `ru_maxrss` would count the process that started it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def load(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def main(path: str) -> int:
    started = time.perf_counter()
    with open(path) as file:
        job = json.load(file)
    from peft import PeftModel

    peft, losses, steps = train(load(job["model"]), job)
    trained = time.perf_counter()
    peft.save_pretrained(job["out"])
    del peft
    PeftModel.from_pretrained(load(job["model"]), job["out"])
    ended = time.perf_counter()
    result = {
        "seconds": ended - started,
        "reload_s": ended - trained,
        "losses": losses,
        "steps": steps,
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
