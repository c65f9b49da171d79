"""Fixtures for all tests: isolation from the user's folders and the network, and tiny random models."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# A shell that starts tests behind it has them ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any library reads it: tests reach no hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

from ttt.errors import ModelDamaged, ModelError
from ttt.model import default_cache_dir, resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

settings.register_profile("any machine", deadline=None)  # one that is busy with other work is no failure
settings.load_profile("any machine")

USER_CACHE = default_cache_dir()
"""Where the real model is kept between runs; read before isolation."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home for caches, data and settings; none of the user's TTT_ROUTER_* variables."""
    for name in list(os.environ):
        if name.startswith("TTT_ROUTER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TTT_ROUTER_EXECUTOR", "thread")  # on large machines, too
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("TTT_ROUTER_CACHE", str(home / "cache"))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(home / name.split("_")[1].lower()))
    return home


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, 300 tokens, with bos, eos and pad; any text survives encode and decode."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [
        "input: the quick brown fox output: 0 1 2 3\n",
        "Q: what is it? A: yes, no\n\nthe answer is the one",
    ]
    tokenizer.train_from_iterator(corpus * 20, trainer)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]


def _save_tiny(folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Path:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a random two-layer Llama with tied embeddings."""
    from transformers import LlamaConfig

    config = LlamaConfig(**_common(tiny_tokenizer), tie_word_embeddings=True)  # type: ignore[arg-type]
    return _save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama", config, tiny_tokenizer)


CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_chat(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a chat template."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    shutil.copytree(tiny_llama, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a random two-layer Qwen2 with an output head of its own."""
    from transformers import Qwen2Config

    config = Qwen2Config(**_common(tiny_tokenizer), tie_word_embeddings=False)  # type: ignore[arg-type]
    return _save_tiny(tmp_path_factory.mktemp("models") / "tiny-qwen2", config, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of a random Gemma 3 text model: one layer with a sliding window of 16 tokens, one without."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        **_common(tiny_tokenizer),  # type: ignore[arg-type]
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    return _save_tiny(tmp_path_factory.mktemp("models") / "tiny-gemma3", config, tiny_tokenizer)


@pytest.fixture(params=["tiny_llama", "tiny_qwen2", "tiny_gemma3"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Folder of each tiny architecture in turn."""
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the real built-in model, from the user's cache; tests with it are marked slow."""
    try:
        return resolve("smollm2-135m", cache_dir=USER_CACHE).folder
    except ModelDamaged:
        raise
    except ModelError as error:
        pytest.skip(f"the built-in model can't be had here: {error}")
