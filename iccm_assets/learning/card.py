"""The model card of a fine-tuned checkpoint: what it learned from, how, and how it went (L6).

It is part of the content-addressed directory, so it holds nothing that differs between two equal
trainings. Scores of the quality gate come later and live in the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iccm_assets.learning.job import LossPoint, Movement

CARD = "README.md"


def model_card(
    *,
    base: str,
    parent_digest: str,
    dataset_digest: str,
    counts: Mapping[str, int],
    config: Mapping[str, Any],
    history: Sequence[LossPoint],
    movement: Movement,
    best_step: int,
) -> str:
    """The card as Markdown with the front matter the Hugging Face hub reads."""
    evaluations = [point for point in history if point.validation_loss is not None]
    lines = [
        "---",
        "library_name: transformers",
        "tags: [iccm, code-to-requirements]",
        "---",
        "# CET-D, fine-tuned",
        "",
        "Reads source code and writes the software requirements it can be rebuilt from. Fine-tuned by the",
        "ICCM platform on production conversations whose requirements were proven by reconstruction.",
        "",
        *_table("Origin", {"base model": base, "parent": parent_digest, "training set": dataset_digest}),
        *_table("Examples", counts),
        *_table("Configuration", dict(sorted(config.items()))),
        "## Validation loss",
        "",
        "| epoch | step | mean loss per target token |",
        "|---|---|---|",
        *(
            f"| {point.epoch:g} | {point.step}{' (kept)' if point.step == best_step else ''} "
            f"| {point.validation_loss:.5f} |"
            for point in evaluations
        ),
        "",
        *_table(
            "Movement of the weights",
            {
                "norm of the change / norm of the parent": f"{movement.relative:.3e}",
                "largest change of one weight": f"{movement.largest:.3e}",
                "share of weights changed": f"{movement.changed_share:.4f}",
            },
        ),
        "Scores on the canary set and the verdict of the quality gate are kept in the platform's database:",
        "see `iccm status` or the `canary_evaluation` asset.",
        "",
    ]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    return [
        f"## {title}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
