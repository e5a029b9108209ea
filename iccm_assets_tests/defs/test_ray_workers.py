"""Training, recording and scoring on a cluster of two nodes give what they give here, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.defs import ray_workers, resources
from iccm_assets.defs.ray_workers import RayWorkers
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.workers import LocalWorkers, WorkerClient
from iccm_assets.errors import ComputeError
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import get_settings
from iccm_assets.training.worker_protocol import parse_reply
from iccm_assets_tests.factories.ray_clusters import RayCluster, start_cluster
from iccm_assets_tests.factories.scorable_rows import put_conversation
from iccm_assets_tests.factories.training_jobs import tiny_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TRAINER = "iccm_assets.training.trainer_worker"
RECORDER = "iccm_assets.scoring.recording_worker"
SCORER = "iccm_assets.scoring.scoring_worker"
DAYS = {"days": ["2026-03-01", "2026-03-01"]}
TEXTS = 16
RESULTS = sa.text(
    """
    select r.id, r.test_suite, r.test_suite_origin, r.test_pass_rate, r.implementation_variance,
        r.api_compatibility, r.judge_version, r.orchestra, r.evidence, s.digest, s.strength,
        s.status, s.reason,
        array(select (m.reconstructor, m.implementation_code, m.results, m.status)::text
            from iccm.reconstructions m where m.requirement_id = r.id order by m.reconstructor)
    from iccm.requirements r left join iccm.test_suites s using (source_sha256) order by r.id, s.digest
    """
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    # Short: the names of its sockets may have 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        with start_cluster(directory) as made:
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def ray_platform(
    platform: PlatformResource, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> PlatformResource:
    monkeypatch.setenv("ICCM_COMPUTE", "ray")
    monkeypatch.setenv("ICCM_RAY__ADDRESS", cluster.address)
    monkeypatch.setenv("ICCM_RAY__NUM_CPUS", "1")
    monkeypatch.setenv("ICCM_JUDGE__WORKERS", "1")
    get_settings.cache_clear()
    return platform


def use_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_DATABASE_URL", url)
    get_settings.cache_clear()
    resources._engine().dispose()
    resources._engine.cache_clear()


def in_a_step(work: Callable[[dg.AssetExecutionContext], Any]) -> Any:
    """Run ``work`` as the body of an asset and return its result."""
    results = []

    @dg.asset
    def probe(context) -> dg.MaterializeResult:
        results.append(work(context))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([probe], instance=instance)
    return results[0]


def train(workers: WorkerClient, platform: PlatformResource, job: Any) -> Any:
    extras = {"job": job.model_dump(mode="json")}
    return parse_reply(in_a_step(lambda context: workers.run(context, platform, TRAINER, extras)))


def perform(workers: WorkerClient, platform: PlatformResource, module: str) -> dict[str, Any]:
    return in_a_step(lambda context: workers.perform(context, platform, module, DAYS))


def wait_for_job(module: str, seconds: float = 120) -> Any:
    """Wait until a job of the module runs, and return its description."""
    client, deadline = ray_workers.connect(get_settings().ray), time.monotonic() + seconds
    while time.monotonic() < deadline:
        running = [job for job in client.list_jobs() if module in job.entrypoint and job.status == "RUNNING"]
        if running and running[0].driver_node_id:
            return running[0]
        time.sleep(0.5)
    raise AssertionError(f"no job of {module} runs")


def put_texts(platform: PlatformResource) -> None:
    """Texts of accepted requirements without tests, whose code the built-in reconstructors can write."""
    for n in range(2, 2 + TEXTS):
        put_conversation(
            platform.engine,
            platform.settings,
            f"s{n}",
            suite=None,
            source=f"def f(x: int):\n    return {n} * x\n",
            text=f"The function `f` shall take `x`.\nIt shall return {n} times `x`.",
        )


def results(platform: PlatformResource) -> list[sa.Row[Any]]:
    with platform.engine.connect() as conn:
        return list(conn.execute(RESULTS))


def test_a_trainer_on_the_cluster_publishes_the_same_weights(ray_platform: PlatformResource) -> None:
    job = tiny_job(get_settings().home)
    here = train(LocalWorkers(), ray_platform, job)
    shutil.rmtree(here.path)
    there = train(RayWorkers(), ray_platform, job)
    assert (here.digest, here.weights_digest) == (there.digest, there.weights_digest)
    assert here.history == there.history
    assert ModelStore(get_settings().home).verify(there.digest)


def test_recording_and_scoring_on_both_nodes_give_the_same_suites_and_scores(
    ray_platform: PlatformResource, new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_texts(ray_platform)
    recorded = perform(LocalWorkers(), ray_platform, RECORDER)
    assert recorded["sources_usable"] == TEXTS
    perform(LocalWorkers(), ray_platform, SCORER)
    here = results(ray_platform)
    assert {row.test_pass_rate for row in here} == {1.0}

    use_database(new_database(), monkeypatch)
    put_texts(ray_platform)
    assert perform(RayWorkers(), ray_platform, RECORDER) == recorded
    report = perform(RayWorkers(), ray_platform, SCORER)
    assert results(ray_platform) == here
    assert report["scored"] == report["selected_rows"] == TEXTS
    assert len(report["nodes"]) == 2 and all(report["nodes"].values())


def test_a_trainer_whose_node_is_killed_is_started_again_and_publishes_once(
    ray_platform: PlatformResource, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_RAY__NUM_CPUS", "2")  # the second node only
    get_settings.cache_clear()
    job = tiny_job(get_settings().home, epochs=30, early_stopping_patience=30)
    here = train(LocalWorkers(), ray_platform, job)
    shutil.rmtree(here.path)
    models = ModelStore(get_settings().home).list_digests()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train, RayWorkers(), ray_platform, job)
        first = wait_for_job(TRAINER)
        time.sleep(3)
        cluster.replace_second_node()
        there = future.result()
    assert there.digest == here.digest
    assert set(ModelStore(get_settings().home).list_digests()) - set(models) == {here.digest}
    info = ray_workers.connect(get_settings().ray).get_job_info(first.submission_id)
    assert info.status == "FAILED"


def test_a_scoring_pass_survives_the_death_of_a_node(
    ray_platform: PlatformResource, cluster: RayCluster
) -> None:
    put_texts(ray_platform)
    perform(LocalWorkers(), ray_platform, RECORDER)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(perform, RayWorkers(), ray_platform, SCORER)
        wait_for_job(SCORER)
        time.sleep(8)
        cluster.replace_second_node()
        future.result()
    assert {row.test_pass_rate for row in results(ray_platform)} == {1.0}


def test_a_stopped_job_and_a_cluster_that_is_gone_are_named(
    ray_platform: PlatformResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(get_settings().home, epochs=30, early_stopping_patience=30)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train, RayWorkers(), ray_platform, job)
        running = wait_for_job(TRAINER)
        ray_workers.connect(get_settings().ray).stop_job(running.submission_id)
        with pytest.raises(ComputeError, match=f"Ray job {running.submission_id} was stopped"):
            future.result()
    monkeypatch.setenv("ICCM_RAY__ADDRESS", "http://127.0.0.1:9")
    get_settings.cache_clear()
    with pytest.raises(ComputeError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        train(RayWorkers(), ray_platform, job)
