"""`iccm export`: hand a version over as a Hugging Face model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from iccm_assets.cli.console import AsJson, echo_json, pluralize, print_plain
from iccm_assets.cli.context import open_platform


def export(
    version: Annotated[
        str, typer.Argument(help="Model version, the start of its digest, or `production`.")
    ] = "production",
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="DIR|hf://ORG/NAME|mlflow://NAME",
            help="A new directory, a repository or a model.",
        ),
    ] = "",
    public: Annotated[
        bool, typer.Option("--public", help="Create the repository for everybody to read; else private.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="Merge an adapter into its base: a whole model.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export VERSION as a model that `from_pretrained` loads, with model card and evidence.

    An adapter is exported as one, which `PeftModel.from_pretrained` puts on its base, or with `--merged` as a
    whole model.

    The files are verified first. The card shows the results of the quality gate; `evidence.json` has the
    ancestry, the training run, all verdicts and the version's traffic, and no text of a conversation. In a
    repository of the hub, a version is one commit with a tag; HF_TOKEN is the token. On the MLflow server at
    MLFLOW_TRACKING_URI it is a version of the registered model NAME.
    """
    from iccm_assets.errors import UsageError
    from iccm_assets.governance.model_export import export_version

    if not to:
        raise UsageError("--to is missing", hint="Give a directory, hf://ORG/NAME or mlflow://NAME.")
    _, engine = open_platform()
    with engine.connect() as conn:
        report = export_version(conn, version, to, public=public, merged=merged)
    if as_json:
        echo_json(asdict(report))
    else:
        files = pluralize(report.files, "file")
        print_plain(f"{report.version} exported to {report.location}: {files}, {report.size:,} bytes")
