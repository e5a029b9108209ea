"""Training, recording and scoring on a cluster of two nodes give what they give here, bit for bit."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.capture.conversations import upsert_conversation
from iccm_assets.cli.doctor import check_cluster
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.defs import ray_workers, resources
from iccm_assets.defs.automation.jobs import live_scoring_job
from iccm_assets.defs.evaluation.assets import canary_evaluation, canary_set
from iccm_assets.defs.ray_workers import RayWorkers
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.training.assets import base_model, fine_tuned_checkpoint
from iccm_assets.defs.workers import LocalWorkers, WorkerClient
from iccm_assets.errors import ComputeError
from iccm_assets.object_storage import ObjectStorage
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import PACKAGED_CANARY_SET, get_settings
from iccm_assets.training.dataset import DatasetStore
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome, parse_reply
from iccm_assets_tests.factories.erasure_worlds import DAY, EMBEDDER, SUBJECTS, score, session
from iccm_assets_tests.factories.object_storages import BUCKET, s3_server
from iccm_assets_tests.factories.ray_clusters import RayCluster, start_cluster
from iccm_assets_tests.factories.scorable_rows import put_conversation, serve_request
from iccm_assets_tests.factories.training_jobs import tiny_dataset, tiny_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
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
VERSIONS = sa.text("select version, status, digest from iccm.model_versions order by version")
CANARY_RESULTS = sa.text(
    """
    select model_digest, item, reconstructor, orchestra, judge_version, decoding, requirements,
        test_pass_rate, output_tokens, status, reason
    from iccm.canary_results order by model_digest, item, reconstructor
    """
)
RETRAIN = [base_model, canary_set, fine_tuned_checkpoint, canary_evaluation]
CANARY_ITEMS = 6
SMALL = {
    "ICCM_TRIGGERS__MIN_EXAMPLES": "2",
    "ICCM_SELECTION__MAX_USER_SHARE": "1",
    "ICCM_TRAINING__EPOCHS": "1",
    "ICCM_EVALUATION__LATENCY_ITEMS": "5",
    "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    # Short: the names of its sockets may have 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        with s3_server() as variables, start_cluster(directory, variables) as made:
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def ray_platform(
    platform: PlatformResource, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> PlatformResource:
    """A platform whose work runs on the cluster; its home, and those of the nodes, share a storage only."""
    values = {
        "ICCM_COMPUTE": "ray",
        "ICCM_RAY__ADDRESS": cluster.address,
        "ICCM_RAY__NUM_CPUS": "1",
        "ICCM_RAY__NODE_VARIABLES": "ICCM_HOME",
        "ICCM_STORAGE": f"s3://{BUCKET}/{tmp_path.name}",
        "ICCM_JUDGE__WORKERS": "1",
        **cluster.environment,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    return platform


def use_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_DATABASE_URL", url)
    get_settings.cache_clear()
    resources._engine().dispose()
    resources._engine.cache_clear()


def in_a_step(work: Callable[[dg.AssetExecutionContext], Any]) -> Any:
    """Run ``work`` as the body of an asset and return its result; it gives the slot of its pool back."""
    results = []

    @dg.asset(pool="training")
    def probe(context) -> dg.MaterializeResult:
        assert len(slots.get_concurrency_info("training").claimed_slots) == 1
        results.append(work(context))
        return dg.MaterializeResult()

    with dg.instance_for_test(set_dagster_home=False) as instance:
        slots = instance.event_log_storage
        slots.set_concurrency_slots("training", 1)
        try:
            dg.materialize([probe], instance=instance)
        finally:
            assert not slots.get_concurrency_info("training").claimed_slots
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


def put_texts(platform: PlatformResource, count: int = TEXTS) -> None:
    """Texts of accepted requirements without tests, whose code the built-in reconstructors can write."""
    for n in range(2, 2 + count):
        put_conversation(
            platform.engine,
            platform.settings,
            f"s{n}",
            suite=None,
            source=f"def f(x: int):\n    return {n} * x\n",
            text=f"The function `f` shall take `x`.\nIt shall return {n} times `x`.",
        )


def prepare_job(**changes: Any) -> TrainingJob:
    """A job whose base and training set are in the storage, too."""
    settings = get_settings()
    job = tiny_job(settings.home, storage=settings.storage, **changes)
    ModelStore.open(settings).import_model(job.base)
    DatasetStore.open(settings).write(tiny_dataset())
    return job


def forget(outcome: TrainingOutcome) -> None:
    """Remove a candidate from the home and from the storage."""
    ObjectStorage(get_settings().storage).delete("models", outcome.digest)
    remove_tree(Path(outcome.path))


def results(platform: PlatformResource) -> list[sa.Row[Any]]:
    with platform.engine.connect() as conn:
        return list(conn.execute(RESULTS))


def test_a_retrain_on_the_cluster_gives_the_same_candidate_and_the_same_scores(
    ray_platform: PlatformResource,
    new_database: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with gzip.open(PACKAGED_CANARY_SET, "rt") as whole:
        items = "".join(islice(whole, CANARY_ITEMS))
    (tmp_path / "canary.jsonl").write_text(items)
    for name, value in {**SMALL, "ICCM_CANARY_SET": str(tmp_path / "canary.jsonl")}.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()

    def retrain(workers: WorkerClient) -> list[sa.Row[Any]]:
        prepare_pool(ray_platform)
        with dg.DagsterInstance.ephemeral() as instance:
            used = {"platform": ray_platform, "workers": workers}
            assert dg.materialize(RETRAIN, instance=instance, resources=used).success
        with ray_platform.engine.connect() as conn:
            return list(conn.execute(VERSIONS)) + list(conn.execute(CANARY_RESULTS))

    here = retrain(LocalWorkers())
    assert len({row.digest for row in here[:2]}) == 2
    assert len(here) >= 2 + 2 * CANARY_ITEMS and any(row.test_pass_rate for row in here[2:])
    monkeypatch.setenv("ICCM_HOME", str(tmp_path / "another home"))
    monkeypatch.setenv("ICCM_STORAGE", f"s3://{BUCKET}/another")
    use_database(new_database(), monkeypatch)
    assert retrain(RayWorkers()) == here
    store = ModelStore.open(get_settings())
    assert [store.verify(row.digest).digest for row in here[:2]] == [row.digest for row in here[:2]]


def prepare_pool(platform: PlatformResource) -> None:
    """Scored conversations of yesterday, in the training pool."""
    for number, subject in enumerate(SUBJECTS):
        conversation = session(f"s{number}", f"user{number}", subject, f"words{number}")
        with platform.engine.begin() as conn:
            upsert_conversation(conn, conversation, settings=platform.settings)
    score(platform.engine)
    filter_day(platform.engine, DAY, platform.settings, EMBEDDER)
    rebuild_pool(platform.engine, [DAY], platform.settings, EMBEDDER)


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


def test_live_sessions_are_scored_on_both_nodes_as_they_are_here(
    ray_platform: PlatformResource, new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_live(workers: WorkerClient) -> dict[str, Any]:
        """Answers of the gateway, half of which are wrong, scored by the job that the schedule starts."""
        for n in range(TEXTS):
            text = f"The function `f` shall take `x`.\nIt shall return {2 + n % 2} times `x`."
            serve_request(ray_platform.engine, ray_platform.settings, f"r{n}", f"s{n}", text=text)
        with dg.DagsterInstance.ephemeral() as instance:
            used = {"platform": ray_platform, "workers": workers}
            result = live_scoring_job.execute_in_process(instance=instance, resources=used)
            [output] = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
            logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
        metadata = output.step_output_data.metadata
        counts = {name: metadata[name].value for name in ("texts", "texts_scored", "pending")}
        return {**counts, "nodes": [line for line in logged if line.startswith("node ")]}

    here = score_live(LocalWorkers())
    scores = results(ray_platform)
    rates = [row.test_pass_rate for row in scores if row.test_pass_rate is not None]
    assert sorted(rates) == [pytest.approx(1 / 6)] * (TEXTS // 2) + [1.0] * (TEXTS // 2)
    use_database(new_database(), monkeypatch)
    there = score_live(RayWorkers())
    assert results(ray_platform) == scores
    assert here == {"texts": TEXTS, "texts_scored": TEXTS, "pending": 0, "nodes": []}
    assert len(there.pop("nodes")) == 2 and there == {name: here[name] for name in there}


def test_a_trainer_whose_node_is_killed_is_started_again_and_publishes_once(
    ray_platform: PlatformResource, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_RAY__NUM_CPUS", "2")  # the second node only
    get_settings.cache_clear()
    job = prepare_job(epochs=30, early_stopping_patience=30)
    here = train(LocalWorkers(), ray_platform, job)
    forget(here)
    storage = ObjectStorage(get_settings().storage)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train, RayWorkers(), ray_platform, job)
        first = wait_for_job(TRAINER)
        time.sleep(3)
        cluster.replace_second_node()
        assert here.digest not in {model.name for model in storage.list_artifacts("models")}
        there = future.result()
    assert (there.digest, there.history) == (here.digest, here.history)
    info = ray_workers.connect(get_settings().ray).get_job_info(first.submission_id)
    assert info.status == "FAILED"
    names = {model.name for model in storage.list_artifacts("models")}
    assert names == {here.digest, Path(job.base).name}
    assert storage.remove_abandoned("models", older_than_seconds=0) == []
    assert ModelStore.open(get_settings()).verify(here.digest)


def test_a_scoring_pass_survives_the_death_of_a_node(
    ray_platform: PlatformResource, cluster: RayCluster
) -> None:
    put_texts(ray_platform, 60)
    perform(LocalWorkers(), ray_platform, RECORDER)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(perform, RayWorkers(), ray_platform, SCORER)
        wait_for_job(SCORER)
        while not any(row.test_pass_rate for row in results(ray_platform)):
            time.sleep(0.2)
        unscored = sum(row.test_pass_rate is None for row in results(ray_platform))
        cluster.replace_second_node()
        future.result()
    assert unscored
    assert {row.test_pass_rate for row in results(ray_platform)} == {1.0}


def test_a_stopped_job_and_a_cluster_that_is_gone_are_named(
    ray_platform: PlatformResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare_job(epochs=30, early_stopping_patience=30)
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


def test_doctor_runs_on_a_node_and_names_a_cluster_that_is_gone(
    ray_platform: PlatformResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_check, *problems = check_cluster(get_settings())
    assert cluster_check.ok and "ran job" in cluster_check.detail, cluster_check
    assert problems == []
    monkeypatch.setenv("ICCM_RAY__ADDRESS", "http://127.0.0.1:9")
    get_settings.cache_clear()
    [cluster_check] = check_cluster(get_settings())
    assert not cluster_check.ok and "cannot be reached" in cluster_check.detail
