"""One platform with an embedded server for the tests that search files; others use the shared server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iccm_assets.settings import Settings, get_settings, load_settings
from iccm_assets_tests.factories.erasure_worlds import World, small_world


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home") as world:
        yield world


@pytest.fixture
def world(new_database: Callable[..., str], tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home", new_database()) as world:
        yield world


@pytest.fixture
def platform(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A platform whose rows name models relative to its home."""
    monkeypatch.setenv("ICCM_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    with small_world(tmp_path / "home", new_database()) as made:
        yield made
    get_settings.cache_clear()


@pytest.fixture
def empty(new_database: Callable[..., str], tmp_path: Path) -> Settings:
    """The settings of a platform that has nothing yet."""
    return load_settings(home=tmp_path / "elsewhere" / "home", database_url=new_database(empty=True))
