"""Load any Hugging Face seq2seq or causal model, and generate with it (L1).

Generation is greedy, in float32 unless ``dtype`` says otherwise, and with exact attention masks, so that a
response depends on its own source only and not on the other rows of the batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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

from iccm_assets.errors import CorruptCheckpointError, ModelError, first_line
from iccm_assets.models.tokenization import (
    ModelKind,
    encode_source,
    get_end_token_id,
    get_pad_token_id,
    pad,
)
from iccm_assets.registry.hub import check_loadable, has_manifest, resolve
from iccm_assets.registry.manifest import MANIFEST_FILE, describe_file, is_digest, sha256_json, verify

MAX_SOURCE_TOKENS = 2048
# What a model has to read and to answer before anything depends on it.
PROBE_SOURCE = "def add(a, b):\n    return a + b\n"
PROBE_TOKENS = 8
_TOKENIZER_FIX = "Copy tokenizer.json and tokenizer_config.json of the model next to its config.json."
# Model families that read any length, although their config may state a number of positions.
RELATIVE_POSITIONS = {"t5", "mt5", "umt5", "longt5", "switch_transformers"}
# What transformers and safetensors raise for files that they cannot parse.
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
# Nothing is downloaded, and no code of a model directory runs.
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model and its tokenizer.

    ``digest`` identifies its content: the manifest's digest, or without a manifest the sha256 over the hashes
    of its files.
    """

    model: Any
    tokenizer: Any
    kind: ModelKind
    digest: str
    path: Path


@dataclass(frozen=True)
class GeneratedResponse:
    """A model's response to one source.

    ``output_tokens`` counts the generated tokens, end token included; ``latency_ms`` is the wall-clock
    time of the batch divided by its size, so it is exact at batch size 1.
    """

    text: str
    output_tokens: int
    latency_ms: float


def get_device_class(device: torch.device) -> str:
    """Return the CPU's vector instructions or the GPU's name: equal classes compute equal bits."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return str(torch.cuda.get_device_name(device))


def set_threads(count: int) -> None:
    """Set torch's number of CPU threads, on which the last bit of a sum depends (L5)."""
    torch.set_num_threads(count)


def load_model(
    path_or_hub_id: str | Path, *, device: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load a model in evaluation mode, on the GPU if there is one.

    Raises ``ModelNotFoundError``; ``CorruptCheckpointError`` if a published directory does not match its
    manifest; ``ModelError`` for pickled weights, missing weights, an unsupported architecture or a tokenizer
    that is missing, another model's or without an end token.
    """
    directory = resolve(str(path_or_hub_id))
    digest = _verified_digest(directory)
    try:
        kind = _model_kind(AutoConfig.from_pretrained(directory, **_LOCAL), directory)
        tokenizer = _load_tokenizer(directory)
        model = _load_weights(directory, kind, dtype)
        if kind == "seq2seq":
            decoder_start_token_id(model)
        embeddings = model.get_input_embeddings().weight.shape[0]
        if embeddings < len(tokenizer):
            raise ValueError(
                f"{embeddings} embeddings for {len(tokenizer)} tokens: the tokenizer is another model's"
            )
    except _UNLOADABLE as error:
        fix = "Write it with save_pretrained(), weights and tokenizer, and without quantization."
        raise ModelError(f"{directory} cannot be loaded ({first_line(error)})", hint=fix) from error
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return LoadedModel(model, tokenizer, kind, digest, directory)


def check_answers(loaded: LoadedModel, max_new_tokens: int) -> GeneratedResponse:
    """Generate a few tokens and return them; raises ``ModelError`` if the model cannot (V5).

    A model with NaN weights, or of a type that an operation does not support, can be loaded.
    ``max_new_tokens`` must leave room for a source in the model's context.
    """
    _token_limits(loaded, MAX_SOURCE_TOKENS, max_new_tokens)
    config = _greedy_config(loaded, 1)
    config.update(output_logits=True, return_dict_in_generate=True)
    ids = encode_source(loaded.tokenizer, loaded.kind, PROBE_SOURCE, MAX_SOURCE_TOKENS)
    inputs = torch.tensor([ids], device=loaded.model.device)
    try:
        with torch.inference_mode():
            output = loaded.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
            )
        # Some models mask the rows that pad their vocabulary with minus infinity.
        [logits] = output.logits
        finite = not torch.isnan(logits).any() and torch.isfinite(logits.max())
        [response] = generate(loaded, [PROBE_SOURCE], max_new_tokens=PROBE_TOKENS, batch_size=1)
    except _UNLOADABLE as error:
        fix = "Write it with save_pretrained() in float32, bfloat16 or float16, without quantization."
        raise ModelError(f"{loaded.path} cannot answer ({first_line(error)})", hint=fix) from error
    if not finite:
        raise ModelError(
            f"{loaded.path} computes NaN or infinity instead of an answer",
            hint="Its weights are damaged: copy or convert them again (float16 may have overflowed).",
        )
    return response


def generate(
    loaded: LoadedModel,
    sources: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    max_source_tokens: int = MAX_SOURCE_TOKENS,
) -> list[GeneratedResponse]:
    """Generate one greedy response per source, in the order of ``sources``.

    Each batch holds sources of similar length, which keeps the padding short.
    """
    limit, max_new_tokens = _token_limits(loaded, max_source_tokens, max_new_tokens)
    encoded = [encode_source(loaded.tokenizer, loaded.kind, source, limit) for source in sources]
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
    responses: dict[int, GeneratedResponse] = {}
    size = max(1, batch_size)
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        batch = _generate_batch(loaded, [encoded[index] for index in indices], max_new_tokens)
        responses.update(zip(indices, batch, strict=True))
    return [responses[index] for index in range(len(sources))]


def _generate_batch(
    loaded: LoadedModel, rows: list[list[int]], max_new_tokens: int
) -> list[GeneratedResponse]:
    causal = loaded.kind == "causal"
    device = loaded.model.device
    started = time.perf_counter()
    inputs = torch.tensor(pad(rows, get_pad_token_id(loaded.tokenizer), left=causal), device=device)
    mask = torch.tensor(pad([[1] * len(row) for row in rows], 0, left=causal), device=device)
    config = _greedy_config(loaded, max_new_tokens)
    with torch.inference_mode():
        output = loaded.model.generate(input_ids=inputs, attention_mask=mask, generation_config=config)
    # The output of a seq2seq decoder begins with one start token, that of a causal model with its prompt.
    generated = output[:, inputs.shape[1] if causal else 1 :].tolist()
    tokens = [_truncate_at_end(row, _end_token_ids(config)) for row in generated]
    decode = partial(loaded.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = [str(decode(row)) for row in tokens]
    latency = (time.perf_counter() - started) * 1000 / len(rows)
    return [GeneratedResponse(text, len(row), latency) for text, row in zip(texts, tokens, strict=True)]


def _greedy_config(loaded: LoadedModel, max_new_tokens: int) -> Any:
    """Return a copy of the model's generation config without sampling and beam search."""
    config = copy.deepcopy(loaded.model.generation_config)
    config.update(
        do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=max_new_tokens, max_length=None
    )
    config.update(temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None)
    config.eos_token_id = sorted({*_end_token_ids(config), get_end_token_id(loaded.tokenizer)})
    config.pad_token_id = get_pad_token_id(loaded.tokenizer)
    return config


def _end_token_ids(config: Any) -> set[int]:
    ids = config.eos_token_id
    return set() if ids is None else {int(token) for token in ([ids] if isinstance(ids, int) else ids)}


def _truncate_at_end(row: list[int], ends: set[int]) -> list[int]:
    length = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
    return row[:length]


def decoder_start_token_id(model: Any) -> int:
    """Return the start token of a seq2seq model's decoder; ``ValueError`` if no config states it."""
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (start := getattr(config, name, None)) is not None:
                return int(start)
    raise ValueError("neither config.json nor generation_config.json has a decoder_start_token_id")


def context_length(loaded: LoadedModel) -> int | None:
    """Return the context length in tokens, per side for seq2seq; None if it is unlimited."""
    config = loaded.model.config
    if config.model_type in RELATIVE_POSITIONS:
        return None
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(positions) if positions else None


def _token_limits(loaded: LoadedModel, max_source_tokens: int, max_new_tokens: int) -> tuple[int, int]:
    """Return how many source and response tokens fit; a causal model needs room for its whole response."""
    context = context_length(loaded)
    if context is None:
        return max_source_tokens, max_new_tokens
    if loaded.kind == "seq2seq":
        return min(max_source_tokens, context), min(max_new_tokens, context - 1)  # one is the start token
    if context <= max_new_tokens:
        raise ModelError(
            f"{max_new_tokens} new tokens leave no room for the source in a context of {context} tokens",
            hint="Lower ICCM_EVALUATION__MAX_NEW_TOKENS.",
        )
    return min(max_source_tokens, context - max_new_tokens), max_new_tokens


def _verified_digest(directory: Path) -> str:
    manifest = verify(directory) if has_manifest(directory) else None
    if manifest is None and is_digest(directory.name):
        raise CorruptCheckpointError(f"{directory / MANIFEST_FILE} is missing")
    check_loadable(directory)
    if manifest is not None:
        return manifest.digest
    files = [path for path in sorted(directory.iterdir()) if path.suffix in {".json", ".safetensors"}]
    return sha256_json({path.name: describe_file(path).sha256 for path in files})


def _model_kind(config: Any, directory: Path) -> ModelKind:
    if config.is_encoder_decoder and config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    # The auto classes would load a masked model with the head of a causal one.
    masked = all(name.endswith("ForMaskedLM") for name in config.architectures or [""])
    if not (masked or config.is_encoder_decoder) and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ModelError(f"{directory} is a {config.model_type} model, neither seq2seq nor causal")


def _load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer that reads source code and can end a response; raises ``ModelError`` otherwise."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **_LOCAL)
        text = tokenizer.decode(tokenizer(PROBE_SOURCE)["input_ids"], skip_special_tokens=True)
    except _UNLOADABLE as error:
        reason = f"{directory} has no tokenizer that can be loaded ({first_line(error)})"
        raise ModelError(reason, hint=_TOKENIZER_FIX) from error
    # Without its files, some classes make a tokenizer of a few special tokens.
    if 2 * sum(map(str.isalnum, text)) < sum(map(str.isalnum, PROBE_SOURCE)):
        raise ModelError(
            f"{directory} has no tokenizer that reads source code ({len(tokenizer)} tokens)",
            hint=_TOKENIZER_FIX,
        )
    try:
        get_end_token_id(tokenizer)
    except ValueError as error:
        fix = "Set eos_token in its tokenizer_config.json to the token that ends a response."
        raise ModelError(f"{directory}: {error}", hint=fix) from None
    return tokenizer


def _load_weights(directory: Path, kind: ModelKind, dtype: torch.dtype) -> Any:
    factory = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    progress_bar_was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model, info = factory.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    finally:
        if progress_bar_was_enabled:
            transformers_logging.enable_progress_bar()
    missing = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    if missing:
        more = " …" if len(missing) > 5 else ""
        raise ModelError(f"{directory} lacks the weights {', '.join(missing[:5])}{more}")
    return model
