"""Recognize code that imports a package which the judge does not have; pure functions.

Such code shows nothing about itself: its verdict is inconclusive, never a failure and never a pass. Python
names the first part of a path that is not there, so a name with a dot is a module missing from a package that
is there. (J2)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

MISSING_DEPENDENCY = "missing_dependency"
NOT_INSTALLED = "which the judge does not have"
# The implementation itself, and the judge, which code imports only to search it.
OWN_MODULES = frozenset(("implementation", "solution", __name__.partition(".")[0]))
_NO_MODULE = r"No module named '([^\W\d]\w{0,99})'"
_MESSAGE = re.compile(_NO_MODULE)
_REPORT = re.compile(rf"ModuleNotFoundError: {_NO_MODULE}")


def find_missing_package(classes: Sequence[Any], message: Any, defined: Collection[str]) -> str:
    """Return the package that an exception says is missing, or ''; ``defined`` names what is no package."""
    if classes[0] != ["ModuleNotFoundError", 1]:
        return ""
    return _check_name(_MESSAGE.fullmatch(str(message)), defined)


def find_reported_package(report: str, defined: Collection[str]) -> str:
    """Return the package that pytest's report of a test says is missing, or ''."""
    return _check_name(_REPORT.fullmatch(report), defined)


def _check_name(match: re.Match[str] | None, defined: Collection[str]) -> str:
    if match is None or match[1] in sys.stdlib_module_names | OWN_MODULES:
        return ""
    return "" if match[1] in defined else match[1]


def list_packages(details: Iterable[str]) -> list[str]:
    """List the packages that the details of such verdicts name, each once."""
    matches = (_REPORT.search(detail) for detail in details)
    return list(dict.fromkeys(match[1] for match in matches if match))


def explain(packages: Sequence[str], evidence: str) -> str:
    """Write the reason of an inconclusive result, with what can be done."""
    subject = "it or its tests import" if evidence == "pytest" else "it imports"
    return (
        f"{subject} {', '.join(packages)}, {NOT_INSTALLED}; the fix is an environment that has"
        " it: `iccm environment create NAME --requirements FILE`"
    )
