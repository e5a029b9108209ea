"""What all tests share: one throw-away PostgreSQL server, and a fresh, migrated database per test."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import psutil
import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.databases import DatabasePool

# A console keeps the width it finds when it is made, which is at the first import of the command line, by
# whatever test comes first.
os.environ["COLUMNS"] = "200"

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
# A busy machine is slow, not wrong: no example has a deadline. `make test-all` searches three times as long.
hypothesis.settings.register_profile("quick", hypothesis.settings(), deadline=None, max_examples=50)
hypothesis.settings.register_profile("long", hypothesis.settings(), deadline=None, max_examples=300)
hypothesis.settings.load_profile("quick")

MAX_ID_LENGTH = 1000
_PREFIX = f"iccm-tests-{os.geteuid()}-"
# A database is some 400 files, made and deleted for each of a thousand tests: in memory that takes a third of
# the time of a disk's file system. A server needs a few hundred megabytes.
_IN_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 4 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--repeats", type=int, default=1, metavar="N",
        help="run each test N times, to see whether it can fail (`make test-repeat`)",
    )  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if (repeats := metafunc.config.getoption("repeats")) > 1:
        metafunc.fixturenames.append("repeat")
        metafunc.parametrize("repeat", range(1, repeats + 1), ids=lambda number: f"try {number}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the modules and tests, which live to the end, out of every garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (``-n``) the tests of a file stay together, and those of a marked group do.

    What a module or a group shares (a gateway, a platform that has lived) is then made once. Groups that may
    take longest, by their timeout, come first, then the larger ones: so no worker has a long one left at the
    end while the others wait.
    """
    groups: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("xdist_group")
        name = marker.args[0] if marker else item.nodeid.partition("::")[0]
        if marker is None:
            item.add_marker(pytest.mark.xdist_group(name))
        groups[name].append(item)
    items[:] = [
        item
        for group in sorted(groups.values(), key=lambda group: (-max(map(_timeout, group)), -len(group)))
        for item in group
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start no slow test and no long search that may not end by ``SLOW_TESTS_UNTIL`` (seconds since 1970).

    They are skipped. Continuous integration has a time limit, and machines differ by a factor of three: a
    test is given a third of its timeout.
    """
    until = os.environ.get("SLOW_TESTS_UNTIL")
    is_slow = item.get_closest_marker("slow") or item.config.getoption("--hypothesis-profile") == "long"
    if until and is_slow and time.time() + _timeout(item) / 3 > float(until):
        pytest.skip("not run: the time of this run is over (SLOW_TESTS_UNTIL)")


def _timeout(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker else float(item.config.getini("timeout") or 300)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a long text by its length: the id of the running test is in the environment of each subprocess."""
    is_long = isinstance(val, str | bytes) and len(val) > MAX_ID_LENGTH
    return f"{argname} of {len(val)}" if is_long else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return fail_without_tool((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return fail_without_tool((yield))


def fail_without_tool(report: Report) -> Report:
    """In continuous integration a skip whose reason is that the test "needs" a tool is a failure."""
    if os.environ.get("CI") and report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if reason.startswith("Skipped: needs "):
            report.outcome = "failed"
            report.longrepr = f"{path}:{line}: {reason.removeprefix('Skipped: ')}, which CI has to provide"
    return report


@pytest.fixture(scope="module")
def frozen_heap() -> None:
    """Keep what earlier tests left out of garbage collections, for tests that compare CPU times.

    In a session of thousands of tests a full collection takes longer than what they measure.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server for this test session: not durable, so quick; the URL is that of its main database."""
    _end_servers_of_killed_sessions()
    home = _fastest_directory() / f"{_PREFIX}{os.getpid()}"
    server = EmbeddedServer(home, durable=False)
    url = server.ensure_running()
    try:
        engine = create_engine_for(url)
        upgrade(engine)
        engine.dispose()
        yield url
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def databases(server_url: str) -> Iterator[DatabasePool]:
    pool = DatabasePool(server_url)
    yield pool
    pool.close()


@pytest.fixture
def new_database(databases: DatabasePool) -> Iterator[Callable[..., str]]:
    """Makes databases that are dropped after the test: `new_database()` migrated, `(empty=True)` bare."""
    made: list[str] = []

    def make(*, empty: bool = False) -> str:
        made.append(databases.take(empty=empty))
        return made[-1]

    yield make
    databases.drop(made)


@pytest.fixture
def engine(new_database: Callable[..., str]) -> Iterator[sa.Engine]:
    """An engine on a fresh, migrated database of its own."""
    made = create_engine_for(new_database())
    yield made
    made.dispose()


@pytest.fixture
def settings(engine: sa.Engine, tmp_path: Path) -> Settings:
    """Settings of a platform with an empty home and the database of `engine`."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return load_settings(home=tmp_path / "home", database_url=url)


def _fastest_directory() -> Path:
    """Return where the server's files are: in memory if there is plenty, else with the temporary ones."""
    is_plenty = (
        os.access(_IN_MEMORY, os.W_OK | os.X_OK)
        and shutil.disk_usage(_IN_MEMORY).free > _ENOUGH_BYTES
        and psutil.virtual_memory().available > _ENOUGH_BYTES
    )
    return _IN_MEMORY if is_plenty else Path(tempfile.gettempdir())


def _end_servers_of_killed_sessions() -> None:
    for directory in {_IN_MEMORY, Path(tempfile.gettempdir())}:
        for home in directory.glob(f"{_PREFIX}*"):
            pid = home.name.removeprefix(_PREFIX)
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                EmbeddedServer(home).stop()
                shutil.rmtree(home, ignore_errors=True)
