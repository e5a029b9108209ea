"""Models of a few thousand random weights with byte-level tokenizers: a T5, a GPT-2 and a Llama."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

PAD, END = "<pad>", "</s>"


def byte_tokenizer(*, ends_source: bool) -> PreTrainedTokenizerFast:
    """One token per byte; with ``ends_source`` every text ends with the end token, as for T5."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, END, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if ends_source:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def chat_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token per byte, special tokens for the beginning and the end of a message, and a chat template."""
    tokenizer = byte_tokenizer(ends_source=False)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": "<|begin|>"}
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_t5(directory: Path, seed: int = 0) -> Path:
    """A random T5 of about 30 000 weights."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(ends_source=True)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.1, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_gpt2(directory: Path, seed: int = 0) -> Path:
    """A random GPT-2 of about 50 000 weights, whose tokenizer has neither pad nor begin token."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(ends_source=False)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=1,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_llama(directory: Path, seed: int = 0) -> Path:
    """A random Llama of about 30 000 weights."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(ends_source=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
