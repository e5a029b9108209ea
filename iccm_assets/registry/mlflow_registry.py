"""A registered model of an MLflow server: versions with tags and artifacts, aliases and their history (L13).

MLflow keeps no history of an alias. Here it is a log in tags of the registered model, one for each decision,
written under a key of its own, so that writing it again changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from iccm_assets.errors import InputError
from iccm_assets.settings import MLFLOW_MODEL_PATTERN

SCHEME = "mlflow://"
TRACKING_URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "iccm"
ARTIFACTS, MERGED_ARTIFACTS = "model", "model-merged"
VERSION_TAG, DIGEST_TAG, FILES_TAG = "iccm.version", "iccm.digest", "iccm.files"
HISTORY_PREFIX = "iccm.history."
# MLflow waits minutes for a server that is away.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which is that of `iccm export --json`
}
_CREATION_SECONDS = 30


@dataclass(frozen=True)
class VersionRecord:
    """What a registry shows of a version; ``tracker_run`` is the MLflow run of its training, if there is one.

    ``description`` is its model card; ``evidence`` the text of `evidence.json`.
    """

    version: str
    tags: Mapping[str, str]
    description: str = ""
    evidence: str = ""
    tracker_run: str = ""


class ModelRegistry(Protocol):
    """What the mirror of decisions needs of a registry; every call may be repeated."""

    def ensure_version(self, record: VersionRecord) -> None:
        """Make the version if it is not there, and set its tags, card and evidence."""

    def add_history(self, key: str, value: str) -> None:
        """Write one entry of the log."""

    def read_history(self) -> dict[str, str]:
        """Return the log's entries by key."""

    def set_alias(self, alias: str, version: str | None) -> None:
        """Let an alias point to a version that is there, or to none."""


@dataclass
class MlflowRegistry:
    """One registered model on the server at ``MLFLOW_TRACKING_URI``."""

    name: str
    client: Any = field(init=False)

    def __post_init__(self) -> None:
        """Raise ``InputError`` without the client, an address or a name that it can be."""
        check_client(self.name)
        for variable, value in _DEFAULTS.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        self.client = MlflowClient()

    def ensure_version(self, record: VersionRecord) -> None:
        """Make the version if it is not there, and set its tags, card and evidence (`ModelRegistry`)."""
        number, run, artifacts = self._ensure(record, ARTIFACTS)
        texts = {"README.md": record.description, "evidence.json": record.evidence}
        for name, text in texts.items():
            # The card of exported files has more in it than a decision knows.
            if text and not (name == "README.md" and self._has_files(number)):
                self.client.log_text(run, text, f"{artifacts}/{name}")

    def upload_version(
        self, record: VersionRecord, folder: Path, *, merged: bool = False
    ) -> tuple[str, bool]:
        """Make the version with the files of a directory; return its number and whether they were missing.

        ``merged``: they are an adapter merged into its base, which lie beside the adapter in its run, not
        among its files. Raises ``InputError`` if the version has the files of the other one.
        """
        number, run, artifacts = self._ensure(record, MERGED_ARTIFACTS if merged else ARTIFACTS)
        there = {Path(file.path).name for file in self.client.list_artifacts(run, artifacts)}
        weights = {name for name in there if name.endswith(".safetensors")}
        if other := sorted(weights - {path.name for path in folder.iterdir()}):
            raise InputError(
                f"version {number} of the registered model {self.name} is {record.version} with other files:"
                f" {', '.join(other)}",
                hint=f"Export it to a registered model of its own: {SCHEME}NAME.",
            )
        if self._has_files(number):
            return number, False
        self.client.log_artifacts(run, str(folder), artifacts)
        self.client.set_model_version_tag(self.name, number, FILES_TAG, "complete")
        return number, True

    def find_version(self, version: str) -> Any:
        """Return MLflow's version that was made of this one; None where there is none."""
        query = f"name='{self.name}' and tags.`{VERSION_TAG}`='{version}'"
        matches = self.client.search_model_versions(query)
        return min(matches, key=lambda each: int(each.version), default=None)

    def add_history(self, key: str, value: str) -> None:
        """Write one entry of the log (`ModelRegistry`)."""
        self.client.set_registered_model_tag(self.name, HISTORY_PREFIX + key, value)

    def read_history(self) -> dict[str, str]:
        """Return the log's entries by key (`ModelRegistry`)."""
        tags = self.client.get_registered_model(self.name).tags
        return {
            name.removeprefix(HISTORY_PREFIX): value
            for name, value in tags.items()
            if name.startswith(HISTORY_PREFIX)
        }

    def set_alias(self, alias: str, version: str | None) -> None:
        """Let an alias point to a version that is there, or to none (`ModelRegistry`)."""
        current = self.client.get_registered_model(self.name).aliases.get(alias)
        number = None if version is None else self.find_version(version).version
        if number is None and current is not None:
            self.client.delete_registered_model_alias(self.name, alias)
        elif number is not None and str(current) != str(number):
            self.client.set_registered_model_alias(self.name, alias, number)

    def _has_files(self, number: str) -> bool:
        return FILES_TAG in self.client.get_model_version(self.name, number).tags

    def _ensure(self, record: VersionRecord, artifacts: str) -> tuple[str, str, str]:
        """Return the number of the version, its run and where its files are there; make what is missing.

        A version that is made here has its files in ``artifacts``.
        """
        self._ensure_model()
        registered = self.find_version(record.version)
        if registered is None:
            run = self._ensure_run(record)
            registered = self.client.create_model_version(
                self.name,
                source=f"runs:/{run}/{artifacts}",
                run_id=run,
                tags={VERSION_TAG: record.version, **record.tags},
                await_creation_for=_CREATION_SECONDS,
            )
        changed = {name: value for name, value in record.tags.items() if registered.tags.get(name) != value}
        for name, value in changed.items():
            self.client.set_model_version_tag(self.name, registered.version, name, value)
        if record.description and not registered.description:
            self.client.update_model_version(self.name, registered.version, record.description)
        # Of a version that was there, the source says where its files are.
        folder = MERGED_ARTIFACTS if registered.source.endswith(f"/{MERGED_ARTIFACTS}") else ARTIFACTS
        return str(registered.version), str(registered.run_id), folder

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _ensure_run(self, record: VersionRecord) -> str:
        """Return the run of the version's training or, where the server has none, one of its name."""
        from mlflow.exceptions import MlflowException

        if record.tracker_run:
            try:
                return str(self.client.get_run(record.tracker_run).info.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        experiment = self._ensure_experiment()
        query = f"tags.`{VERSION_TAG}` = '{record.version}'"
        if runs := self.client.search_runs([experiment], query, max_results=1):
            return str(runs[0].info.run_id)
        tags = {VERSION_TAG: record.version, **record.tags}
        run = self.client.create_run(experiment, run_name=record.version, tags=tags)
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def _ensure_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        try:
            return str(self.client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(name).experiment_id)


def check_client(name: str) -> str:
    """Return the server's address, without a password.

    Raises ``InputError`` if MLflow's client is not installed, no server is set, or this cannot be a name.
    """
    if find_spec("mlflow") is None:
        raise InputError("MLflow's client is not installed", hint="`pip install 'iccm-assets[mlflow]'`.")
    if not os.environ.get(TRACKING_URI):
        raise InputError(
            f"{TRACKING_URI} is not set, so there is no MLflow server to talk to",
            hint=f"Set {TRACKING_URI}=http://HOST:5000.",
        )
    if MLFLOW_MODEL_PATTERN.fullmatch(name) is None:
        raise InputError(f"{name!r} cannot be the name of a registered model")
    return hide_password(os.environ[TRACKING_URI])


def hide_password(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)
