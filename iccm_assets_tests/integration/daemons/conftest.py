"""A platform with daemons: the project's dagster.yaml and workspace.yaml, `dagster-daemon run`, real runs.

Every test has databases of its own on the tests' server, and a base model of 30 000 weights, so that a
retrain takes seconds. Nothing of the daemon is replaced but its clock (`clock.py`), and its runs are ordinary
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.cli.env import get_dagster_environment as dagster_environment
from iccm_assets.db.clock import now, set_clock
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout.deployment import ensure_production
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.daemon_platforms import Platform
from iccm_assets_tests.factories.demo_platforms import write_canary_items
from iccm_assets_tests.factories.processes import bare_environment, stop
from iccm_assets_tests.factories.tiny_models import tiny_t5

# What a random model of 30 000 weights and a test of a minute need; everything else is the default.
SMALL = {
    "ICCM_TRAINING__LEARNING_RATE": "1e-3",
    "ICCM_TRAINING__EPOCHS": "1",
    "ICCM_TRAINING__EMERGENCY_EPOCHS": "1",
    "ICCM_TRAINING__THREADS": "1",
    "ICCM_EVALUATION__MAX_NEW_TOKENS": "16",
    "ICCM_EVALUATION__LATENCY_ITEMS": "5",
    "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
}
CANARY_ITEMS = 6


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base model and a canary set of next to nothing, as settings."""
    home = tmp_path_factory.mktemp("small")
    canary_set = write_canary_items(home / "canary.jsonl", CANARY_ITEMS)
    return {"ICCM_BASE_MODEL": str(tiny_t5(home / "model")), "ICCM_CANARY_SET": canary_set}


@pytest.fixture
def make_platform(
    new_database: Callable[..., str],
    small_models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Platform]]:
    """`make_platform(at)`: a platform with the base model in production, whose clock says ``at``."""
    made: list[Platform] = []

    def make(at: datetime, **settings: str) -> Platform:
        own = SMALL | small_models | settings
        own |= {"ICCM_HOME": str(tmp_path / f"iccm-{len(made)}"), "ICCM_DATABASE_URL": plain(new_database())}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        loaded = load_settings()
        for_dagster = dagster_environment(loaded)
        monkeypatch.setenv("DAGSTER_PG_URL", for_dagster["DAGSTER_PG_URL"])
        engine = sa.create_engine(sa.make_url(own["ICCM_DATABASE_URL"]).set(drivername="postgresql+psycopg"))
        instance = dg.DagsterInstance.from_config(for_dagster["DAGSTER_HOME"])
        assert (
            instance.run_storage and instance.event_log_storage and instance.schedule_storage
        )  # connect now
        made.append(Platform(loaded, engine, instance, bare_environment() | own | for_dagster, at))
        with engine.begin() as conn:
            set_clock(conn, shift=at - now(conn))
        ensure_production(engine, ModelStore(loaded.home), loaded)
        return made[-1]

    yield make
    stop([daemon.process for platform in made for daemon in platform.daemons])
    for platform in made:
        platform.instance.dispose()
        platform.engine.dispose()


def plain(url: str) -> str:
    return sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
