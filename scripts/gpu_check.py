"""Measure what training, generation and adapters make of one GPU, and check that they are right.

Models with random weights in the shape of Qwen2.5-0.5B and Qwen2.5-1.5B are trained (all weights, and LoRA
adapters), generate, and swap adapters, on one card of 80 GB in at most ten minutes. Nothing is downloaded.
Needs torch, transformers, peft, safetensors and numpy, and no other file of this repository.

Training is done as the platform's trainer does it: all weights in float32 with bfloat16 autocast, or
adapters on a frozen bfloat16 base; deterministic algorithms; AdamW; the mean loss over the tokens of a step.

Useful tokens are those of the examples, without padding. The share of the ceiling is the arithmetic that they
need, divided by their time, divided by the rate of bfloat16 matrix products measured in the same run.

Exit status: 0 if every check passes, 1 if one fails or a part ends in an error, 2 for a wrong command line,
3 if there is no CUDA device, so that nothing was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import peft
import safetensors
import torch
import transformers

EXIT_NO_DEVICE = 3
FLOP_FORMULA = (
    "A token of a sequence of n tokens needs 6 N + 6 L n d for full training (a third forward, a third for"
    " the gradient of the inputs, a third for that of the weights) and 4 N + 6 A + 6 L n d for LoRA, whose"
    " frozen weights need no gradient; N weights in matrix products (the output layer is one of them, the"
    " look-up of embeddings is none), A weights of adapters, L layers, d = heads x size of a head; attention"
    " looks at earlier tokens only"
)
ADAPTERS = ("first", "second")
LORA_RANK, LORA_ALPHA = 16, 32
IGNORE_INDEX = -100
WARM_UP_STEPS = 2
# The loss of bfloat16 may differ from that of float32 by this much of it, and of a single token by this much
# of the spread between tokens.
MAX_LOSS_DIFFERENCE, MAX_TOKEN_DIFFERENCE = 0.005, 0.1
MAX_ADAPTER_SHARE, MAX_TWO_ARMS_SHARE = 0.03, 1.15


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2 model; input and output embeddings are the same weights."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int

    def config(self) -> Any:
        """Return the model's configuration, with the public models' constants."""
        return transformers.Qwen2Config(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            use_cache=True,
        )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, and how much of it; ``seconds`` is what a part takes at most on a slow card."""

    shapes: dict[str, Shape]
    matrices: tuple[int, ...]
    min_length: int
    max_length: int
    step_examples: int
    pass_examples: int
    steps: int
    prompt_tokens: int
    new_tokens: int
    answer_tokens: int
    batches: tuple[int, ...]
    swaps: int
    seconds: dict[str, float]


FULL = Sizes(
    # The public configurations of Qwen2.5-0.5B and Qwen2.5-1.5B.
    shapes={
        "0.5b": Shape(896, 4864, 24, 14, 2, 151_936),
        "1.5b": Shape(1536, 8960, 28, 12, 2, 151_936),
    },
    matrices=(4096, 8192),
    min_length=256,
    max_length=1024,
    step_examples=8,
    pass_examples=4,
    steps=20,
    prompt_tokens=128,
    new_tokens=128,
    answer_tokens=32,
    batches=(1, 32),
    swaps=200,
    seconds={
        "precision": 10, "determinism": 30, "full": 50, "generation": 30, "lora": 50, "adapters": 75,
    },
)  # fmt: skip
TINY = Sizes(
    shapes={"tiny": Shape(64, 128, 2, 4, 2, 512)},
    matrices=(256, 512),
    min_length=8,
    max_length=32,
    step_examples=4,
    pass_examples=2,
    steps=3,
    prompt_tokens=8,
    new_tokens=8,
    answer_tokens=8,
    batches=(1, 4),
    swaps=6,
    seconds=dict.fromkeys(FULL.seconds, 0.5),
)


class Run:
    """One run on one device: its clock, its figures, its checks, and what did not fit into its time."""

    def __init__(self, device: torch.device, sizes: Sizes, minutes: float, seed: int) -> None:
        self.device = device
        self.sizes = sizes
        self.seed = seed
        self.ceiling = 0.0
        self.models: dict[str, dict[str, Any]] = {}
        self.checks: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._seconds = 60 * minutes
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        """Report progress on standard error."""
        sys.stderr.write(f"[{self.elapsed:5.0f} s] {text}\n")
        sys.stderr.flush()

    def check(self, model: str, name: str, passed: bool, detail: str) -> None:
        """Record whether a check passes."""
        self.checks.append({"model": model, "check": name, "passed": bool(passed), "detail": detail})
        self.say(f"{model}: {'ok' if passed else 'FAILED'}: {name} ({detail})")

    def measure(self, model: str, part: str, function: Callable[[], dict[str, Any]]) -> None:
        """Store the figures of a part, unless its time no longer fits; an error is a failed check."""
        needed, left = self.sizes.seconds[part], self._seconds - self.elapsed
        if needed > left:
            reason = f"needs up to {needed:g} s of time, {max(0, left):.0f} s are left"
            self.skipped.append({"model": model, "part": part, "reason": reason})
            self.say(f"{model}: {part} is skipped: {reason}")
            return
        self.say(f"{model}: {part}")
        began = self.elapsed
        try:
            figures = function()
        except Exception as error:  # such as too little memory: the other parts are still worth their time
            traceback.print_exc()
            lines = str(error).splitlines() or [type(error).__name__]
            self.check(model, f"{part} runs to its end", False, f"{type(error).__name__}: {lines[0]}")
        else:
            self.models[model][part] = figures | {"seconds": round(self.elapsed - began, 2)}
        self.release()

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clock(self) -> float:
        """Return the time once the device has done all its work, in seconds."""
        self.synchronize()
        return time.perf_counter()

    def release(self) -> None:
        """Give memory that nothing uses back to the device, and start a new maximum."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_bytes(self) -> int:
        """Return the most memory since the last ``release``: of tensors on a GPU, of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Compute matrix products in bfloat16 in the block."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return the exit status."""
    options = parse_arguments(arguments)
    # Read when the first matrix product starts; without it cuBLAS is refused in deterministic mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not options.tiny and not torch.cuda.is_available():
        sys.stderr.write(
            f"error: torch {torch.__version__} finds no CUDA device, nothing was measured. Run this on a"
            " machine with an NVIDIA GPU of 80 GB and a torch built for CUDA; `--tiny` tries the script on a"
            " CPU.\n"
        )
        return EXIT_NO_DEVICE
    device = torch.device("cpu" if options.tiny else "cuda")
    run = Run(device, TINY if options.tiny else FULL, options.minutes, options.seed)
    measure_all(run, options.model)
    report = build_report(run, options.minutes)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(render(report))
    return 0 if all(check["passed"] for check in run.checks) else 1


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the report to FILE as JSON")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="start no part that may not end by then (default: 10)"
    )
    parser.add_argument("--model", choices=tuple(FULL.shapes), help="measure this size only")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on the CPU, to try the script itself"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and tokens (default: 0)")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error("--minutes must be more than 0")
    if options.tiny and options.model:
        parser.error("--tiny has sizes of its own: leave out --model")
    return options


def measure_all(run: Run, only: str | None) -> None:
    """Measure the ceiling, and every part of every model."""
    run.say("matrix products in bfloat16")
    run.ceiling = measure_ceiling(run)
    for name, shape in run.sizes.shapes.items():
        if only not in (None, name):
            continue
        bench = ModelBench(run, name, shape)
        run.models[name] = {"parameters": bench.parameters, "shape": dataclasses.asdict(shape)}
        for part in run.sizes.seconds:
            run.measure(name, part, getattr(bench, f"measure_{part}"))


def measure_ceiling(run: Run) -> float:
    """Return the best rate of products of square bfloat16 matrices, in FLOP per second."""
    generator = torch.Generator(run.device).manual_seed(run.seed)
    rates = []
    for size in run.sizes.matrices:
        left, right = (
            torch.randn(size, size, generator=generator, device=run.device).bfloat16() for _ in range(2)
        )
        times = []
        for _ in range(9):
            began = run.clock()
            for _ in range(10):
                torch.matmul(left, right)
            times.append((run.clock() - began) / 10)
        rates.append(2 * size**3 / statistics.median(times[1:]))  # the first one chooses the algorithm
    run.release()
    return max(rates)


class ModelBench:
    """The parts that are measured for one model; each builds the model anew, with the same weights."""

    def __init__(self, run: Run, name: str, shape: Shape) -> None:
        self.run = run
        self.name = name
        self.shape = shape
        with torch.device("meta"):
            model = transformers.Qwen2ForCausalLM(shape.config())
        self.parameters = sum(weight.numel() for weight in model.parameters())
        # Norms, biases and the look-up of embeddings are no matrix products; the output layer is one.
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self.matrix_weights = sum(module.weight.numel() for module in linear)
        self.adapter_weights = LORA_RANK * sum(
            module.in_features + module.out_features
            for module in linear
            if module is not model.get_output_embeddings()
        )
        self.examples = draw_examples(run.sizes, shape.vocabulary, run.seed)

    def build(self, dtype: torch.dtype) -> Any:
        """Return the model with random weights on the device."""
        torch.manual_seed(self.run.seed)
        with self.run.device:
            model = transformers.Qwen2ForCausalLM(self.shape.config())
        return model.to(dtype)

    def count_flops(self, lengths: Sequence[int], method: str) -> float:
        """Return the arithmetic that training on sequences of these lengths needs (``FLOP_FORMULA``)."""
        weights = 6 * self.matrix_weights
        if method == "lora":
            weights = 4 * self.matrix_weights + 6 * self.adapter_weights
        attention = 6 * self.shape.layers * self.shape.hidden
        return float(sum(length * (weights + attention * length) for length in lengths))

    def measure_precision(self) -> dict[str, Any]:
        """Compare the loss in bfloat16 with that in float32, on average and token by token."""
        model = self.build(torch.float32).eval()
        [batch, *_] = self.passes()
        with torch.no_grad():
            exact = token_losses(model, batch)
            with self.run.autocast():
                rounded = token_losses(model, batch)
        loss_difference = float((rounded.mean() - exact.mean()).abs() / exact.mean())
        token_difference = float((rounded - exact).square().mean().sqrt() / exact.std())
        self.run.check(
            self.name,
            "the loss in bfloat16 agrees with that in float32",
            loss_difference <= MAX_LOSS_DIFFERENCE and token_difference <= MAX_TOKEN_DIFFERENCE,
            f"mean differs by {loss_difference:.2g} of it, at most {MAX_LOSS_DIFFERENCE:g}; a token by"
            f" {token_difference:.2g} of the spread, at most {MAX_TOKEN_DIFFERENCE:g}",
        )
        return {
            "loss_float32": float(exact.mean()),
            "loss_bfloat16": float(rounded.mean()),
            "loss_difference": loss_difference,
            "token_difference": token_difference,
        }

    def measure_determinism(self) -> dict[str, Any]:
        """Take the same first step of training twice and compare every weight bit for bit."""
        results = []
        for _ in range(2):
            model = self.build(torch.float32)
            self.train(model, steps=1)
            results.append({name: weight.detach().cpu() for name, weight in model.named_parameters()})
            del model
            self.run.release()
        first, second = results
        different = [name for name, weight in first.items() if not torch.equal(weight, second[name])]
        self.run.check(
            self.name,
            "two equal training steps give the same bits",
            not different,
            f"{len(different)} of {len(first)} tensors differ"
            + "".join(f"; {name}" for name in different[:1]),
        )
        return {"tensors": len(first), "tensors_that_differ": len(different)}

    def measure_full(self) -> dict[str, Any]:
        """Train all weights."""
        return self._measure_training(self.build(torch.float32), "full")

    def measure_lora(self) -> dict[str, Any]:
        """Train adapters of all linear layers."""
        model = peft.get_peft_model(self.build(torch.bfloat16), lora_config())
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        self.run.check(
            self.name,
            "adapters have the weights that rank and shapes give",
            trained == self.adapter_weights,
            f"{trained:,} of {self.adapter_weights:,}",
        )
        return self._measure_training(model, "lora")

    def _measure_training(self, model: Any, method: str) -> dict[str, Any]:
        self.run.release()
        seconds, losses = self.train(model, steps=WARM_UP_STEPS + self.run.sizes.steps)
        lengths = [len(example) for example in self.examples]
        step_seconds = statistics.median(seconds[WARM_UP_STEPS:])
        flops = self.count_flops(lengths, method)
        computed = sum(int(batch["input_ids"].numel()) for batch in self.passes())
        share = flops / step_seconds / self.run.ceiling
        self.run.check(
            self.name,
            f"{method} training lowers the loss of what it learns",
            math.isfinite(losses[-1]) and losses[-1] < losses[0],
            f"{losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps",
        )
        return {
            "useful_tokens_per_second": sum(lengths) / step_seconds,
            "ceiling_share": share,
            "useful_tflops": flops / step_seconds / 1e12,
            "step_seconds": step_seconds,
            "useful_tokens_per_step": sum(lengths),
            "padding_share": 1 - sum(lengths) / computed,
            "peak_memory_bytes": self.run.peak_memory_bytes(),
            "trained_parameters": sum(w.numel() for w in model.parameters() if w.requires_grad),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }

    def train(self, model: Any, steps: int) -> tuple[list[float], list[float]]:
        """Take steps on the same examples; returns the seconds and the loss of each."""
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
        batches, targets = list(self.passes()), sum(len(example) - 1 for example in self.examples)
        seconds, losses = [], []
        with deterministic(self.run.seed):
            model.train()
            for _ in range(steps):
                began = self.run.clock()
                total = torch.zeros((), device=self.run.device)
                for batch in batches:
                    with self.run.autocast():
                        loss = token_losses(model, batch).sum() / targets
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += loss.detach()
                torch.nn.utils.clip_grad_norm_(trainable, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seconds.append(self.run.clock() - began)
                losses.append(float(total))
        return seconds, losses

    def passes(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the examples of a step as padded batches of examples of similar length, the longest first."""
        examples = sorted(self.examples, key=len, reverse=True)
        for start in range(0, len(examples), self.run.sizes.pass_examples):
            rows = examples[start : start + self.run.sizes.pass_examples]
            width = len(rows[0])
            ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
            for number, row in enumerate(rows):
                ids[number, : len(row)], mask[number, : len(row)] = row, 1
            yield {
                "input_ids": torch.from_numpy(ids).to(self.run.device),
                "attention_mask": torch.from_numpy(mask).to(self.run.device),
            }

    def measure_generation(self) -> dict[str, Any]:
        """Generate greedily with bfloat16 weights, a prompt's first pass included."""
        model = self.build(torch.bfloat16).eval()
        self.run.release()
        figures: dict[str, Any] = {}
        for rows in self.run.sizes.batches:
            prompts = self.draw_prompts(rows)
            generate(model, prompts, new_tokens=4)
            began = self.run.clock()
            generated = generate(model, prompts, self.run.sizes.new_tokens).sequences
            seconds = self.run.clock() - began
            figures[f"tokens_per_second_batch_{rows}"] = rows * self.run.sizes.new_tokens / seconds
            expected = (rows, self.run.sizes.prompt_tokens + self.run.sizes.new_tokens)
            self.run.check(
                self.name,
                f"{rows} responses have the length that was asked for",
                tuple(generated.shape) == expected,
                f"{tuple(generated.shape)}",
            )
        return figures | {"peak_memory_bytes": self.run.peak_memory_bytes()}

    def draw_prompts(self, rows: int) -> torch.Tensor:
        """Return random prompts of one length."""
        generator = np.random.default_rng(self.run.seed + 1)
        ids = generator.integers(0, self.shape.vocabulary, (rows, self.run.sizes.prompt_tokens))
        return torch.from_numpy(ids).to(self.run.device)

    def measure_adapters(self) -> dict[str, Any]:
        """Load two adapters from files, swap them, and compare every answer with the first of its arm."""
        with tempfile.TemporaryDirectory(prefix="iccm-gpu-check-") as directory:
            folders = [self.write_adapter(pathlib.Path(directory) / name, name) for name in ADAPTERS]
            file_bytes = self._check_adapter_file(folders[0])
            base = self.build(torch.bfloat16).eval()
            base_bytes = count_bytes(base)
            prompts = self.draw_prompts(4)
            plain = answer(base, prompts, self.run.sizes.answer_tokens)
            load_seconds = []
            began = self.run.clock()
            # The base's own dtype, as a server holds them.
            model = peft.PeftModel.from_pretrained(
                base, str(folders[0]), adapter_name=ADAPTERS[0], autocast_adapter_dtype=False
            ).eval()
            load_seconds.append(self.run.clock() - began)
            began = self.run.clock()
            model.load_adapter(str(folders[1]), adapter_name=ADAPTERS[1], autocast_adapter_dtype=False)
            load_seconds.append(self.run.clock() - began)
        arms_share = count_bytes(model) / base_bytes
        self.run.check(
            self.name,
            "base and two adapters take the memory of little more than one model",
            arms_share <= MAX_TWO_ARMS_SHARE or self.parameters < 10**8,
            f"{arms_share:.3f} of the base's weights, at most {MAX_TWO_ARMS_SHARE} from 100 million on",
        )
        return {
            "load_seconds": max(load_seconds),
            "file_bytes": file_bytes,
            "file_share": file_bytes / base_bytes,
            "two_arms_share": arms_share,
            **self._swap(model, prompts, plain),
        }

    def write_adapter(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        """Write an adapter with random weights, which changes answers as a trained one does."""
        model = peft.get_peft_model(self.build(torch.bfloat16), lora_config(), autocast_adapter_dtype=False)
        torch.manual_seed(self.run.seed + 1 + ADAPTERS.index(name))
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            torch.nn.init.normal_(weight, std=0.05)
        # "auto" would ask the hub whether the vocabulary has grown.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        del model
        self.run.release()
        return folder

    def _check_adapter_file(self, folder: pathlib.Path) -> int:
        """Return the size of an adapter's weight file; check what is in it."""
        path = folder / "adapter_model.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no mapping
        stored, expected = sum(tensor.nbytes for tensor in tensors), 2 * self.adapter_weights
        share = stored / (2 * self.parameters)
        self.run.check(
            self.name,
            "an adapter's file holds its weights in bfloat16 and nothing of the base",
            stored == expected and (share <= MAX_ADAPTER_SHARE or self.parameters < 10**9),
            f"{stored:,} of {expected:,} bytes, {share:.2%} of the base",
        )
        return path.stat().st_size

    def _swap(self, model: Any, prompts: torch.Tensor, plain: str) -> dict[str, Any]:
        """Answer from base and adapters in turn; every arm has to repeat its first answer bit for bit."""
        first: dict[str, str] = {"base": plain}
        seconds, wrong = [], 0
        short: dict[str, str] = {}
        for number in range(self.run.sizes.swaps):
            arm = ("base", *ADAPTERS)[number % 3]
            began = self.run.clock()
            if arm != "base":
                model.set_adapter(arm, inference_mode=True)
            seconds.append(self.run.clock() - began)
            with model.disable_adapter() if arm == "base" else contextlib.nullcontext():
                if arm not in first:
                    first[arm] = answer(model, prompts, self.run.sizes.answer_tokens)
                reply = answer(model, prompts, new_tokens=4)
            wrong += reply != short.setdefault(arm, reply)
        last = {}
        for arm in ADAPTERS:
            model.set_adapter(arm, inference_mode=True)
            last[arm] = answer(model, prompts, self.run.sizes.answer_tokens)
        last["base"] = answer(model.unload(), prompts, self.run.sizes.answer_tokens)
        self.run.check(
            self.name,
            "every arm repeats its answer bit for bit after all swaps",
            wrong == 0 and last == first,
            f"{len(seconds)} swaps, {wrong} other answers; "
            + ", ".join(f"{arm} {'same' if last[arm] == first[arm] else 'differs'}" for arm in first),
        )
        self.run.check(
            self.name,
            "base and adapters answer differently",
            len(set(first.values())) == len(set(short.values())) == 3,
            f"{len(set(first.values()))} of 3 differ",
        )
        swaps = [value for number, value in enumerate(seconds) if number % 3]
        return {"swap_seconds": statistics.median(swaps), "swaps": len(seconds), "wrong_answers": wrong}


def draw_examples(sizes: Sizes, vocabulary: int, seed: int) -> list[np.ndarray]:
    """Return the token ids of the examples of one step; lengths are uniform."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(sizes.min_length, sizes.max_length + 1, sizes.step_examples)
    return [generator.integers(0, vocabulary, length) for length in lengths]


def lora_config() -> Any:
    """Return the adapters' configuration: every linear layer but the output layer."""
    return peft.LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cross entropy of every token that has one before it, in float32, without padding."""
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    labels = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, IGNORE_INDEX)
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses[labels.reshape(-1) != IGNORE_INDEX]


@torch.inference_mode()
def generate(model: Any, prompts: torch.Tensor, new_tokens: int) -> Any:
    """Generate this many tokens greedily, with the scores of each."""
    return model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )


def answer(model: Any, prompts: torch.Tensor, new_tokens: int) -> str:
    """Return the digest of generated tokens and of the logits they were chosen from."""
    output = generate(model, prompts, new_tokens)
    return digest([output.sequences, *output.logits])


def digest(tensors: Any) -> str:
    """Return the SHA-256 of the bytes of tensors."""
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy())
    return result.hexdigest()


def count_bytes(model: Any) -> int:
    """Return the bytes of all weights; those that two layers share count once."""
    return sum(weight.nbytes for weight in model.parameters())


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Use deterministic algorithms in the block, and start it from the seed."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def build_report(run: Run, minutes: float) -> dict[str, Any]:
    """Return everything that was measured, as plain values."""
    device: dict[str, Any] = {"type": run.device.type, "name": platform.processor() or platform.machine()}
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.device)
        device |= {"name": properties.name, "memory_bytes": properties.total_memory}
    return {
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            **{
                module.__name__: module.__version__ for module in (torch, transformers, peft, safetensors, np)
            },
        },
        "tiny": run.sizes is TINY,
        "minutes": minutes,
        "elapsed_seconds": round(run.elapsed, 1),
        "ceiling_tflops": run.ceiling / 1e12,
        "flop_formula": FLOP_FORMULA,
        "models": run.models,
        "checks": run.checks,
        "skipped": run.skipped,
    }


def render(report: dict[str, Any]) -> str:
    """Return the report as text for people."""
    ceiling, device = report["ceiling_tflops"], report["device"]
    lines = [
        "",
        f"Device: {device['name']}, torch {report['versions']['torch']}; {report['elapsed_seconds']:.0f} s",
        f"Ceiling: {ceiling:.3g} TFLOP/s, matrix products in bfloat16",
    ]
    if report["tiny"]:
        lines.append("Tiny sizes on a CPU: the figures say that the script works, and nothing about a GPU.")
    rows = [("model", "part", "figure", "value")]
    for name, parts in report["models"].items():
        rows.append((name, "", "parameters", f"{parts['parameters']:,}"))
        for part, figures in parts.items():
            if isinstance(figures, dict) and part in FULL.seconds:
                rows += ((name, part, key, show(key, value)) for key, value in figures.items())
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines += ["", *(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]])
        for row in rows
    ), ""]  # fmt: skip
    lines += (f"skipped: {entry['model']} {entry['part']}: {entry['reason']}" for entry in report["skipped"])
    failed = [check for check in report["checks"] if not check["passed"]]
    lines += (f"FAILED: {check['model']}: {check['check']} ({check['detail']})" for check in failed)
    lines.append(f"{len(report['checks']) - len(failed)} of {len(report['checks'])} checks passed.")
    lines += ["", *(f"{FLOP_FORMULA}.".split("; ")), ""]
    return "\n".join(lines)


def show(key: str, value: Any) -> str:
    """Return a figure with its unit."""
    if key.endswith("_bytes"):
        return f"{value / 2**20:,.1f} MiB" if value < 2**30 else f"{value / 2**30:,.2f} GiB"
    if key.endswith("_share"):
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(str(item)[:12] for item in value)
    return f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    sys.exit(main())
