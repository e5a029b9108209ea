"""The error tree of the platform.

An error's docstring is its message: what happened, what was not lost, what to do next. Raise it with
the particulars: ``raise SuiteError("case 3: 'expect' and 'raises' exclude each other")``.

    IccmError
    ├── SettingsError          an ICCM_* variable is unknown or its value impossible
    ├── DatabaseError
    │   ├── DatabaseUnreachable
    │   └── EmbeddedServerError
    ├── InputError             a file or request that cannot be read
    │   └── SuiteError
    ├── ModelError
    │   ├── ModelNotFound
    │   │   └── VersionNotFound
    │   └── DamagedCheckpoint
    ├── TrainingError
    │   ├── NothingLearned
    │   ├── TrainingDiverged
    │   └── StaleFence
    ├── SandboxUnavailable
    ├── OrchestraError
    ├── GatewayError
    └── NotAllowed             the gate, a lock or a rule forbids what was asked
"""

from __future__ import annotations

from collections.abc import Mapping


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class IccmError(Exception):
    """The platform could not do what was asked."""

    def __init__(self, detail: str = "", *, hint: str = "") -> None:
        self.detail = detail
        self.hint = hint
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The class's sentence, the particulars, and what to do next, in one line."""
        sentence = " ".join((type(self).__doc__ or "").split())
        told = sentence.rstrip(".") + (f": {self.detail}" if self.detail else ".")
        parts = [told if not self.hint or told.endswith((".", "!", "?")) else f"{told}.", self.hint]
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, str]:
        """The error as JSON values, for crossing a process boundary; `from_dict` is the inverse."""
        return {"name": type(self).__name__, "detail": self.detail, "hint": self.hint}

    @staticmethod
    def from_dict(values: Mapping[str, str]) -> IccmError:
        """The error of this name, or an ``IccmError`` where the name is not known."""
        kind = globals().get(values["name"], IccmError)
        return kind(values["detail"], hint=values["hint"])  # type: ignore[no-any-return]


class SettingsError(IccmError):
    """A setting is unknown or impossible; nothing was started."""


class DatabaseError(IccmError):
    """PostgreSQL refused; the transaction was rolled back."""


class DatabaseUnreachable(DatabaseError):
    """PostgreSQL cannot be reached; nothing was changed."""


class EmbeddedServerError(DatabaseError):
    """The embedded PostgreSQL server could not be run; its data directory was left as it is."""


class InputError(IccmError):
    """The input cannot be read; nothing was stored."""


class SuiteError(InputError):
    """The test suite is not valid (SPEC J1); nothing was run."""


class ModelError(IccmError):
    """The model cannot be used; production is untouched."""


class ModelNotFound(ModelError):
    """There is no model at this path or hub id."""


class VersionNotFound(ModelNotFound):
    """There is no such model version; nothing was changed."""


class DamagedCheckpoint(ModelError):
    """The checkpoint does not match its manifest and is refused."""


class TrainingError(IccmError):
    """Training failed; production and the model store are untouched, a re-run starts clean."""


class NothingLearned(TrainingError):
    """Training moved no weight; the run is refused."""


class TrainingDiverged(TrainingError):
    """The loss or the weights became NaN or infinite; nothing was published."""


class StaleFence(TrainingError):
    """Another attempt has taken this training run over; this one may not publish."""


class SandboxUnavailable(IccmError):
    """A layer of the sandbox is missing, so no verdict can be given."""


class OrchestraError(IccmError):
    """The orchestra is misconfigured or could not be asked; no score was given."""


class AlertError(IccmError):
    """An alert did not reach every channel; it is in the outbox and is sent again."""


class GatewayError(IccmError):
    """The gateway did not do what was asked; what it has acknowledged is kept."""


class NotAllowed(IccmError):
    """This is not allowed in the present state; nothing was changed."""
