"""Hand a version over as a Hugging Face model: its files, a model card with evidence, and the evidence. (L13)

What is exported names no conversation, session or person. It has no ``MANIFEST.json``: its card differs from
that of the version, which is part of the version's digest. ``iccm backup`` moves versions between platforms.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa

from iccm_assets.atomic_directories import fsync, fsync_tree, remove_tree
from iccm_assets.errors import InputError, ModelError, first_line
from iccm_assets.evaluation.evaluation_report import describe_rules, describe_verdict
from iccm_assets.evaluation.stored_verdict import StoredVerdict, load_newest_verdict, mean_pass_rates
from iccm_assets.registry.hub import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, is_local_path
from iccm_assets.registry.manifest import Manifest, read_manifest
from iccm_assets.registry.mlflow_registry import SCHEME as MLFLOW_SCHEME
from iccm_assets.registry.mlflow_registry import MlflowRegistry, VersionRecord, hide_password
from iccm_assets.registry.model_store import fetch_model, find_base, verify_model
from iccm_assets.registry.versions import get_version
from iccm_assets.reporting.lineage import VersionLineage, load_version_lineage
from iccm_assets.training.model_card import MODEL_CARD_FILE, describe_adapter
from iccm_assets.training.run_tracking import TRACKER_RUNS, version_tags

EVIDENCE_FILE = "evidence.json"
HUB_SCHEME = "hf://"
_EMPTY_CARD = "---\nlibrary_name: transformers\ntags: [iccm, code-to-requirements]\n---\n# CET-D\n"
# Of an earlier version in the same repository: other weights may be in other files.
_REPLACED_FILES = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class ExportReport:
    """What was exported: ``location`` is a directory, or the URL of a commit; ``size`` in bytes."""

    version: str
    digest: str
    location: str
    files: int
    size: int


@dataclass(frozen=True)
class BaseDescription:
    """The base of an exported adapter: its name, its digest, and its id where it is a model of the hub."""

    name: str
    digest: str
    hub_id: str | None
    merged: bool

    def to_markdown(self) -> str:
        """Return what a reader has to know to load what was exported."""
        if self.merged:
            what = "The adapter of this version is merged into its base, in float32: the model is whole."
        else:
            what = "These weights are an adapter: `PeftModel.from_pretrained(base, directory)` loads them."
        return f"## Base\n\n{what} The base is `{self.name}`, digest `{self.digest}`.\n"


def export_version(
    conn: sa.Connection, name: str, target: str, *, public: bool = False, merged: bool = False
) -> ExportReport:
    """Export a version, given by name, as ``production`` or by digest.

    The target is a directory, ``hf://org/name`` or ``mlflow://name``, a registered model. An adapter is
    exported as one, for ``peft``; ``merged``, as the whole model that it makes of its base. The directory
    must not exist, or be empty; it appears complete or not at all. A repository is created if necessary,
    private unless ``public``; the version is one commit with a tag of its name. Raises ``InputError``,
    ``CorruptCheckpointError`` or ``VersionNotFoundError``, and ``ModelError`` when the hub or the server
    rejects it or cannot be reached.
    """
    lineage = load_version_lineage(conn, name)
    verdict = load_newest_verdict(conn, lineage.version)
    repository = target.removeprefix(HUB_SCHEME) if target.startswith(HUB_SCHEME) else None
    model = target.removeprefix(MLFLOW_SCHEME) if target.startswith(MLFLOW_SCHEME) else None
    if repository is None and model is None and "://" in target:
        hint = "Give a directory, hf://ORG/NAME or mlflow://NAME."
        raise InputError(f"{target}: unknown kind of target", hint=hint)
    if public and repository is None:
        raise InputError("only a repository of the hub can be public")
    manifest = verify_model(fetch_model(lineage.path))
    if merged and manifest.base_digest is None:
        raise InputError(
            f"{lineage.version} is a whole model, there is nothing to merge", hint="Leave out --merged."
        )
    if model is not None:
        return _export_to_mlflow(conn, lineage, verdict, manifest, model, merged)
    if repository is None:
        return _export_to_directory(lineage, verdict, manifest, Path(target).expanduser().absolute(), merged)
    with tempfile.TemporaryDirectory(prefix="iccm-export-") as folder:
        _write(lineage, verdict, manifest, Path(folder), merged)
        url = _upload(Path(folder), repository, lineage, public)
        return _report(lineage, url, Path(folder))


def _export_to_mlflow(
    conn: sa.Connection,
    lineage: VersionLineage,
    verdict: StoredVerdict | None,
    manifest: Manifest,
    model: str,
    merged: bool,
) -> ExportReport:
    """Make a version of a registered model; what is there already stays as it is."""
    registry = MlflowRegistry(model)
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="iccm-export-") as folder:
        _write(lineage, verdict, manifest, Path(folder), merged)
        try:
            record = describe_version(conn, lineage.version)
            number, _ = registry.upload_version(record, Path(folder), merged=merged)
        except (MlflowException, OSError) as error:
            raise ModelError(
                f"the MLflow server did not take {lineage.version} as {model}"
                f" ({hide_password(first_line(error))})",
                hint="Export it again once the server answers: what it has by then is used.",
            ) from error
        return _report(lineage, f"models:/{model}/{number}", Path(folder))


def describe_version(
    conn: sa.Connection, name: str, *, tags: Mapping[str, str] | None = None
) -> VersionRecord:
    """Return what a registry shows of a version, with these tags besides its own."""
    lineage = load_version_lineage(conn, name)
    version = get_version(conn, lineage.version)
    verdict = load_newest_verdict(conn, lineage.version)
    own = {
        **version_tags(version),
        "iccm.status": lineage.status,
        "iccm.dataset_digest": str((lineage.run or {}).get("dataset_digest") or ""),
        "iccm.verdict": verdict.status if verdict else "",
        **(tags or {}),
    }
    return VersionRecord(
        lineage.version,
        {tag: value for tag, value in own.items() if value},
        _make_card(_EMPTY_CARD, lineage, verdict, None).split("---\n", 2)[-1].strip(),
        _to_json(_make_evidence(lineage, None)),
        str(version.metrics.get(TRACKER_RUNS, {}).get("mlflow", "")),
    )


def _export_to_directory(
    lineage: VersionLineage, verdict: StoredVerdict | None, manifest: Manifest, target: Path, merged: bool
) -> ExportReport:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty directory", hint="Name a new one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write(lineage, verdict, manifest, staging, merged)
        fsync_tree(staging)
        staging.chmod(0o755)
        staging.rename(target)
        fsync(target.parent)
    finally:
        remove_tree(staging)
    return _report(lineage, str(target), target)


def _report(lineage: VersionLineage, location: str, folder: Path) -> ExportReport:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return ExportReport(lineage.version, lineage.digest, location, len(sizes), sum(sizes))


def _write(
    lineage: VersionLineage, verdict: StoredVerdict | None, manifest: Manifest, folder: Path, merged: bool
) -> None:
    source = fetch_model(lineage.path)
    written_anew = {MODEL_CARD_FILE, *((ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE) if merged else ())}
    for name in manifest.files:
        if name not in written_anew:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    if merged:
        from iccm_assets.training.parent_model import write_merged

        write_merged(source, find_base(source), folder)
    (folder / EVIDENCE_FILE).write_text(_to_json(_make_evidence(lineage, manifest)), encoding="utf-8")
    card = source / MODEL_CARD_FILE
    text = card.read_text(encoding="utf-8") if card.exists() else _EMPTY_CARD
    if merged and manifest.base_digest is not None:
        text = text.replace(describe_adapter(manifest.base_digest) + "\n", "")
    text = _make_card(text, lineage, verdict, _describe_base(manifest, source, merged))
    (folder / MODEL_CARD_FILE).write_text(text, encoding="utf-8")


def _to_json(evidence: Mapping[str, Any]) -> str:
    return json.dumps(evidence, indent=1, sort_keys=True, default=str) + "\n"


def _make_evidence(lineage: VersionLineage, manifest: Manifest | None) -> dict[str, Any]:
    """Return where the version comes from and what was decided about it."""
    run = lineage.run or {}
    return {
        "version": lineage.version,
        "digest": lineage.digest,
        "status": lineage.status,
        "created_at": lineage.created_at,
        "ancestry": [ancestor.version for ancestor in lineage.ancestry],
        **({"manifest": manifest.model_dump(mode="json")} if manifest else {}),
        "training": {name: run.get(name) for name in ("trigger", "dataset_digest", "training_timestamp")},
        "conversations_by_role": lineage.roles,
        "conversations_by_evidence": lineage.evidence,
        "verdicts": list(lineage.verdicts),
        "traffic": [
            {name: event[name] for name in ("timestamp", "event_type", "version", "weight", "forced")}
            for event in lineage.traffic
        ],
    }


def _describe_base(manifest: Manifest, source: Path, merged: bool) -> BaseDescription | None:
    """Describe the base of an adapter, which may be a model of the hub; None for a whole model."""
    if manifest.base_digest is None:
        return None
    base = read_manifest(find_base(source))
    name, _, revision = base.base.partition("@")
    hub_id = name if base.kind == "imported" and revision and not is_local_path(name) else None
    return BaseDescription(base.base, manifest.base_digest, hub_id, merged)


def _make_card(
    text: str, lineage: VersionLineage, verdict: StoredVerdict | None, base: BaseDescription | None
) -> str:
    """Add the evidence to a model card, in words and as the evaluation results that the hub shows."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    card = ModelCard(text)
    data = cast(ModelCardData, card.data)
    data.model_name = lineage.version
    if base is not None:
        data.library_name = "transformers" if base.merged else "peft"
        data.base_model = base.hub_id
        card.text = f"{card.text.rstrip()}\n\n{base.to_markdown()}"
    lines = ["## Evidence", "", f"Version `{lineage.version}`, digest `{lineage.digest}`."]
    if verdict is None:
        lines += ["", "No quality gate has decided on it."]
    else:
        summary, pass_rate = _describe(verdict)
        lines += ["", summary]
        if pass_rate is not None:
            data.eval_results = [
                EvalResult(
                    task_type="text-generation",
                    dataset_type="canary-set",
                    dataset_name="canary set",
                    dataset_revision=verdict.canary_set_digest,
                    metric_type="test_pass_rate",
                    metric_name="mean pass rate of reconstructions",
                    metric_value=round(pass_rate, 6),
                )
            ]
    lines += ["", f"Details: `{EVIDENCE_FILE}`.", ""]
    card.text = f"{card.text.rstrip()}\n\n" + "\n".join(lines)
    return str(card)


def _describe(stored: StoredVerdict) -> tuple[str, float | None]:
    """Describe a verdict, and return the version's pass rate; one of an earlier form has its status only."""
    try:
        candidate, production = mean_pass_rates(stored)
        verdict = stored.read_verdict()
    except InputError:
        return f"Quality gate: {stored.status}.", None
    compared = (stored.version, candidate), (stored.production_version, production)
    return f"{describe_verdict(verdict, *compared)}\n\n{describe_rules(verdict)}", candidate


def _upload(folder: Path, repository: str, lineage: VersionLineage, public: bool) -> str:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"{lineage.version} ({lineage.digest[:12]})",
            delete_patterns=list(_REPLACED_FILES),
        )
        hub.create_tag(repository, tag=lineage.version, revision=commit.oid, exist_ok=True)
    except HFValidationError as error:
        raise InputError(f"{HUB_SCHEME}{repository} ({first_line(error)})") from error
    except (HTTPError, OSError) as error:
        raise ModelError(
            f"the hub did not take {lineage.version} as {repository} ({first_line(error)})",
            hint="Set HF_TOKEN to a token with the right to write there.",
        ) from error
    return str(commit.commit_url)
