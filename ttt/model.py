"""Base models: found by name, and loaded with their tokenizer when they fit.

A name is a built-in one, a local folder (config.json + safetensors), a `.gguf` file or a hub id. What
identifies a model is its `revision`: the hub's commit, or a hash over weights, configuration and tokenizer.
Only safetensors are read, and no code that comes with a model is ever run. Knows nothing of prompts,
adapters or tasks, nor how files are fetched and kept (`model_files`).
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ttt.errors import ModelDamaged, ModelError, ModelNotFound, ModelTooLarge
from ttt.hardware import DTYPE_BYTES, Hardware, detect
from ttt.model_files import (
    BUILT_IN,
    DEFAULT_MODEL,
    MANIFEST,
    Progress,
    check_files,
    convert_gguf,
    fetch_built_in,
    folder_bytes,
    gib,
    last_line,
    quiet_transformers,
    read_manifest,
    revision,
    weight_files,
    weight_shapes,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEMORY_MARGIN = 2.25
"""Memory needed ÷ bytes of the weights: a copy with an adapter merged in, and room for activations and the key-value
cache."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A base model that is on this machine."""

    name: str
    """As the user gave it."""
    folder: Path
    revision: str
    """`sha256:…` or `commit:…`; part of what identifies an adapter."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model in memory, in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str
    name: str
    n_parameters: int
    n_nonembedding: int
    """Parameters without the token embeddings and the output head."""
    context_length: int
    """Tokens."""
    as_turns: bool = False
    """Whether few-shot tasks are written as turns of the model's chat template."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, from the generation settings and the tokenizer."""
        config = self.model.generation_config
        given = config.eos_token_id if config is not None else None
        listed = given if isinstance(given, list) else [] if given is None else [given]
        own = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*listed, *([own] if isinstance(own, int) else [])]))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What can be known of a model without loading it."""

    source: ModelSource
    architecture: str
    n_parameters: int
    n_nonembedding: int
    n_bytes: int
    """Of the weight files."""
    context_length: int
    """Tokens."""

    def memory_bytes(self, dtype: str) -> int:
        """Memory that loading and using it needs, in bytes."""
        return memory_needed(self.n_parameters, dtype)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A line of the list of models."""

    name: str
    kind: str
    """`built-in` or `gguf`."""
    folder: Path | None
    """None when it is not fetched yet."""
    n_bytes: int
    """On disk when fetched, else to fetch."""


# ---------------------------------------------------------------------------------------------- finding


def default_cache_dir() -> Path:
    """`$TTT_ROUTER_CACHE`, else the user's cache folder, e.g. `~/.cache/ttt-router`."""
    given = os.environ.get("TTT_ROUTER_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("ttt-router", appauthor=False)


def resolve(
    name: str = DEFAULT_MODEL,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    *,
    fetch: bool = True,
) -> ModelSource:
    """The model under this name, fetched first when it is not on this machine.

    Args:
        name: a built-in name, a local folder, a `.gguf` file, or a hub id (`organisation/model`).
        cache_dir: where built-in and GGUF models are kept; `default_cache_dir()` when None.
        progress: gets a message at each step of a fetch.
        fetch: False to take only what is on this machine already.

    Raises:
        ModelNotFound: nothing under this name, or it is not on this machine and can't be fetched.
        ModelDamaged: a fetched or kept file is not what it must be.
        ModelError: the fetch failed or the cache folder can't be written.
    """
    models = (cache_dir or default_cache_dir()) / "models"
    say = progress or (lambda message: None)
    if name in BUILT_IN:
        folder = models / name
        if not fetch and not folder.exists():
            raise ModelNotFound(
                f"The built-in model {name!r} is not fetched yet: run `ttt-router model pull {name}`."
            )
        return ModelSource(name, *_kept(fetch_built_in(BUILT_IN[name], models, say)))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return ModelSource(name, *_kept(convert_gguf(path, models, say)))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(
                f"The folder {name} has no config.json, so it holds no Hugging Face model: "
                "give the folder that save_pretrained wrote."
            )
        return ModelSource(name, path, revision(path))
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name):
        return _resolve_hub(name, say, fetch)
    raise ModelNotFound(f"No model {name!r}: {_possible()}.")


def _possible() -> str:
    return (
        f"give a built-in name ({', '.join(BUILT_IN)}), a local folder with config.json, a .gguf file, "
        "or a hub id such as organisation/model"
    )


def _resolve_hub(name: str, say: Progress, fetch: bool) -> ModelSource:
    import huggingface_hub
    from huggingface_hub import errors

    say(f"Looking for {name} on the hub")
    try:
        found = huggingface_hub.snapshot_download(
            name,
            allow_patterns=["*.json", "model*.safetensors", "*.jinja", "*.txt", "tokenizer.model"],
            ignore_patterns=["*/*"],
            local_files_only=not fetch,
        )
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"The hub model {name!r} is gated: accept its terms on its page and log in with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelNotFound(f"No folder and no hub model {name!r}: {_possible()}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelNotFound(
            f"No folder {name!r} and no copy of such a hub model on this machine, and the hub is not reachable "
            f"(no network, or offline mode): {_possible()}."
        ) from error
    except OSError as error:
        raise ModelError(
            f"Fetching {name!r} from the hub failed ({last_line(str(error))}): try again."
        ) from error
    folder = Path(str(found))
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"The hub model {name!r} has no config.json, so transformers can't load it.")
    return ModelSource(name, folder, f"commit:{folder.name}")


def list_models(cache_dir: Path | None = None) -> list[ListedModel]:
    """The built-in models, fetched or not, and the converted GGUF files in the cache."""
    models = (cache_dir or default_cache_dir()) / "models"
    listed = []
    for model in BUILT_IN.values():
        folder = models / model.name
        kept = folder.is_dir()
        listed.append(
            ListedModel(
                model.name,
                "built-in",
                folder if kept else None,
                folder_bytes(folder) if kept else model.n_bytes,
            )
        )
    for folder in sorted(models.glob("gguf-*")):
        listed.append(ListedModel(str(read_manifest(folder)["source"]), "gguf", folder, folder_bytes(folder)))
    return listed


def model_info(
    name: str = DEFAULT_MODEL, cache_dir: Path | None = None, *, verify: bool = False
) -> ModelInfo:
    """What can be known of a model on this machine without loading it; nothing is fetched.

    Args:
        verify: hash every file of a kept model again and compare with its manifest.

    Raises:
        ModelNotFound, ModelDamaged: as `resolve`.
    """
    from transformers import AutoConfig

    source = resolve(name, cache_dir, fetch=False)
    if verify and (source.folder / MANIFEST).is_file():
        check_files(source.folder, hashes=True)
    try:
        config = AutoConfig.from_pretrained(source.folder, local_files_only=True).get_text_config()
    except _unreadable() as error:
        raise ModelError(
            f"transformers can't read the configuration of {name} in {source.folder} ({last_line(str(error))}): "
            "use a causal language model that this version of transformers knows."
        ) from error
    shapes = weight_shapes(source.folder)
    counts = {key: math.prod(shape) for key, shape in shapes.items()}
    # Embeddings and output head are the matrices (vocabulary, hidden).
    embeddings = sum(
        counts[key] for key, shape in shapes.items() if len(shape) == 2 and shape[0] == config.vocab_size
    )
    total = sum(counts.values())
    return ModelInfo(
        source=source,
        architecture=(config.architectures or [config.model_type])[0],
        n_parameters=total,
        n_nonembedding=total - embeddings,
        n_bytes=sum(path.stat().st_size for path in weight_files(source.folder)),
        context_length=_context_length(config, name),
    )


def _unreadable() -> tuple[type[Exception], ...]:
    """What transformers raises for files that it does not know, or with values of the wrong kind."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        StrictDataclassError,
    )


def _kept(folder: Path) -> tuple[Path, str]:
    check_files(folder)
    return folder, str(read_manifest(folder)["revision"])


# ---------------------------------------------------------------------------------------------- loading


def memory_needed(n_parameters: int, dtype: str) -> int:
    """Bytes that a model of this size needs in memory to be used."""
    return int(n_parameters * DTYPE_BYTES[dtype] * MEMORY_MARGIN)


def check_fits(name: str, n_parameters: int, hardware: Hardware) -> None:
    """Raise ModelTooLarge when the model does not fit in the device's free memory."""
    needed = memory_needed(n_parameters, hardware.dtype)
    if needed > hardware.memory_free_bytes:
        smaller = ", dtype bfloat16" if hardware.dtype == "float32" else ""
        raise ModelTooLarge(
            f"{name} needs about {gib(needed)} in {hardware.dtype} ({n_parameters / 1e6:,.0f} M parameters) and "
            f"{hardware.device} has {gib(hardware.memory_free_bytes)} of {gib(hardware.memory_total_bytes)} free: "
            f"choose a smaller model{smaller} or another device, or free some memory."
        )


def load(
    source: ModelSource, device: str = "auto", dtype: str = "auto", *, memory_check: bool = True
) -> LoadedModel:
    """Load a model and its tokenizer, in evaluation mode, on `device` in `dtype` (see `hardware.detect`).

    Raises:
        ModelTooLarge: it does not fit in free memory; told before anything is loaded when `memory_check`.
        ModelDamaged: weights are missing, truncated or of another shape than the configuration says.
        ModelError: transformers can't load it, or the device is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    hardware = detect(device, dtype)
    folder = source.folder
    n_stored = sum(math.prod(shape) for shape in weight_shapes(folder).values())
    if memory_check:
        check_fits(source.name, n_stored, hardware)
    auto_model: Any = AutoModelForCausalLM  # its annotations don't know output_loading_info
    try:
        model, report = auto_model.from_pretrained(
            folder,
            dtype=hardware.torch_dtype(),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = model.to(hardware.device).eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelTooLarge(
            f"{source.name} does not fit in the memory of {hardware.device}: choose a smaller model."
        ) from error
    except _unreadable() as error:
        raise ModelError(
            f"transformers can't load {source.name} from {folder} ({last_line(str(error))}): "
            "use a causal language model with safetensors and its tokenizer files."
        ) from error
    # transformers fills what is missing with random numbers, which must not pass for a model.
    wrong = sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"])
    if wrong:
        raise ModelDamaged(
            f"The weights of {source.name} lack or contradict {len(wrong)} tensor(s) that its configuration wants, "
            f"the first {wrong[0]}: get the model again."
        )
    total = sum(p.numel() for p in model.parameters())
    heads = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings = {id(p): p.numel() for module in heads if module is not None for p in module.parameters()}
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        revision=source.revision,
        name=source.name,
        n_parameters=total,
        n_nonembedding=total - sum(embeddings.values()),
        context_length=_context_length(model.config.get_text_config(), source.name),
    )


def _context_length(config: Any, name: str) -> int:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise ModelError(f"The configuration of {name} has no max_position_embeddings: use another model.")
    return length
