"""Rebuild everything under ``data``.

    python -m iccm_assets.simulation.base_model.build canary-set     # seconds
    python -m iccm_assets.simulation.base_model.build audit-set      # a minute
    python -m iccm_assets.simulation.base_model.build rehearsal      # seconds
    python -m iccm_assets.simulation.base_model.build base-model     # about an hour on 2 cores
    python -m iccm_assets.simulation.base_model.build all
    python -m iccm_assets.simulation.base_model.build score          # the base model on both sets

The same seed gives the same sets and rehearsal sample, byte for byte, on every machine; and the same base
model on the same device class with the same number of threads (torch sums in another order elsewhere).
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from iccm_assets.settings import (
    PACKAGED_AUDIT_SET,
    PACKAGED_CANARY_SET,
    PACKAGED_MODEL,
    PACKAGED_REHEARSAL,
)
from iccm_assets.simulation.language.canary_split import (
    AUDIT_SEED,
    CANARY_SEED,
    canary_signatures,
    draw_distinct,
    reserved_programs,
    reserved_signatures,
)
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES
from iccm_assets.simulation.language.generator import ProgramDraft, structural_signature
from iccm_assets.simulation.language.grammar import RequirementsError, parse
from iccm_assets.simulation.language.quick_score import score_requirements
from iccm_assets.simulation.language.suite_generator import generate_suite

BASE_ITEMS, NEW_ITEMS = 48, 40
REHEARSAL_EXAMPLES = 4000
STEPS = 3000

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


def draw_canary_rows(seed: int = CANARY_SEED) -> list[dict[str, Any]]:
    """Draw the canary set: by family the first reserved programs, with their suites."""
    return _add_suites(reserved_programs(seed), f"canary suite {seed}")


def draw_audit_rows(seed: int = AUDIT_SEED) -> list[dict[str, Any]]:
    """Draw the audit set: of the canary set's shape, without what the base model's training had."""
    from iccm_assets.simulation.base_model.pretraining import training_programs

    trained = {structural_signature(program.document) for program in training_programs(CANARY_SEED, STEPS)}
    return draw_set_rows("audit", seed, canary_signatures() | trained)


def draw_set_rows(name: str, seed: int, banned: frozenset[str]) -> list[dict[str, Any]]:
    """Draw a set of the canary set's shape, without programs of the ``banned`` signatures."""
    programs = draw_distinct(f"{name} {seed}", max(BASE_ITEMS, NEW_ITEMS), banned)
    return _add_suites(programs, f"{name} suite {seed}")


def _add_suites(programs: Mapping[str, Sequence[ProgramDraft]], name: str) -> list[dict[str, Any]]:
    return [
        {
            "item": f"{family}-{number:02d}",
            "slice": family,
            "source_code": program.source_code,
            "requirements": program.requirements,
            "test_suite": generate_suite(program.typed_document, Random(f"{name} {family} {number}")),
        }
        for family, drafts in programs.items()
        for number, program in enumerate(drafts[: NEW_ITEMS if family in NEW_FAMILIES else BASE_ITEMS])
    ]


def draw_rehearsal_rows(seed: int = CANARY_SEED) -> list[dict[str, Any]]:
    """Draw the first examples the base model is trained on."""
    from iccm_assets.simulation.base_model.pretraining import training_stream

    examples = islice(training_stream(seed, reserved_signatures()), REHEARSAL_EXAMPLES)
    return [
        {"source_code": example.source_code, "requirements": example.requirements, "slice": example.family}
        for example in examples
    ]


def encode_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode rows as gzipped JSON lines without a timestamp: equal rows give equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return buffer.getvalue()


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_rows(rows))
    typer.echo(f"{path.name}: {len(rows)} rows, {path.stat().st_size:,} bytes")


@app.command()
def canary_set(seed: Seed = CANARY_SEED) -> None:
    """Write the canary set."""
    _write(PACKAGED_CANARY_SET, draw_canary_rows(seed))


@app.command()
def audit_set(seed: Seed = AUDIT_SEED) -> None:
    """Write the audit set."""
    _write(PACKAGED_AUDIT_SET, draw_audit_rows(seed))


@app.command()
def rehearsal(seed: Seed = CANARY_SEED) -> None:
    """Write the rehearsal sample."""
    _write(PACKAGED_REHEARSAL, draw_rehearsal_rows(seed))


@app.command()
def base_model(
    seed: Seed = CANARY_SEED,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = STEPS,
    folder: Annotated[Path, typer.Option(help="Folder to write the model to.")] = PACKAGED_MODEL,
) -> None:
    """Train the base model from scratch."""
    from iccm_assets.simulation.base_model.pretraining import pretrain

    pretrain(seed, steps, reserved_signatures(seed), folder, typer.echo)


@app.command(name="all")
def build_all(seed: Seed = CANARY_SEED, steps: int = STEPS) -> None:
    """Write the canary set, the audit set, the rehearsal sample and the base model."""
    canary_set(seed)
    audit_set()
    rehearsal(seed)
    base_model(seed, steps)


@app.command(name="score")
def score_model(
    folder: Annotated[Path, typer.Option(help="The model to score.")] = PACKAGED_MODEL,
) -> None:
    """Score a model on canary and audit set, in this process: it runs only code of the reconstructors."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from iccm_assets.simulation.base_model.pretraining import generate_answers

    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, rows in (("canary", draw_canary_rows()), ("audit", draw_audit_rows())):
        texts = generate_answers(model, tokenizer, [row["source_code"] for row in rows])
        for line in (f"{name} set", *format_score_table(rows, texts)):
            typer.echo(line)


def format_score_table(rows: list[dict[str, Any]], texts: list[str]) -> list[str]:
    """Format a table: per slice items, exact answers, readable answers, pass rate and variance."""
    lines = [f"{'slice':10} items exact readable pass_rate variance"]
    for name in (*BASE_FAMILIES, *NEW_FAMILIES, ""):
        part = [(row, text) for row, text in zip(rows, texts, strict=True) if name in {row["slice"], ""}]
        exact = sum(row["requirements"] == text for row, text in part) / len(part)
        readable = sum(_readable(text) for _, text in part) / len(part)
        scores = [score_requirements(text, row["test_suite"]) for row, text in part]
        rate, spread = (sum(values) / len(part) for values in zip(*scores, strict=True))
        lines.append(
            f"{name or 'all':10} {len(part):5} {exact:5.2f} {readable:8.2f} {rate:9.4f} {spread:8.4f}"
        )
    return lines


def _readable(text: str) -> bool:
    try:
        parse(text)
    except RequirementsError:
        return False
    return True


if __name__ == "__main__":
    app()
