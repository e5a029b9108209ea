"""The error tree of the platform.

The docstring of a class is the beginning of its message: what happened and what was kept. Raise it with the
details: ``raise TestSuiteError("case 3: 'expect' and 'raises' exclude each other")``.

    IccmError
    ├── SettingsError          an ICCM_* variable is unknown or its value invalid
    ├── DatabaseError
    │   ├── DatabaseUnreachableError
    │   └── EmbeddedServerError
    ├── InputError             a file or request that cannot be used
    │   ├── UsageError         options that are not valid together, or a value out of range
    │   ├── RecordNotFoundError
    │   ├── TestSuiteError
    │   ├── SkippedFilesError
    │   └── SessionOwnershipError
    ├── ModelError
    │   ├── ModelNotFoundError
    │   │   └── VersionNotFoundError
    │   └── CorruptCheckpointError
    ├── TrainingError
    │   ├── NoWeightsChangedError
    │   ├── TrainingDivergedError
    │   └── StaleFenceError
    ├── SandboxUnavailableError
    ├── ComputeError           a job of the Ray cluster failed, or the cluster cannot be reached
    ├── MissingPackageError
    ├── OrchestraError
    ├── AddressError           the address to listen on is in use or does not exist
    ├── AlertError
    ├── GatewayError
    ├── BackupError            a backup cannot be made, read or restored
    ├── StorageError           the object storage cannot be reached, read or written
    │   ├── ArtifactNotFoundError
    │   └── CorruptArtifactError
    └── OperationNotAllowedError    the gate, a lock or a rule forbids it
"""

from __future__ import annotations

from collections.abc import Mapping


def first_line(error: BaseException | str) -> str:
    """Return the first line of a text or of an error's text, or its class name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class IccmError(Exception):
    """The operation failed."""

    def __init__(self, detail: str = "", *, hint: str = "") -> None:
        self.detail = detail
        self.hint = hint
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The sentence of the class, the detail and the hint, in one line."""
        sentence = " ".join((type(self).__doc__ or "").split())
        text = sentence.rstrip(".") + (f": {self.detail}" if self.detail else ".")
        if not self.hint:
            return text
        return f"{text if text.endswith(('.', '!', '?')) else text + '.'} {self.hint}"

    def to_dict(self) -> dict[str, str]:
        """The error as JSON values, to pass it between processes; `from_dict` is the inverse."""
        return {"name": type(self).__name__, "detail": self.detail, "hint": self.hint}

    @staticmethod
    def from_dict(values: Mapping[str, str]) -> IccmError:
        """The error of the class ``name``; an ``IccmError`` if there is no such class."""
        kind = globals().get(values["name"], IccmError)
        return kind(values["detail"], hint=values["hint"])  # type: ignore[no-any-return]


class SettingsError(IccmError):
    """A setting is unknown or invalid; nothing was started."""


class DatabaseError(IccmError):
    """PostgreSQL rejected the operation; the transaction was rolled back."""


class DatabaseUnreachableError(DatabaseError):
    """PostgreSQL cannot be reached; nothing was changed."""


class EmbeddedServerError(DatabaseError):
    """The embedded PostgreSQL server could not be run; its data directory was left as it is."""


class InputError(IccmError):
    """The input cannot be used; nothing was stored."""


class UsageError(InputError):
    """The command line is not valid; nothing was done."""


class RecordNotFoundError(InputError):
    """Not found; nothing was changed."""


class TestSuiteError(InputError):
    """The test suite is not valid; nothing was run."""


class SkippedFilesError(InputError):
    """Some of the files cannot be imported; nothing of them was stored."""


class SessionOwnershipError(InputError):
    """The session belongs to another user or token; nothing was stored."""


class ModelError(IccmError):
    """The model cannot be used; production is unchanged."""


class ModelNotFoundError(ModelError):
    """There is no model at this path or hub id."""


class VersionNotFoundError(ModelNotFoundError):
    """There is no such model version; nothing was changed."""


class CorruptCheckpointError(ModelError):
    """The checkpoint does not match its manifest; it was not loaded."""


class AdapterNotServedError(ModelError):
    """The model server does not load or unload the adapter; production is unchanged."""


class TrainingError(IccmError):
    """Training failed; production and the model store are unchanged."""


class NoWeightsChangedError(TrainingError):
    """Training changed no weight; nothing was published."""


class TrainingDivergedError(TrainingError):
    """The loss or the weights became NaN or infinite; nothing was published."""


class StaleFenceError(TrainingError):
    """Another attempt has claimed this training run; nothing was published."""


class SandboxUnavailableError(IccmError):
    """A layer of the sandbox is missing; no verdict was given."""


class ComputeError(IccmError):
    """Work on the Ray cluster failed; what was stored before is kept, and nothing was published."""


class MissingPackageError(IccmError):
    """The judge lacks a package; no verdict was given."""


class OrchestraError(IccmError):
    """The orchestra is misconfigured or unreachable; no score was given."""


class AddressError(IccmError):
    """The address cannot be used; nothing was started."""


class AlertError(IccmError):
    """An alert did not reach every channel; it stays in the outbox and is retried."""


class GatewayError(IccmError):
    """The gateway failed; everything it has acknowledged is kept."""


class BackupError(IccmError):
    """The backup failed; nothing was changed."""


class StorageError(IccmError):
    """The object storage cannot be used; what it holds is unchanged."""


class ArtifactNotFoundError(StorageError):
    """The object storage does not have this; nothing was downloaded."""


class CorruptArtifactError(StorageError):
    """The object storage has a damaged file; it is not used."""


class OperationNotAllowedError(IccmError):
    """Conflict with the current state; nothing was changed."""
