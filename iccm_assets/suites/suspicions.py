"""Name what an implementation is suspected of; pure functions over what it did and over its source.

A source may be hostile and a mebibyte long: every rule takes time in proportion to it. (J2)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from iccm_assets.suites.case_verdicts import UNRELATED_CLASSES, CaseResult, escape_unprintable
from iccm_assets.suites.missing_dependencies import MISSING_DEPENDENCY

_EQUAL_TO_EVERYTHING = "defines an object equal to everything"
# Signs in the source that only explain a failure: honest code may use any of them, so an implementation that
# passes every case is not suspected for them.
_SIGNS = (
    (r"\batexit\b", "registers an exit hook"),
    (
        r"\bf_(?:locals|globals|back)\b|\b_getframe\b|\btb_frame\b|\binspect\.(?:stack|currentframe)\b",
        "looks into its callers' frames",
    ),
    (r"\bgc\.get_|\bget_objects\b|\bget_referrers\b", "searches the heap"),
    (r"\bos\.environ|\bgetenv\b|\benviron\b", "reads the environment"),
    (
        r"['\"]/(?:root|home|srv|proc|sys)\b|/etc/(?:passwd|shadow|group|hosts|sudoers|ssh)\b|/(?:var/)?run/secrets",
        "names files of the host",
    ),
    (r"\bjson\.(?:dumps|loads|dump|load)\s*=|setattr\(\s*json\b", "replaces functions of json"),
    (r"\bbuiltins\.\w+\s*=|__builtins__\s*\[", "replaces builtins"),
    (r"def __eq__\([^)]{0,200}\)[^:]{0,200}:\s{0,200}return True", _EQUAL_TO_EVERYTHING),
    (r"\bos\.write\(|\bos\.fdopen\(|\bos\.dup2?\(", "writes to raw descriptors"),
    (r"\bos\._exit\b", "ends its process"),
    (r"\bctypes\b", "calls the C library"),
    (r"\bos\.fork\b", "forks"),
    (r"\bpidfd_|\bprocess_vm_", "accesses other processes"),
    (r"\bset(?:trace|profile)\b|\bsys\.monitoring\b", "traces the code around it"),
    (r"\bsys\.(?:meta_path|path_hooks)\b|\bsys\.modules\s*(?:\[|\.clear\b)", "manipulates imports"),
    (r"\bsocket\b|\burllib\.request\b|\bhttp\.client\b", "uses the network"),
)
_PROCESS_LIMIT_ERRORS = r"can't start new thread|Resource temporarily unavailable|Cannot allocate memory"
_SIGNS_IN_DETAILS = (
    (UNRELATED_CLASSES, "raises " + UNRELATED_CLASSES),
    (_PROCESS_LIMIT_ERRORS, "reached the limit of processes and threads"),
)
# Signs that count even without a failure where tests run in the implementation's own process: there, a forged
# pass looks like any other.
_SIGNS_OF_FORGERY = (
    (r"\b_?pytest\b|\bunittest\b|\bconftest\b|\bPYTEST_", "refers to the test runner"),
    (r"\binspect\b|\blinecache\b|\b__main__\b", "reads source code at run time"),
    (
        r"\b(?:test_\w+|\w+_test)\.py\b|\bos\.(?:listdir|walk|scandir)\b|\bglob\b",
        "looks for the tests' files",
    ),
)
_COMPARISON = re.compile(r"\b__(?:eq|ne|lt|le|gt|ge)__\b")
_RETURNS_TRUE = re.compile(r"\breturn (?:True|1)\b")


def find_suspicious_behavior(
    source: str, results: Sequence[CaseResult], violations: Iterable[str], evidence: str = "cases"
) -> tuple[str, ...]:
    """Name what the implementation is suspected of: every violation, and signs that explain a failure."""
    details = [result.detail for result in results]
    suspicions = [*map(escape_unprintable, violations)]
    suspicions += [result.detail for result in results if result.verdict == "forbidden"]
    suspicions += [detail for detail in details if "its own equality" in detail]
    suspicions += _matching(_SIGNS_IN_DETAILS, "\n".join(details))
    verdicts = {result.verdict for result in results} - {MISSING_DEPENDENCY}
    may_forge = evidence == "pytest" and bool(verdicts)
    if may_forge:
        suspicions += _matching(_SIGNS_OF_FORGERY, source)
        suspicions += [_EQUAL_TO_EVERYTHING] if _is_equal_to_everything(source) else []
    if may_forge or verdicts - {"passed"}:
        suspicions += _matching(_SIGNS, source)
    return tuple(dict.fromkeys(suspicions))


def _matching(signs: tuple[tuple[str, str], ...], text: str) -> list[str]:
    return [description for pattern, description in signs if re.search(pattern, text)]


def _is_equal_to_everything(source: str) -> bool:
    """Whether a comparison returns true in its own line or in the next one."""
    pending = False
    for line in source.split("\n"):
        if pending and _RETURNS_TRUE.search(line):
            return True
        comparison = _COMPARISON.search(line)
        if comparison and _RETURNS_TRUE.search(line, comparison.end()):
            return True
        pending = comparison is not None
    return False
