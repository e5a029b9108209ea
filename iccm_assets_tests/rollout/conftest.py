"""A bootstrapped platform with a candidate, for the tests that roll it out."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.settings import Settings
from iccm_assets_tests.factories.rollouts import World, short


@pytest.fixture
def world(engine: sa.Engine, settings: Settings, tmp_path: Path) -> World:
    """Production and a candidate the gate has passed."""
    return World(engine, short(settings), tmp_path / "models").bootstrap()
