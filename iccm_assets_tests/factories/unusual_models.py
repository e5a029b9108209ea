"""Tiny models with the peculiarities of real ones, each built as a complete directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from iccm_assets_tests.factories.tiny_models import byte_tokenizer, tiny_gpt2, tiny_llama, tiny_t5


def llama(directory: Path, *, dtype: torch.dtype = torch.float32, shard: str = "1GB", **config: Any) -> Path:
    """A Llama of one small layer; ``config`` goes to its configuration."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(ends_source=False)
    values = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**values, **config})).to(dtype)
    model.save_pretrained(directory, max_shard_size=shard)
    tokenizer.save_pretrained(directory)
    return directory


def tied(directory: Path) -> Path:
    return llama(directory, tie_word_embeddings=True)


def bfloat16(directory: Path) -> Path:
    return llama(directory, dtype=torch.bfloat16)


def sharded(directory: Path) -> Path:
    llama(directory, shard="30KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


def padded_vocabulary(directory: Path) -> Path:
    """More embeddings than tokens, as where the vocabulary is rounded up."""
    return llama(directory, vocab_size=320)


def short_gpt2(directory: Path) -> Path:
    """128 learned positions, fewer than the examples are long; no begin token anywhere."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(ends_source=False)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128, bos_token_id=None,
        eos_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def short_bart(directory: Path) -> Path:
    """A seq2seq model with 128 learned positions on each side."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(ends_source=True)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def without_generation_config(directory: Path) -> Path:
    tiny_t5(directory)
    (directory / "generation_config.json").unlink()
    return directory


def with_only_a_fast_tokenizer(directory: Path) -> Path:
    """``tokenizer.json`` and a config that names the class and the end token, nothing else."""
    tiny_llama(directory)
    for path in directory.glob("*token*"):
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


UNUSUAL: list[Callable[[Path], Path]] = [
    tied, bfloat16, sharded, padded_vocabulary, short_gpt2, short_bart, without_generation_config,
    with_only_a_fast_tokenizer,
]  # fmt: skip


def fill_with_nan(directory: Path) -> Path:
    """A model that can be loaded, and answers nothing."""
    weights = load_file(directory / "model.safetensors")
    damaged = {name: torch.full_like(weight, float("nan")) for name, weight in weights.items()}
    save_file(damaged, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def pickled(directory: Path) -> str:
    tiny_t5(directory)
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")
    return r"pickles \(pytorch_model\.bin\)"


def with_its_own_code(directory: Path) -> str:
    tiny_llama(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "my-own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text(f"open({str(directory / 'ran')!r}, 'w')")
    return "my-own|custom code"


def without_a_tokenizer(directory: Path) -> str:
    tiny_llama(directory)
    for path in directory.glob("*token*"):
        path.unlink()
    return r"has no tokenizer that can be loaded .* Copy tokenizer\.json"


def t5_without_a_tokenizer(directory: Path) -> str:
    """Its class makes up a tokenizer of 104 tokens."""
    tiny_t5(directory)
    for path in directory.glob("*token*"):
        path.unlink()
    return r"has no tokenizer that reads source code .* Copy tokenizer\.json"


def gpt2_without_a_tokenizer(directory: Path) -> str:
    """Its class makes up a tokenizer of one token."""
    tiny_gpt2(directory)
    for path in directory.glob("*token*"):
        path.unlink()
    return r"has no tokenizer that reads source code \(1 tokens\)"


def without_an_end_token(directory: Path) -> str:
    tiny_llama(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    return r"no end-of-sequence token\. Set eos_token"


def with_only_a_pad_token(directory: Path) -> str:
    """A response that ends with the pad token would never end: padding is masked."""
    tiny_llama(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"eos_token": None, "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return r"no end-of-sequence token\. Set eos_token"


def with_a_lost_shard(directory: Path) -> str:
    sharded(directory)
    shard = sorted(directory.glob("*.safetensors"))[1]
    shard.unlink()
    return "cannot be loaded"


def with_too_few_embeddings(directory: Path) -> str:
    llama(directory, vocab_size=100)
    return "100 embeddings .* 258 tokens"


def quantized(directory: Path) -> str:
    """Its packages for inference cannot train it, and are not installed."""
    tiny_llama(directory)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (directory / "config.json").write_text(json.dumps(config))
    return r"cannot be loaded .* without quantization"


def an_encoder(directory: Path) -> str:
    tokenizer = byte_tokenizer(ends_source=True)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return "neither seq2seq nor causal"


UNUSABLE: list[Callable[[Path], str]] = [
    pickled, with_its_own_code, without_a_tokenizer, t5_without_a_tokenizer, gpt2_without_a_tokenizer,
    without_an_end_token, with_only_a_pad_token, with_a_lost_shard, with_too_few_embeddings,
    quantized, an_encoder,
]  # fmt: skip
