"""Train the base model from scratch: one file, to be read from top to bottom (X2).

Covered: tokenizer, model, stream of examples, warm-up, plateau and decay, probes by family, checkpoints.
Not covered: resuming, more than one device. The same seed gives the same weights on the same device class
and with the same number of threads; elsewhere sums are ordered differently.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from iccm_assets.simulation.base_model.tokenizer import train_tokenizer
from iccm_assets.simulation.language.canary_split import canary_signatures
from iccm_assets.simulation.language.families import BASE_FAMILIES, FAMILIES
from iccm_assets.simulation.language.generator import ProgramDraft, draw_program, structural_signature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_TARGET_TOKENS = 256
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
DECAY_FRACTION = 0.3
THREADS = 2
PROBE_EVERY = 500
PROBE_ITEMS = 20


def draw_stream(rng: Random, families: Sequence[str], banned: frozenset[str]) -> Iterator[ProgramDraft]:
    """Draw examples of the families in turn, without end, and none with a banned signature."""
    while True:
        for family in families:
            example = draw_program(family, rng)
            if structural_signature(example.document) not in banned:
                yield example


def training_stream(seed: int, banned: frozenset[str]) -> Iterator[ProgramDraft]:
    """Draw the examples the base model is trained on, in order."""
    return draw_stream(Random(f"train {seed}"), BASE_FAMILIES, banned)


def tokenizer_programs(seed: int, banned: frozenset[str]) -> Iterator[ProgramDraft]:
    """Draw the examples of the tokenizer: nine of a base family to four of a new one."""
    names = [name for name in FAMILIES for _ in range(9 if name in BASE_FAMILIES else 4)]
    return islice(draw_stream(Random(f"tokenizer {seed}"), names, banned), 12_000)


def make_tokenizer(seed: int, banned: frozenset[str]) -> PreTrainedTokenizerFast:
    """Train the tokenizer on all families."""
    return train_tokenizer(
        text
        for example in tokenizer_programs(seed, banned)
        for text in (example.source_code, example.requirements)
    )


def training_programs(seed: int, steps: int) -> Iterator[ProgramDraft]:
    """Draw everything that the base model and its tokenizer are trained on, and some more of the stream.

    Without the canary set's signatures only: the audit set is drawn without these.
    """
    banned = canary_signatures(seed)
    yield from tokenizer_programs(seed, banned)
    yield from islice(training_stream(seed, banned), (steps + 8) * BATCH_SIZE)


def make_model(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Build a T5 of about a million parameters with random weights."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        d_ff=320,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_TARGET_TOKENS,
        do_sample=False,
        num_beams=1,
    )
    return model


def make_batches(examples: Iterator[ProgramDraft], tokenizer: Any, rng: Random) -> Iterator[dict[str, Any]]:
    """Yield padded batches of examples of similar length; padded labels are -100."""
    while True:
        chunk = [next(examples) for _ in range(BATCH_SIZE * 8)]
        chunk.sort(key=lambda example: len(example.source_code))
        parts = [chunk[start : start + BATCH_SIZE] for start in range(0, len(chunk), BATCH_SIZE)]
        rng.shuffle(parts)
        for part in parts:
            inputs = tokenizer([example.source_code for example in part], padding=True, return_tensors="pt")
            targets = [example.requirements for example in part]
            labels = tokenizer(targets, padding=True, return_tensors="pt").input_ids
            labels[labels == tokenizer.pad_token_id] = -100
            yield {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask, "labels": labels}


def generate_answers(model: Any, tokenizer: Any, sources: Sequence[str], batch: int = 64) -> list[str]:
    """Generate the model's answers by greedy decoding."""
    model.eval()
    texts: list[str] = []
    for start in range(0, len(sources), batch):
        inputs = tokenizer(list(sources[start : start + batch]), padding=True, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=MAX_TARGET_TOKENS,
            )
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def measure_exact_answers(model: Any, tokenizer: Any, items: Sequence[ProgramDraft]) -> dict[str, float]:
    """Measure the fraction of exactly right answers by family."""
    results: dict[str, list[bool]] = defaultdict(list)
    texts = generate_answers(model, tokenizer, [item.source_code for item in items])
    for item, text in zip(items, texts, strict=True):
        results[item.family].append(text == item.requirements)
    return {family: sum(right) / len(right) for family, right in results.items()}


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a ``from_pretrained`` directory."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which another user's worker could not read


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the learning rate as a fraction of its peak: warm-up, a long plateau, linear decay to zero.

    The plateau does not depend on ``steps``: a longer run starts exactly like a shorter one.
    """
    remaining = (steps - step) / (steps * DECAY_FRACTION)
    return min((step + 1) / WARMUP_STEPS, 1.0, max(remaining, 0.0))


def pretrain(seed: int, steps: int, banned: frozenset[str], folder: Path, log: Callable[[str], None]) -> None:
    """Train from scratch and save the model in ``folder``, also after each probe."""
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    tokenizer = make_tokenizer(seed, banned)
    model = make_model(tokenizer)
    log(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    probes_rng = Random(f"probe {seed}")
    probes = [draw_program(family, probes_rng) for family in FAMILIES for _ in range(PROBE_ITEMS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    examples = training_stream(seed, banned)
    source = make_batches(examples, tokenizer, Random(f"order {seed}"))
    started, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        model.train()
        loss = model(**next(source)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            seconds = time.monotonic() - started
            log(f"step {step}/{steps} loss {sum(losses[-50:]) / 50:.4f} {seconds:.0f} s")
        if step % PROBE_EVERY == 0 or step == steps:
            rates = measure_exact_answers(model, tokenizer, probes)
            log("exact " + " ".join(f"{family} {rate:.2f}" for family, rate in rates.items()))
            save_model(model, tokenizer, folder)
