"""Twelve architectures as users bring them, with random weights and tokenizers trained on a little code."""

from __future__ import annotations

import io
import string
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    CodeGenConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MBartConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    T5Config,
)

# Templates as those of Qwen2 and Gemma: the latter refuses system messages and has its own end of a turn.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512,
}  # fmt: skip
_LINES = [
    f"def {verb}_{noun}({noun}, limit={number}):\n    if {noun} is None:\n        return limit\n"
    f"    return {noun} + {number}\n{verb}_{noun} shall return {noun} plus {number}."
    for number, (verb, noun) in enumerate(
        (verb, noun) for verb in ("add", "count", "sort", "merge") for noun in ("value", "word", "item")
    )
]


@cache
def _merges(kind: str) -> str:
    """A tokenizer of 460 tokens as JSON: byte-level as GPT-2's, or metaspace as Llama's."""
    if kind == "bytes":
        tokenizer = Tokenizer(BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = list(string.printable)
    first = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    special = first[:4] if kind == "bytes" else first
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(_LINES, trainer)
    return str(tokenizer.to_str())


def make_tokenizer(
    kind: str = "bytes", *, template: str = "", special: tuple[str, ...] = (), wraps: str = "", **names: str
) -> PreTrainedTokenizerFast:
    """Make a tokenizer; ``wraps`` are the special tokens around an encoder's text, ``$A``."""
    backend = Tokenizer.from_str(_merges(kind))
    backend.add_special_tokens(list(special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": "</s>", **names})
    if wraps:
        tokens = {token for token in wraps.split() if not token.startswith("$")}
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in sorted(tokens)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=wraps, special_tokens=ids
        )
    if template:
        tokenizer.chat_template = template
    return tokenizer


def _save(directory: Path, config: Any, tokenizer: Any, shard: str = "1GB", **generation: Any) -> Path:
    torch.manual_seed(0)
    seq2seq = config.is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(config)
    # Random weights of the usual size answer nearly alike everywhere; larger ones differ with what they read.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    model.generation_config.update(**generation)
    model.save_pretrained(directory, max_shard_size=shard)
    tokenizer.save_pretrained(directory)
    return directory


def _ids(tokenizer: Any) -> dict[str, Any]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def qwen2(directory: Path, **sizes: int) -> Path:
    """A chat template, two end tokens, and a sampling generation config, as an instruct model has."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = make_tokenizer(
        template=CHATML, special=special, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    config = Qwen2Config(**{**_SIZES, **sizes}, **_ids(tokenizer), num_key_value_heads=2)
    return _save(
        directory, config, tokenizer, eos_token_id=ends, do_sample=True, temperature=0.7, top_p=0.8,
        repetition_penalty=1.3,
    )  # fmt: skip


def llama(directory: Path) -> Path:
    """A tokenizer with a metaspace, a begin token and no padding token."""
    tokenizer = make_tokenizer("metaspace", bos_token="<s>", unk_token="<unk>")
    return _save(directory, LlamaConfig(**_SIZES, **_ids(tokenizer)), tokenizer)


def gemma(directory: Path) -> Path:
    """A chat template without a system role, whose turns end with a token of their own."""
    special = ("<start_of_turn>", "<end_of_turn>")
    names = {"bos_token": "<s>", "pad_token": "<pad>"}
    tokenizer = make_tokenizer("metaspace", template=GEMMA, special=special, unk_token="<unk>", **names)
    config = GemmaConfig(**_SIZES, **_ids(tokenizer), head_dim=8, num_key_value_heads=1)
    return _save(directory, config, tokenizer)


def phi(directory: Path) -> Path:
    tokenizer = make_tokenizer()
    return _save(directory, PhiConfig(**_SIZES, **_ids(tokenizer)), tokenizer)


def gpt2(directory: Path) -> Path:
    """Neither begin nor padding token in the tokenizer, and a generation config that forbids repetitions."""
    tokenizer = make_tokenizer()
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **_ids(tokenizer))
    return _save(directory, config, tokenizer, no_repeat_ngram_size=2)


def codegen(directory: Path) -> Path:
    tokenizer = make_tokenizer(bos_token="<s>")
    config = CodeGenConfig(
        n_embd=32, n_layer=2, n_head=4, n_positions=512, n_ctx=512, rotary_dim=4, **_ids(tokenizer)
    )
    return _save(directory, config, tokenizer)


def _t5_config(tokenizer: Any, **changes: Any) -> T5Config:
    values = {
        "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    }  # fmt: skip
    return T5Config(**{**values, **_ids(tokenizer), **changes})


def t5(directory: Path) -> Path:
    tokenizer = make_tokenizer("metaspace", wraps="$A </s>", pad_token="<pad>", unk_token="<unk>")
    return _save(directory, _t5_config(tokenizer), tokenizer)


def _bart_config(kind: type, tokenizer: Any, **changes: Any) -> Any:
    return kind(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512, **_ids(tokenizer), **changes,
    )  # fmt: skip


def bart(directory: Path) -> Path:
    """Forced tokens, a minimum length and a repetition rule, as summarizers have them."""
    names = {"bos_token": "<s>", "pad_token": "<pad>"}
    tokenizer = make_tokenizer(wraps="<s> $A </s>", **names)
    config = _bart_config(BartConfig, tokenizer, decoder_start_token_id=tokenizer.eos_token_id)
    return _save(
        directory, config, tokenizer, forced_bos_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id, min_length=12, no_repeat_ngram_size=3, num_beams=4,
    )  # fmt: skip


def mbart(directory: Path) -> Path:
    """A language code after the source, and a forced one before the response."""
    names = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = make_tokenizer("metaspace", special=("en_XX", "py_XX"), wraps="$A </s> py_XX", **names)
    start = tokenizer.convert_tokens_to_ids("en_XX")
    config = _bart_config(MBartConfig, tokenizer, decoder_start_token_id=start)
    return _save(directory, config, tokenizer, forced_bos_token_id=start)


def codet5(directory: Path) -> Path:
    """A T5 with the tokenizer of a RoBERTa: byte-level, between a begin and an end token."""
    tokenizer = make_tokenizer(wraps="<s> $A </s>", bos_token="<s>", pad_token="<pad>")
    return _save(directory, _t5_config(tokenizer), tokenizer)


def sentencepiece_t5(directory: Path) -> Path:
    """A T5 with ``spiece.model`` alone."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([string.printable[:95], *"\n".join(_LINES).splitlines()]),
        model_writer=written, vocab_size=300, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(directory)
    (directory / "spiece.model").write_bytes(written.getvalue())
    return directory


def tied_and_sharded(directory: Path) -> Path:
    tokenizer = make_tokenizer(bos_token="<s>")
    config = LlamaConfig(**_SIZES, **_ids(tokenizer), tie_word_embeddings=True)
    _save(directory, config, tokenizer, shard="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


ARCHITECTURES: list[Callable[[Path], Path]] = [
    qwen2, llama, gemma, phi, gpt2, codegen, t5, bart, mbart, codet5, sentencepiece_t5, tied_and_sharded,
]  # fmt: skip
# Fifty sources of different lengths.
SOURCES = [
    f"def f{number}(x):\n" + f"    x = x + {number}\n" * (number % 7) + f"    return x * {number}\n"
    for number in range(50)
]
