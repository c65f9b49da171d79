"""GGUF files: whether one can be used, told in a sentence before anything is converted, and the conversion.

A GGUF file holds weights (often quantised), configuration and tokenizer in one. transformers reads those of the
architectures that it knows; they are dequantised to float32, since dequantised values are not exact in bfloat16.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt.errors import ModelDamaged, ModelError, ModelTooLarge
from ttt.hardware import memory
from ttt.model_files import gib, last_line, quiet_transformers

if TYPE_CHECKING:
    from gguf import GGUFReader

TOKENIZER = "tokenizer.ggml.model"


def check_gguf(path: Path) -> int:
    """Bytes that the file's weights take in float32.

    Raises:
        ModelDamaged: it is no GGUF file, or not a whole one.
        ModelError: it is one of several parts, has a quantisation or an architecture that can't be read, or no
            tokenizer.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    n_bytes = path.stat().st_size
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader raises whatever broken bytes lead it to
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelDamaged(
                    f"{path.name} can't be read: it is no GGUF file; use another one."
                ) from error
        raise ModelDamaged(
            f"{path.name} can't be read: its {n_bytes:,} bytes are no whole GGUF file ({error}), as after a download "
            "that broke off; get it again."
        ) from error
    needed = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
    if needed > n_bytes:
        raise ModelDamaged(
            f"{path.name} can't be read: it has {n_bytes:,} bytes of {needed:,}, as after a download that broke off; get "
            "it again."
        )
    if int(_field(reader, "split.count") or 1) > 1:
        raise ModelError(
            f"{path.name} is one of {_field(reader, 'split.count')} parts: join them by `llama-gguf-split --merge` and "
            "give the whole."
        )
    if not reader.tensors:
        raise ModelDamaged(f"{path.name} holds no weights (a vocabulary alone?); use another file.")
    first = {t.tensor_type: t for t in reversed(reader.tensors)}
    for kind, tensor in first.items():
        try:
            dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{path.name} is quantised as {kind.name}, which can't be dequantised here; use a file in another "
                "quantisation, such as Q8_0 or Q4_K_M."
            ) from error
    if _field(reader, TOKENIZER) is None:
        raise ModelError(f"{path.name} has no tokenizer in it ({TOKENIZER}); use another file.")
    return 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)


def convert(gguf: Path, target: Path, progress: Callable[[str], None]) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer, in the new folder `target`.

    Raises:
        ModelDamaged, ModelError: as `check_gguf`, or transformers can't read it.
        ModelTooLarge: too little memory for it.
    """
    progress("Dequantising (once)")
    n_bytes = check_gguf(gguf)
    if (free := shutil.disk_usage(target.parent).free) < n_bytes:
        raise ModelError(
            f"{gguf.name} needs {gib(n_bytes)} of disk once dequantised and {target.parent.parent} has {gib(free)} "
            "free: free some, or set TTT_ROUTER_CACHE to another folder."
        )
    if (free := memory()[1]) < n_bytes:
        raise ModelTooLarge(
            f"{gguf.name} needs {gib(n_bytes)} of memory to be dequantised and {gib(free)} is free: "
            "free some or choose a smaller model."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar has no switch; errors are raised, not written
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
    except Exception as error:  # it raises whatever an unknown model leads it to
        raise ModelDamaged(
            f"transformers can't read the model in {gguf.name} ({last_line(str(error))}): use another file."
        ) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    progress("Writing the weights")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()
