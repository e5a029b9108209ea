"""Loading a sequence model and letting it answer: any Hugging Face seq2seq or causal model (L1).

Everything is computed in float32 unless the caller asks otherwise, greedily and with exact attention
masks, so that an answer depends on its own source only and not on its neighbours in the batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from iccm_assets.errors import DamagedCheckpoint, ModelError
from iccm_assets.models.encoding import Kind, encode_source, end_token, pad, pad_token
from iccm_assets.models.manifest import MANIFEST, describe_file, is_digest, sha256_json, verify
from iccm_assets.models.resolve import check_loadable, is_published, resolve

MAX_SOURCE_TOKENS = 2048
# Families whose config may name a number of positions, but that read any length.
RELATIVE_POSITIONS = {"t5", "mt5", "umt5", "longt5", "switch_transformers"}
# What transformers and safetensors throw at files they cannot make sense of.
_UNLOADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer or to be trained.

    ``digest`` names its content: the manifest's digest, or for a directory without one the sha256 over
    the hashes of its files.
    """

    model: Any
    tokenizer: Any
    kind: Kind
    digest: str
    path: Path


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    ``output_tokens`` counts generated tokens with the end token; ``latency_ms`` is the answer's share
    of its batch's wall time, so exact at batch size 1.
    """

    text: str
    output_tokens: int
    latency_ms: float


def default_device() -> str:
    """``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_class(device: torch.device) -> str:
    """Within one class the same sums give the same bits: the CPU's vector instructions, or the GPU's name."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return str(torch.cuda.get_device_name(device))


def set_threads(count: int) -> None:
    """Fix torch's number of CPU threads; sums depend on it in the last bit (L5)."""
    torch.set_num_threads(count)


def load_model(
    path_or_hub_id: str | Path, *, device: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load a model for answering (evaluation mode), on the GPU if there is one.

    Raises ``ModelNotFound``; ``DamagedCheckpoint`` when a published directory does not match its
    manifest; ``ModelError`` for pickled weights, missing weights or an unsuitable architecture.
    """
    directory = resolve(str(path_or_hub_id))
    digest = _checked_digest(directory)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        kind = _kind(config, directory)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        end_token(tokenizer)
        model = _load_weights(directory, kind, dtype)
        if kind == "seq2seq":
            decoder_start(model)
        _every_token_has_an_embedding(model, tokenizer)
    except _UNLOADABLE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{directory} cannot be loaded ({first})") from error
    return LoadedModel(model.to(device or default_device()).eval(), tokenizer, kind, digest, directory)


def generate(
    loaded: LoadedModel,
    sources: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    max_source_tokens: int = MAX_SOURCE_TOKENS,
) -> list[Answer]:
    """Greedy answers in the order of ``sources``; batches hold sources of like length."""
    limit, max_new_tokens = _limits(loaded, max_source_tokens, max_new_tokens)
    encoded = [encode_source(loaded.tokenizer, loaded.kind, source, limit) for source in sources]
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), max(1, batch_size)):
        chosen = order[start : start + max(1, batch_size)]
        batch = _generate_batch(loaded, [encoded[index] for index in chosen], max_new_tokens)
        answers.update(zip(chosen, batch, strict=True))
    return [answers[index] for index in range(len(sources))]


def _generate_batch(loaded: LoadedModel, rows: list[list[int]], max_new_tokens: int) -> list[Answer]:
    causal = loaded.kind == "causal"
    device = loaded.model.device
    filler = pad_token(loaded.tokenizer)
    started = time.perf_counter()
    inputs = torch.tensor(pad(rows, filler, left=causal), device=device)
    mask = torch.tensor(pad([[1] * len(row) for row in rows], 0, left=causal), device=device)
    config = _greedy(loaded, max_new_tokens)
    with torch.inference_mode():
        output = loaded.model.generate(input_ids=inputs, attention_mask=mask, generation_config=config)
    # A decoder of its own starts with one start token; a causal model repeats its prompt.
    written = output[:, inputs.shape[1] if causal else 1 :].tolist()
    ends = _end_ids(config)
    tokens = [_until_end(row, ends) for row in written]
    texts = [_text(loaded, row) for row in tokens]
    latency = (time.perf_counter() - started) * 1000 / len(rows)
    return [Answer(text, len(row), latency) for text, row in zip(texts, tokens, strict=True)]


def _greedy(loaded: LoadedModel, max_new_tokens: int) -> Any:
    """The model's generation config with everything random or beam-like switched off."""
    config = copy.deepcopy(loaded.model.generation_config)
    config.update(
        do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=max_new_tokens, max_length=None
    )
    config.update(temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None)
    config.eos_token_id = sorted({*_end_ids(config), end_token(loaded.tokenizer)})
    config.pad_token_id = pad_token(loaded.tokenizer)
    return config


def _end_ids(config: Any) -> set[int]:
    ends = config.eos_token_id
    if ends is None:
        return set()
    return {int(ends)} if isinstance(ends, int) else {int(one) for one in ends}


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(row):
        if token in ends:
            return row[: position + 1]
    return row


def _text(loaded: LoadedModel, tokens: list[int]) -> str:
    return str(loaded.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _every_token_has_an_embedding(model: Any, tokenizer: Any) -> None:
    known = model.get_input_embeddings().weight.shape[0]
    if known < len(tokenizer):
        raise ValueError(f"{known} embeddings for {len(tokenizer)} tokens: model and tokenizer do not belong")


def decoder_start(model: Any) -> int:
    """The token a seq2seq model's decoder starts with; ``ValueError`` when no config names it."""
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (start := getattr(config, name, None)) is not None:
                return int(start)
    raise ValueError("neither config.json nor generation_config.json names decoder_start_token_id")


def positions(loaded: LoadedModel) -> int | None:
    """Tokens the model can read and write: per side for seq2seq, together for causal; None: any number."""
    config = loaded.model.config
    if config.model_type in RELATIVE_POSITIONS:
        return None
    known = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(known) if known else None


def _limits(loaded: LoadedModel, max_source_tokens: int, max_new_tokens: int) -> tuple[int, int]:
    """Source and answer tokens that fit; a causal model must have room left for its whole answer."""
    known = positions(loaded)
    if known is None:
        return max_source_tokens, max_new_tokens
    if loaded.kind == "seq2seq":
        return min(max_source_tokens, known), min(
            max_new_tokens, known - 1
        )  # the start token has a place too
    if known <= max_new_tokens:
        raise ModelError(
            f"{max_new_tokens} new tokens leave no room in a context of {known} tokens",
            hint="Set ICCM_EVALUATION__MAX_NEW_TOKENS lower.",
        )
    return min(max_source_tokens, known - max_new_tokens), max_new_tokens


def _checked_digest(directory: Path) -> str:
    if is_published(directory):
        digest = verify(directory).digest
        check_loadable(directory)
        return digest
    if is_digest(directory.name):
        raise DamagedCheckpoint(f"{directory / MANIFEST} is missing")
    check_loadable(directory)
    return _plain_digest(directory)


def _plain_digest(directory: Path) -> str:
    wanted = [path for path in sorted(directory.iterdir()) if path.suffix in {".json", ".safetensors"}]
    return sha256_json({path.name: describe_file(path).sha256 for path in wanted})


def _kind(config: Any, directory: Path) -> Kind:
    # Auto classes would load a masked model with the head of a causal one.
    masked = all(name.endswith("ForMaskedLM") for name in config.architectures or [""])
    if config.is_encoder_decoder and config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    if (
        not masked
        and not config.is_encoder_decoder
        and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ):
        return "causal"
    raise ModelError(f"{directory} is a {config.model_type} model, neither seq2seq nor causal")


def _load_weights(directory: Path, kind: Kind, dtype: torch.dtype) -> Any:
    factory = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = factory.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
    absent = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    if absent:
        raise ModelError(
            f"{directory} lacks the weights {', '.join(absent[:5])}{' …' if len(absent) > 5 else ''}"
        )
    return model
