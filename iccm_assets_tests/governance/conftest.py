"""One platform with an embedded server for the tests that search files; others use the shared server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iccm_assets_tests.factories.erasure_worlds import World, small_world


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home") as world:
        yield world


@pytest.fixture
def world(new_database: Callable[..., str], tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home", new_database()) as world:
        yield world
