"""The rollout in Dagster: the sensor ticks and observes, the asset opens (R7, U2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.defs import resources
from iccm_assets.defs.automation.sensors import rollout_controller_sensor
from iccm_assets.defs.rollout.assets import DeploymentConfig, deployed_model_version
from iccm_assets.rollout import controller
from iccm_assets.settings import Settings, get_settings, load_settings
from iccm_assets_tests.factories.rollouts import World


@pytest.fixture
def world(engine: sa.Engine, settings: Settings, tmp_path: Path) -> World:
    settings = load_settings(profile="production", home=settings.home, database_url=settings.database_url)
    return World(engine, settings, tmp_path / "models").bootstrap()


@pytest.fixture
def platform(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[resources.PlatformResource]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("ICCM_DATABASE_URL", url)
    monkeypatch.setenv("ICCM_PROFILE", "production")
    get_settings.cache_clear()
    resources._engine.cache_clear()
    yield resources.PlatformResource()
    resources._engine().dispose()
    resources._engine.cache_clear()
    get_settings.cache_clear()


class Ticks:
    """The sensor on an ephemeral instance, its cursor kept as the daemon keeps it."""

    def __init__(self, instance: dg.DagsterInstance, platform: resources.PlatformResource) -> None:
        self.instance, self.platform, self.cursor = instance, platform, None

    def __call__(self) -> tuple[str, list[dg.AssetObservation]]:
        context = dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"platform": self.platform}
        )
        result = rollout_controller_sensor.evaluate_tick(context)
        self.cursor = result.cursor
        assert result.run_requests == []
        return result.skip_message or "", list(result.asset_events)


@pytest.fixture
def tick(platform: resources.PlatformResource) -> Iterator[Ticks]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Ticks(instance, platform)


def value(observation: dg.AssetObservation, name: str) -> object:
    return observation.metadata[name].value


def test_without_a_rollout_the_sensor_says_so(world: World, tick: Ticks) -> None:
    assert tick() == ("no rollout is live", [])


def test_the_sensor_ticks_and_observes_a_live_rollout_every_five_minutes(world: World, tick: Ticks) -> None:
    world.open()
    world.beat()
    message, [first] = tick()
    assert value(first, "weight") == 0.1 and value(first, "state") == "ramping"
    assert first.asset_key == dg.AssetKey("deployed_model_version")
    assert "every gateway replica has the candidate ready" in message
    assert "6.00 h of healthy time" in value(first, "waiting_for")
    lease = world.state().lease_until
    world.wait(60)
    world.beat()
    message, none = tick()
    assert none == [] and "of 6 h healthy, 0 of 30 scored canary-arm sessions" in message
    assert world.state().lease_until > lease
    for minute in range(5):
        world.wait(61)
        world.beat()
        message, events = tick()
        assert bool(events) == (minute == 3), minute
    world.wait(-86400)  # the platform's clock is set back, as at the end of a demo
    assert len(tick()[1]) == 1 and tick()[1] == []
    controller.execute_command(world.engine, world.settings, "abort", actor="user:ada")
    assert tick() == ("no rollout is live", [])


def materialized(
    world: World, platform: resources.PlatformResource, **config: object
) -> dict[str, dg.MetadataValue]:
    done = dg.materialize(
        [deployed_model_version],
        resources={"platform": platform},
        run_config=dg.RunConfig(
            {"deployed_model_version": DeploymentConfig(version=world.candidate, **config)}
        ),
    )
    assert done.success
    return done.asset_materializations_for_node("deployed_model_version")[0].metadata


def test_materializing_the_asset_opens_the_rollout_once(
    world: World, platform: resources.PlatformResource
) -> None:
    metadata = materialized(world, platform)
    again = materialized(world, platform)
    assert metadata["rollout"] == again["rollout"] and metadata["weight"].value == 0.0
    assert "42 h healthy" in metadata["forecast"].value
    assert world.statuses()[world.candidate] == "canary"
    assert world.events() == ["opened"]


def test_materializing_it_without_a_rollout_promotes_at_once(
    world: World, platform: resources.PlatformResource
) -> None:
    metadata = materialized(world, platform, rollout=False)
    assert metadata["weight"].value == 1.0
    assert world.statuses() == {world.production: "retired", world.candidate: "production"}
