"""Load any Hugging Face seq2seq or causal model, and generate with it (L1).

Generation is greedy, in float32 unless ``dtype`` says otherwise, and with exact attention masks, so that a
response depends on its own source only and not on the other rows of the batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from iccm_assets.errors import CorruptCheckpointError, ModelError, first_line
from iccm_assets.models.adapter_loading import apply_adapter
from iccm_assets.models.decoding import SamplingNoise, decode_batch
from iccm_assets.models.shared_weights import BaseKey, SharedBase, loading, share_base
from iccm_assets.models.token_streaming import BatchStreamer, TextListener, decode
from iccm_assets.models.tokenization import (
    EncodedSource,
    ModelKind,
    PromptEncoder,
    get_end_token_id,
    get_pad_token_id,
    pad,
    resolve_prompt,
)
from iccm_assets.registry.hub import check_loadable, has_manifest, is_adapter, resolve
from iccm_assets.registry.manifest import (
    MANIFEST_FILE,
    Manifest,
    Prompt,
    describe_file,
    is_digest,
    read_manifest,
    sha256_json,
    verify,
)
from iccm_assets.registry.model_store import find_base
from iccm_assets.settings import PromptSettings

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
    """A loaded model, and its tokenizer with its prompt.

    ``digest`` identifies its content: the manifest's digest, or without a manifest the sha256 over the hashes
    of its files. ``base`` is the base model whose parameters it shares with other versions, if any.
    """

    model: Any
    encoder: PromptEncoder
    digest: str
    path: Path
    base: SharedBase | None = field(default=None, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.encoder.tokenizer

    @property
    def kind(self) -> ModelKind:
        """Whether an encoder reads the source, or the decoder that writes the response."""
        return self.encoder.kind


@dataclass(frozen=True)
class GeneratedResponse:
    """A model's response to one source.

    ``output_tokens`` counts the generated tokens, end token included; ``latency_ms`` is the wall-clock
    time of the batch divided by its size, so it is exact at batch size 1. ``source_tokens`` counts those that
    the model read; ``is_complete`` is false where the response stopped at the token limit, ``is_truncated``
    true where the end of the source was left out.
    """

    text: str
    output_tokens: int
    latency_ms: float
    source_tokens: int = 0
    is_complete: bool = True
    is_truncated: bool = False


def get_device_class(device: torch.device) -> str:
    """Return the CPU's vector instructions or the GPU's name: equal classes compute equal bits."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return str(torch.cuda.get_device_name(device))


def set_threads(count: int) -> None:
    """Set torch's number of CPU threads, on which the last bit of a sum depends (L5)."""
    torch.set_num_threads(count)


def load_model(
    path_or_hub_id: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    prompt: PromptSettings | None = None,
    shared: bool = False,
) -> LoadedModel:
    """Load a model in evaluation mode, on the GPU if there is one; an adapter together with its base model.

    ``prompt`` counts for a directory without a manifest only: a published model has its own (L8). A
    ``shared`` model has its parameters in common with all other shared versions of the same base in this
    process (L11): nobody may train or convert it. Raises ``ModelNotFoundError``; ``CorruptCheckpointError``
    if a published directory does not match its manifest; ``ModelError`` for pickled weights, missing weights,
    an unsupported architecture or a tokenizer that is missing, another model's or without an end token.
    """
    directory = resolve(str(path_or_hub_id))
    manifest, digest = _verify_directory(directory)
    base_directory = find_base(directory) if is_adapter(directory) else directory
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with loading:
            config, kind = _load_config(base_directory)
            encoder = _load_encoder(directory, config, kind, prompt or PromptSettings())

            def load_base() -> Any:
                if base_directory != directory:
                    _verify_directory(base_directory)
                return _load_whole_model(base_directory, kind, dtype, target)

            base_digest = digest if manifest is None else manifest.base_digest or digest
            base = share_base(BaseKey(base_digest, target, dtype), load_base) if shared else None
            model = load_base() if base is None else base.make_view()
            if base_directory != directory:
                model = apply_adapter(model, directory).eval()
        embeddings, tokens = model.get_input_embeddings().weight.shape[0], len(encoder.tokenizer)
        if embeddings < tokens:
            raise ValueError(f"{embeddings} embeddings for {tokens} tokens: the tokenizer is another model's")
    except _UNLOADABLE as error:
        fix = "Write it with save_pretrained(), weights and tokenizer, and without quantization."
        raise ModelError(f"{directory} cannot be loaded ({first_line(error)})", hint=fix) from error
    return LoadedModel(model, encoder, digest, directory, base)


def load_encoder(directory: Path) -> tuple[PromptEncoder, int | None]:
    """Load a model's tokenizer with its prompt, without weights, and its context length in tokens.

    Of the base of an adapter only the config is read. Raises ``ModelError`` if they cannot be loaded.
    """
    base_directory = find_base(directory) if is_adapter(directory) else directory
    try:
        config, kind = _load_config(base_directory)
    except _UNLOADABLE as error:
        raise ModelError(f"{directory} cannot be loaded ({first_line(error)})") from error
    return _load_encoder(directory, config, kind, PromptSettings()), read_context_length(config)


def check_answers(loaded: LoadedModel, max_new_tokens: int) -> GeneratedResponse:
    """Generate a few tokens and return them; raises ``ModelError`` if the model cannot (V5).

    A model with NaN weights, or of a type that an operation does not support, can be loaded.
    ``max_new_tokens`` must leave room for a source in the model's context.
    """
    token_limits(loaded.kind, context_length(loaded), MAX_SOURCE_TOKENS, max_new_tokens)
    config = _greedy_config(loaded, 1)
    config.update(output_logits=True, return_dict_in_generate=True)
    ids = loaded.encoder.encode_source(PROBE_SOURCE, MAX_SOURCE_TOKENS).token_ids
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
    listeners: Sequence[TextListener | None] = (),
) -> list[GeneratedResponse]:
    """Generate one greedy response per source, in the order of ``sources``.

    Each batch holds sources of similar length, which keeps the padding short. ``listeners``, one for each
    source or none at all, get the responses token by token; all pieces together are the text.
    """
    return _respond(loaded, sources, max_new_tokens, batch_size, max_source_tokens, listeners=listeners)


def sample(
    loaded: LoadedModel,
    sources: Sequence[str],
    seeds: Sequence[int],
    *,
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    max_source_tokens: int = MAX_SOURCE_TOKENS,
) -> list[GeneratedResponse]:
    """Sample one response per source with the seed of the same position, in the order of ``sources``.

    The same model, source, seed and temperature give the same response.
    """
    return _respond(
        loaded, sources, max_new_tokens, batch_size, max_source_tokens, seeds=seeds, temperature=temperature
    )


def _respond(
    loaded: LoadedModel,
    sources: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    max_source_tokens: int,
    *,
    listeners: Sequence[TextListener | None] = (),
    seeds: Sequence[int] = (),
    temperature: float = 1.0,
) -> list[GeneratedResponse]:
    """Return one response per source, greedy without ``seeds``."""
    limit, max_new_tokens = token_limits(
        loaded.kind, context_length(loaded), max_source_tokens, max_new_tokens
    )
    encoded = [loaded.encoder.encode_source(source, limit) for source in sources]
    order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index].token_ids), index))
    responses: dict[int, GeneratedResponse] = {}
    size = max(1, batch_size)
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        rows = [encoded[index] for index in indices]
        heard = [listeners[index] for index in indices] if listeners else []
        noise = SamplingNoise([seeds[index] for index in indices], temperature) if seeds else None
        batch = _generate_batch(loaded, rows, max_new_tokens, heard, noise)
        responses.update(zip(indices, batch, strict=True))
    return [responses[index] for index in range(len(sources))]


def _generate_batch(
    loaded: LoadedModel,
    sources: Sequence[EncodedSource],
    max_new_tokens: int,
    listeners: Sequence[TextListener | None],
    noise: SamplingNoise | None = None,
) -> list[GeneratedResponse]:
    causal, rows = loaded.kind == "causal", [source.token_ids for source in sources]
    device = loaded.model.device
    started = time.perf_counter()
    inputs = torch.tensor(pad(rows, get_pad_token_id(loaded.tokenizer), left=causal), device=device)
    mask = torch.tensor(pad([[1] * len(row) for row in rows], 0, left=causal), device=device)
    config = _greedy_config(loaded, max_new_tokens)
    ends = _end_token_ids(config)
    streamer = BatchStreamer(loaded.tokenizer, ends, listeners) if any(listeners) else None
    with torch.inference_mode():
        tokens = decode_batch(loaded.model, inputs, mask, config, streamer, noise)
    texts = [decode(loaded.tokenizer, row) for row in tokens]
    if streamer is not None:
        streamer.finish(texts)
    latency = (time.perf_counter() - started) * 1000 / len(rows)
    return [
        GeneratedResponse(
            text,
            len(row),
            latency,
            len(source.token_ids),
            bool(row) and row[-1] in ends,
            source.is_truncated,
        )
        for text, row, source in zip(texts, tokens, sources, strict=True)
    ]


def _token_ids_only(config: GenerationConfig) -> GenerationConfig:
    """Return a generation config that decodes by argmax: the model's special tokens, nothing else (L9).

    Forced tokens, minimum lengths, penalties and suppressed words are logits processors that training does
    not see: a response would differ from what was learned. A published model has this one, so that any other
    program decodes it in the same way.
    """
    names = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    return GenerationConfig(**{name: getattr(config, name, None) for name in names})


def _greedy_config(loaded: LoadedModel, max_new_tokens: int) -> GenerationConfig:
    """Return a copy of the model's generation config with the token limit and all end tokens."""
    config = copy.deepcopy(loaded.model.generation_config)
    config.update(do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=max_new_tokens)
    ends = {get_end_token_id(loaded.tokenizer), loaded.encoder.end_token_id}
    config.eos_token_id = sorted({*_end_token_ids(config), *ends})
    config.pad_token_id = get_pad_token_id(loaded.tokenizer)
    return config


def _end_token_ids(config: Any) -> set[int]:
    ids = config.eos_token_id
    return set() if ids is None else {int(token) for token in ([ids] if isinstance(ids, int) else ids)}


def decoder_start_token_id(model: Any) -> int:
    """Return the start token of a seq2seq model's decoder; ``ValueError`` if no config states it."""
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (start := getattr(config, name, None)) is not None:
                return int(start)
    raise ValueError("neither config.json nor generation_config.json has a decoder_start_token_id")


def context_length(loaded: LoadedModel) -> int | None:
    """Return the context length in tokens, per side for seq2seq; None if it is unlimited."""
    return read_context_length(loaded.model.config)


def read_context_length(config: Any) -> int | None:
    """Return the context length that a model's config states; None if it is unlimited."""
    if config.model_type in RELATIVE_POSITIONS:
        return None
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(positions) if positions else None


def token_limits(
    kind: ModelKind, context: int | None, max_source_tokens: int, max_new_tokens: int
) -> tuple[int, int]:
    """Return how many source and response tokens fit; a causal model needs room for its whole response."""
    if context is None:
        return max_source_tokens, max_new_tokens
    if kind == "seq2seq":
        return min(max_source_tokens, context), min(max_new_tokens, context - 1)  # one is the start token
    if context <= max_new_tokens:
        raise ModelError(
            f"{max_new_tokens} new tokens leave no room for the source in a context of {context} tokens",
            hint="Lower ICCM_EVALUATION__MAX_NEW_TOKENS.",
        )
    return min(max_source_tokens, context - max_new_tokens), max_new_tokens


def _verify_directory(directory: Path) -> tuple[Manifest | None, str]:
    """Return the manifest, if there is one, and the digest of a directory that can be loaded."""
    manifest = verify(directory) if has_manifest(directory) else None
    if manifest is None and is_digest(directory.name):
        raise CorruptCheckpointError(f"{directory / MANIFEST_FILE} is missing")
    check_loadable(directory)
    if manifest is not None:
        return manifest, manifest.digest
    files = [path for path in sorted(directory.iterdir()) if path.suffix in {".json", ".safetensors"}]
    return None, sha256_json({path.name: describe_file(path).sha256 for path in files})


def _model_kind(config: Any, directory: Path) -> ModelKind:
    if config.is_encoder_decoder and config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    # The auto classes would load a masked model with the head of a causal one.
    masked = all(name.endswith("ForMaskedLM") for name in config.architectures or [""])
    if not (masked or config.is_encoder_decoder) and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ModelError(f"{directory} is a {config.model_type} model, neither seq2seq nor causal")


def _load_config(directory: Path) -> tuple[Any, ModelKind]:
    config = AutoConfig.from_pretrained(directory, **_LOCAL)
    return config, _model_kind(config, directory)


def _load_encoder(directory: Path, config: Any, kind: ModelKind, settings: PromptSettings) -> PromptEncoder:
    """Load the tokenizer, with the manifest's prompt or, without a manifest, one by the settings."""
    tokenizer = _load_tokenizer(directory, config)
    if has_manifest(directory):
        prompt = read_manifest(directory).prompt or Prompt()
    else:
        prompt = resolve_prompt(tokenizer, template=settings.template, system=settings.system)
    return PromptEncoder(tokenizer, kind, prompt)


def _load_tokenizer(directory: Path, config: Any) -> Any:
    """Load a tokenizer that reads source code and can end a response; raises ``ModelError`` otherwise."""
    # The class of a tokenizer, and so its tokens, depend on the config, which an adapter's directory lacks.
    config_of_base = {"config": config} if is_adapter(directory) else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **config_of_base, **_LOCAL)
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


def _load_whole_model(directory: Path, kind: ModelKind, dtype: torch.dtype, device: str) -> Any:
    model = _load_weights(directory, kind, dtype)
    model.generation_config = _token_ids_only(model.generation_config)
    if kind == "seq2seq":
        decoder_start_token_id(model)
    return model.to(device).eval()


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars in the block."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _load_weights(directory: Path, kind: ModelKind, dtype: torch.dtype) -> Any:
    factory = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    with without_progress_bars():
        model, info = factory.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    missing = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    if missing:
        more = " …" if len(missing) > 5 else ""
        raise ModelError(f"{directory} lacks the weights {', '.join(missing[:5])}{more}")
    return model
