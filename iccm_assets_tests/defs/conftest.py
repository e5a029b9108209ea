"""The platform's resource on a database of the test's own, and a real Dagster instance."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.test_utils import instance_for_test

from iccm_assets.defs import resources
from iccm_assets.settings import get_settings


@pytest.fixture
def platform(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> Iterator[resources.PlatformResource]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("ICCM_DATABASE_URL", url)
    monkeypatch.setenv("ICCM_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    resources._engine.cache_clear()
    yield resources.PlatformResource()
    resources._engine().dispose()
    resources._engine.cache_clear()
    get_settings.cache_clear()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def stored_instance() -> Iterator[dg.DagsterInstance]:
    """An instance with a folder, which other processes and a repository's own code can open."""
    with instance_for_test() as made:
        yield made
