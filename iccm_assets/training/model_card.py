"""The model card of a fine-tuned checkpoint: training data, hyperparameters and losses (L6).

It is part of the content-addressed directory, so it contains nothing that differs between two equal
trainings. The scores of the quality gate come later and are stored in the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.training.worker_protocol import WeightChange

MODEL_CARD_FILE = "README.md"


def render_model_card(
    *,
    base: str,
    parent_digest: str,
    base_digest: str | None,
    dataset_digest: str,
    counts: Mapping[str, int],
    config: Mapping[str, Any],
    history: Sequence[LossPoint],
    weight_change: WeightChange,
    best_step: int,
) -> str:
    """Return the card as Markdown, with front matter for the Hugging Face hub.

    ``base_digest`` is the whole model whose weights an adapter changes; a whole model has none.
    """
    origin = {"base model": base, "parent": parent_digest, "training set": dataset_digest}
    lines = [
        "---",
        f"library_name: {'transformers' if base_digest is None else 'peft'}",
        "tags: [iccm, code-to-requirements]",
        "---",
        "# CET-D, fine-tuned",
        "",
        "Reads source code and writes software requirements from which the code can be reconstructed.",
        "Fine-tuned by the ICCM platform on production conversations with reconstructible requirements.",
        "",
        *([] if base_digest is None else [describe_adapter(base_digest)]),
        *_table("Origin", origin if base_digest is None else {**origin, "adapter of": base_digest}),
        *_table("Examples", counts),
        *_table("Configuration", dict(sorted(config.items()))),
        "## Validation loss",
        "",
        "| epoch | step | mean loss per target token |",
        "|---|---|---|",
        *(
            f"| {point.epoch:g} | {point.step}{' (best)' if point.step == best_step else ''} "
            f"| {point.validation_loss:.5f} |"
            for point in history
            if point.validation_loss is not None
        ),
        "",
        *_table(
            "Change of the weights",
            {
                "norm of the change / norm of the parent": f"{weight_change.relative:.3e}",
                "largest change of one weight": f"{weight_change.largest:.3e}",
                "share of weights changed": f"{weight_change.changed_share:.4f}",
            },
        ),
        "Scores on the canary set and the verdict of the quality gate are stored in the platform's database:",
        "see `iccm status` or the `canary_evaluation` asset.",
        "",
    ]
    return "\n".join(lines)


def describe_adapter(base_digest: str) -> str:
    """Return the paragraph of an adapter's card that a whole model, merged from it, does not have."""
    return (
        "A low-rank adapter: it changes the weights of one whole model, its base, which is not in this\n"
        f"directory. The digest of the base is `{base_digest}`.\n"
    )


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    return [
        f"## {title}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
