"""What is published under a URL: all of it or nothing, whoever fails when. (K2)"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec.registry
import pytest

from iccm_assets import object_storage
from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import (
    ArtifactNotFoundError,
    CorruptArtifactError,
    IccmError,
    SettingsError,
    StorageError,
)
from iccm_assets.object_storage import ArtifactFile, ArtifactManifest, ObjectStorage, open_url
from iccm_assets.settings import load_settings
from iccm_assets.storage_cache import StorageCache
from iccm_assets_tests.factories.object_storages import (
    BUCKET,
    FaultPlan,
    FaultyFileSystem,
    Killed,
    make_artifact,
    read_tree,
    s3_server,
)

NAME = "a" * 64


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture(params=["s3", "memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    if request.param == "s3":
        for name, value in request.getfixturevalue("server").items():
            monkeypatch.setenv(name, value)
        return ObjectStorage(f"s3://{BUCKET}/{tmp_path.name}/homes")
    return ObjectStorage(
        f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/nfs"
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "artifact")


def make_cache(storage: ObjectStorage, home: Path, max_bytes: int = 1 << 30) -> StorageCache:
    return StorageCache(home, storage, max_bytes)


def damage(storage: ObjectStorage, key: str, content: bytes) -> None:
    fs, root = open_url(storage.url)
    fs.pipe_file(f"{root}/{key}", content)


def test_what_is_published_is_downloaded_bit_for_bit_with_its_permissions(
    storage: ObjectStorage, artifact: Path, tmp_path: Path
) -> None:
    (artifact / "file1").chmod(0o755)
    assert storage.publish("models", NAME, artifact)
    assert not storage.publish("models", NAME, artifact)
    assert [each.name for each in storage.list_artifacts("models")] == [NAME]
    assert storage.exists("models", NAME) and not storage.exists("datasets", NAME)
    target = tmp_path / "target"
    storage.download(storage.read_manifest("models", NAME), target)
    assert read_tree(target) == read_tree(artifact)
    assert (target / "file1").stat().st_mode & 0o777 == 0o755


# fsspec's storage in memory is no other process's: it looks and then writes, without a lock.
@pytest.mark.parametrize("storage", ["s3", "file"], indirect=True)
def test_of_publishers_at_the_same_time_exactly_one_wins_and_none_fails(
    storage: ObjectStorage, artifact: Path, tmp_path: Path
) -> None:
    for number in range(5):
        name, barrier = f"{number:064x}", threading.Barrier(4)

        def publish(_: int, name: str = name, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return storage.publish("models", name, artifact)

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(publish, range(4))) == [False, False, False, True]
        home = make_cache(storage, tmp_path / f"home{number}").fetch("models", name)
        assert read_tree(home) == read_tree(artifact)


def test_publishers_of_one_digest_whose_files_differ_leave_one_of_both_whole(
    storage: ObjectStorage, artifact: Path, tmp_path: Path
) -> None:
    other = make_artifact(tmp_path / "other", seed=1)
    assert storage.publish("environments", NAME, artifact)
    assert not storage.publish("environments", NAME, other)
    assert read_tree(make_cache(storage, tmp_path / "home").fetch("environments", NAME)) == read_tree(
        artifact
    )


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_refused_by_name_and_repaired_by_a_home_that_has_it(
    storage: ObjectStorage, artifact: Path, tmp_path: Path, fault: str
) -> None:
    storage.publish("models", NAME, artifact)
    entry, content = storage.read_manifest("models", NAME).files["file2"], (artifact / "file2").read_bytes()
    key = f"models/{NAME}/{entry.sha256}"
    if fault == "missing":
        fs, root = open_url(storage.url)
        fs.rm(f"{root}/{key}")
    else:
        damage(storage, key, content[:-1] if fault == "truncated" else b"\0" + content[1:])
    cache = make_cache(storage, tmp_path / "home")
    with pytest.raises(CorruptArtifactError, match="missing" if fault == "missing" else "file2"):
        cache.fetch("models", NAME)
    assert list((tmp_path / "home" / "models").glob("[!.]*")) == []
    assert not storage.publish("models", NAME, artifact, verify=True)
    assert read_tree(cache.fetch("models", NAME)) == read_tree(artifact)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": 1}'])
def test_a_damaged_manifest_is_refused_and_the_next_publisher_replaces_it(
    storage: ObjectStorage, artifact: Path, content: bytes
) -> None:
    storage.publish("models", NAME, artifact)
    damage(storage, f"models/{NAME}.json", content)
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        storage.read_manifest("models", NAME)
    assert storage.publish("models", NAME, artifact)
    assert storage.read_manifest("models", NAME).size


def test_the_manifest_of_another_artifact_or_with_another_digest_is_refused(
    storage: ObjectStorage, artifact: Path
) -> None:
    storage.publish("models", NAME, artifact)
    fs, root = open_url(storage.url)
    text = fs.cat_file(f"{root}/models/{NAME}.json")
    damage(storage, f"models/{'b' * 64}.json", text)
    damage(storage, f"models/{NAME}.json", text.replace(b"file1", b"file9"))
    for name in (NAME, "b" * 64):
        with pytest.raises(CorruptArtifactError, match="was changed"):
            storage.read_manifest("models", name)


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "", "a\0b"])
def test_a_manifest_cannot_name_a_file_outside_of_its_directory(path: str) -> None:
    with pytest.raises(ValueError, match="is no file of an artifact"):
        ArtifactManifest(
            kind="models", name=NAME, files={path: ArtifactFile(sha256="0" * 64, size=1, mode=0o644)}
        )


def test_a_deleted_artifact_is_not_found_and_leaves_no_object(
    storage: ObjectStorage, artifact: Path, tmp_path: Path
) -> None:
    storage.publish("models", NAME, artifact)
    manifest = storage.read_manifest("models", NAME)
    storage.delete("models", NAME)
    storage.delete("models", NAME)
    fs, root = open_url(storage.url)
    assert fs.find(f"{root}/models") == []
    with pytest.raises(ArtifactNotFoundError, match="was deleted meanwhile"):
        storage.download(manifest, tmp_path / "target")
    with pytest.raises(ArtifactNotFoundError):
        make_cache(storage, tmp_path / "home").fetch("models", NAME)


def test_a_replaced_artifact_has_the_new_files_only(
    storage: ObjectStorage, artifact: Path, tmp_path: Path
) -> None:
    storage.publish("datasets", NAME, artifact)
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest").write_text("erased")
    storage.replace("datasets", NAME, other)
    assert read_tree(make_cache(storage, tmp_path / "home").fetch("datasets", NAME)) == {
        "manifest": b"erased"
    }
    fs, root = open_url(storage.url)
    assert len(fs.find(f"{root}/datasets/{NAME}")) == 1


def test_files_of_a_killed_publisher_are_removed_when_they_are_old(
    storage: ObjectStorage, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish("models", "b" * 64, artifact)

    def die(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(object_storage, "create_object", die)
        storage.publish("models", NAME, artifact)
    assert [each.name for each in storage.list_artifacts("models")] == ["b" * 64]
    assert storage.remove_abandoned("models") == []
    assert storage.remove_abandoned("models", older_than_seconds=-2) == [NAME]
    assert storage.publish("models", NAME, artifact)


def test_the_check_writes_reads_and_deletes(storage: ObjectStorage) -> None:
    assert storage.check() == f"{storage.url} can be written and read (conditional create)"
    fs, root = open_url(storage.url)
    assert [key for key in fs.find(root) if ".check" in key] == []


def test_a_storage_without_conditional_writes_still_shows_whole_artifacts(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain(FaultyFileSystem):
        def pipe_file(self, key: str, content: bytes, **options: str) -> None:
            if options:
                raise OSError(38, "A header you provided implies functionality that is not implemented")
            self._inner.pipe_file(key, content)

    storage, connect = ObjectStorage(f"memory://{tmp_path.name}"), object_storage.open_url

    def open_plain(url: str) -> tuple[Any, str]:
        fs, root = connect(url)
        return Plain(fs, FaultPlan(0, 0.0)), root

    monkeypatch.setattr(object_storage, "open_url", open_plain)
    assert storage.publish("models", NAME, artifact)
    assert not storage.publish("models", NAME, artifact)
    assert "can be written" in storage.check()
    assert read_tree(make_cache(storage, tmp_path / "home").fetch("models", NAME)) == read_tree(artifact)


# ---- errors that a person has to act on ----------------------------------------------------------


def test_a_missing_bucket_is_an_error_and_not_an_empty_storage(
    server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    missing = ObjectStorage("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x does not exist .*Create the bucket"):
        missing.check()
    with pytest.raises(StorageError, match=r"does not exist .*Create the bucket"):
        missing.list_artifacts("models")
    with pytest.raises(StorageError, match=r"does not exist .*Create the bucket"):
        missing.read_manifest("models", NAME)


def refuse(error: Exception) -> Any:
    class Refusing(FaultyFileSystem):
        def pipe_file(self, key: str, content: bytes, **options: str) -> None:
            raise error

    return lambda url: (Refusing(fsspec.filesystem("memory"), FaultPlan(0, 0.0)), "bucket/x")


def test_refused_credentials_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_storage, "open_url", refuse(PermissionError("The AWS Access Key Id is wrong")))
    with pytest.raises(StorageError, match=r"access was refused .*Access Key Id is wrong.*AWS_ACCESS_KEY_ID"):
        ObjectStorage("s3://bucket/x").check()


def test_without_credentials_or_a_server_the_error_says_so(
    server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in server:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=r"no credentials were found.*AWS_ACCESS_KEY_ID"):
        ObjectStorage("s3://bucket/x").check()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        ObjectStorage("s3://bucket/x").check()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    "url", ["foo://bucket/x", "bucket/x", "s3://", "s3://key:secret@bucket/x", "s3:/bucket"]
)
def test_a_value_that_is_no_url_of_a_storage_is_an_error(url: str) -> None:
    if url.startswith("foo"):
        with pytest.raises(StorageError, match=r"Protocol not known: foo.*s3://bucket/prefix"):
            ObjectStorage(url).check()
        return
    with pytest.raises(SettingsError, match=r"ICCM_STORAGE: .*s3://bucket/prefix"):
        load_settings(storage=url)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    # `fsspec.registry` is a module whose name its package gives to a mapping.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StorageError, match=r"pip install 'iccm-assets\[s3\]'"):
        ObjectStorage("s3://bucket/x").check()


# ---- faults --------------------------------------------------------------------------------------


class World:
    """Two publishers and two readers of one artifact, over a storage that fails."""

    def __init__(self, directory: Path, seed: int, share: float) -> None:
        self.artifact = make_artifact(directory / "artifact", seed=seed)
        self.expected = read_tree(self.artifact)
        self.storage = ObjectStorage(f"memory://faults/{seed}")
        self.plan = FaultPlan(seed, share)
        self.caches = [make_cache(self.storage, directory / f"home{number}") for number in range(2)]
        self.outcomes: Counter[str] = Counter()

    def publish(self) -> None:
        try:
            self.outcomes[f"published {self.storage.publish('models', NAME, self.artifact)}"] += 1
        except (IccmError, Killed) as error:
            self.outcomes[type(error).__name__] += 1

    def delete(self) -> None:
        """Delete the artifact, so that it is published anew."""
        with suppress(IccmError, Killed):
            self.storage.delete("models", NAME)

    def read(self, cache: StorageCache) -> None:
        path = cache.home / "models" / NAME
        try:
            cache.fetch("models", NAME)
            assert read_tree(path) == self.expected
            cache.release("models", NAME)
            assert cache.remove("models", NAME)
            self.outcomes["read"] += 1
        except (IccmError, Killed) as error:
            self.outcomes[f"reader {type(error).__name__}"] += 1
        assert not path.exists()


def run_world(world: World, rounds: int) -> None:
    """Let both publishers and both readers work, one after another and at the same time."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(rounds):
            jobs = [pool.submit(world.publish), *(pool.submit(world.read, cache) for cache in world.caches)]
            jobs += [pool.submit(world.publish)] if number % 2 else []
            for job in jobs:
                job.result()
            if number % 2:
                world.delete()


def sweep(
    directory: Path, monkeypatch: pytest.MonkeyPatch, seeds: range, rounds: int
) -> tuple[Counter[str], Counter[str]]:
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    connect = object_storage.open_url
    for seed in seeds:
        world = World(directory / str(seed), seed, share=0.22)

        def open_faulty(url: str, plan: FaultPlan = world.plan) -> tuple[Any, str]:
            fs, root = connect(url)
            return FaultyFileSystem(fs, plan), root

        with monkeypatch.context() as patch:
            patch.setattr(object_storage, "open_url", open_faulty)
            run_world(world, rounds)
        # The faults are over: one publisher that verifies, and everybody reads all of it.
        world.storage.publish("models", NAME, world.artifact, verify=True)
        for cache in world.caches:
            assert read_tree(cache.fetch("models", NAME)) == world.expected
            cache.release("models", NAME)
            leftovers = [path for path in (cache.home / "models" / ".staging").glob("*")]
            assert leftovers == []
        faults.update(world.plan.faults)
        outcomes.update(world.outcomes)
        remove_tree(directory / str(seed))
    return faults, outcomes


def test_no_reader_sees_a_part_whatever_of_over_200_faults_hits_publishers_and_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, outcomes = sweep(tmp_path, monkeypatch, range(24), rounds=8)
    assert faults.total() >= 200
    steps = {fault.partition(":")[0] for fault in faults}
    assert steps == {"put", "pipe_file", "get", "cat_file"}
    # Every kind of outcome was met: the sweep is no test of a storage that always fails, or never.
    assert {"read", "published True", "published False", "reader CorruptArtifactError"} <= outcomes.keys()


@pytest.mark.slow
def test_no_reader_sees_a_part_in_a_long_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, outcomes = sweep(tmp_path, monkeypatch, range(100, 250), rounds=8)
    assert faults.total() >= 1500
    assert outcomes["read"] >= 100
