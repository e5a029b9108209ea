"""Batched generation against one response after the other, and batches that wait for their longest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.harness import Comparison, Options, Target, expect
from iccm_assets.curation.json_lines import read_json_lines
from iccm_assets.settings import PACKAGED_CANARY_SET, PACKAGED_MODEL

MAX_NEW_TOKENS, BATCH = 320, 32


def compare(options: Options) -> Iterator[Comparison]:
    """Yield one comparison, of 32 items if ``quick``, else of 96."""
    import torch

    from iccm_assets.models import decoding
    from iccm_assets.models.generation import GeneratedResponse, generate, load_model

    torch.set_num_threads(1)
    loaded = load_model(PACKAGED_MODEL)
    items = 32 if options.quick else 96
    rows = [row["source_code"] for _, row in read_json_lines(PACKAGED_CANARY_SET)]
    sources = rows[:: len(rows) // items][:items]
    computed: Counter[str] = Counter()  # rows of the decoder, by contender

    def run(name: str, batch_size: int, is_plain: bool) -> Callable[[], list[GeneratedResponse]]:
        def call() -> list[GeneratedResponse]:
            computed[name] = 0

            def count(_: Any, __: Any, inputs: dict[str, Any]) -> None:
                computed[name] += len(inputs["input_ids"])

            hook = loaded.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
            decodes_as_usual = mock.patch.object(decoding, "_decodes_as_usual", lambda _: not is_plain)
            with decodes_as_usual:
                responses = generate(loaded, sources, max_new_tokens=MAX_NEW_TOKENS, batch_size=batch_size)
            hook.remove()
            return responses

        return call

    def check(results: dict[str, list[GeneratedResponse]]) -> str:
        texts = {name: [(row.text, row.output_tokens) for row in rows] for name, rows in results.items()}
        expect(len({str(rows) for rows in texts.values()}) == 1, "responses differ with the batch")
        needed = sum(row.output_tokens for row in results["iccm"])
        shares = (
            f"{name} {count:,} rows ({1 - needed / count:.0%} wasted)" for name, count in computed.items()
        )
        return f"same texts; the decoder computes: {', '.join(shares)}"

    yield Comparison(
        f"{items} responses, batches of {BATCH}",
        {
            "iccm": run("iccm", BATCH, is_plain=False),
            "one by one": run("one by one", 1, is_plain=True),
            "to the longest response": run("to the longest response", BATCH, is_plain=True),
        },
        check,
        [Target("one by one", 6)],
        3,
    )
