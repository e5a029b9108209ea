"""The bounds of pyproject.toml and the releases of constraints.txt fit each other."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.refresh_constraints import CONSTRAINTS, parse_releases

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    bounds = {item.name: {part.operator for part in item.specifier} for item in REQUIREMENTS}
    unbounded = {
        name for name, operators in bounds.items() if not ("==" in operators or {">=", "<"} <= operators)
    }
    assert unbounded == set()


def test_the_constraints_hold_a_public_release_within_the_bounds_of_every_dependency() -> None:
    lines = [
        line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    releases = {
        canonicalize_name(name): Version(release) for name, release in (line.split("==") for line in lines)
    }
    assert [str(release) for release in releases.values() if release.local] == []
    outside = [
        str(item) for item in REQUIREMENTS if releases[canonicalize_name(item.name)] not in item.specifier
    ]
    assert outside == []


def test_refreshed_constraints_hold_no_local_version_no_url_and_no_cuda_package() -> None:
    frozen = "torch==2.13.0+cpu\nnvidia-cublas==13.0\nalembic==1.20\nx @ file:///x\n-e git+y\ntriton==3.5\n"
    assert parse_releases(frozen) == "alembic==1.20\ntorch==2.13.0\n"
