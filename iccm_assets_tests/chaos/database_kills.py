"""Kill PostgreSQL again and again under load, and compare what it holds with what clients were told.

Sessions have several requests and a rating, so that a record that is stored twice shows in its conversation.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random

import httpx2
import psutil
import psycopg
import sqlalchemy as sa

from iccm_assets.db.embedded import process_discovery
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.errors import EmbeddedServerError
from iccm_assets_tests.factories.gateways import SOURCE, RunningGateway, eventually, rows

POSTMASTER, BACKEND, ALL = "postmaster", "a backend", "all processes"
VICTIMS = (POSTMASTER, ALL, BACKEND)
REQUESTS_PER_SESSION = 3
# As `Restart=always` of systemd with `RestartSec=1`.
RESTART_SECONDS = 1.0
MAX_PAUSE_SECONDS = 2.0
# Pauses of the watch grow to a minute, and a start on a busy machine takes some seconds.
RECOVERY_SECONDS = 240.0


class Developers:
    """Threads that open sessions, ask, and rate, until they are stopped; what the gateway acknowledged."""

    def __init__(self, url: str, threads: int = 2) -> None:
        self.requests: dict[str, str] = {}  # id -> session
        self.ratings: set[str] = set()
        self.outcomes: Counter[object] = Counter()
        self.answers: list[tuple[float, float]] = []  # when it came, and the seconds it took
        self._url, self._stopping = url, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def answers_since(self, began: float) -> list[float]:
        """Return the seconds of each answer that came since a time."""
        return [seconds for ended, seconds in list(self.answers) if ended >= began]

    def _run(self, number: int) -> None:
        with httpx2.Client(base_url=self._url, timeout=60, verify=False) as client:
            for count in itertools.count():
                session = f"developer-{number}-session-{count}"
                for _ in range(REQUESTS_PER_SESSION):
                    if self._stopping.is_set():
                        return
                    reply = self._post(client, "requirements", source_code=SOURCE, session_id=session)
                    if reply is not None:
                        self.requests[reply["request_id"]] = session
                if self._post(client, "feedback", session_id=session, rating=1) is not None:
                    self.ratings.add(session)

    def _post(self, client: httpx2.Client, path: str, **body: object) -> dict[str, str] | None:
        began = time.monotonic()
        try:
            response = client.post(f"/v1/{path}", json=body)
        except httpx2.HTTPError as error:
            self.outcomes[type(error).__name__] += 1
            return None
        self.outcomes[response.status_code] += 1
        if response.status_code != 200:
            return None
        self.answers.append((time.monotonic(), time.monotonic() - began))
        return response.json()


@dataclass(frozen=True)
class DatabaseKill:
    """One kill: until the server answers, and until what was acknowledged after the kill is stored."""

    number: int
    victim: str
    up_seconds: float
    stored_seconds: float
    answers: int
    slowest_answer_seconds: float

    def line(self) -> str:
        return (
            f"{self.number:3}  {self.victim:13}  server answers after {self.up_seconds:5.1f} s, rows are"
            f" stored after {self.stored_seconds:5.1f} s; {self.answers:4} answers meanwhile, the slowest"
            f" took {self.slowest_answer_seconds:.2f} s"
        )


def play_kills(
    server: EmbeddedServer, developers: Developers, kills: int, rng: Random
) -> Iterator[DatabaseKill]:
    """Kill so many times, each at a random time after the last recovery, also while the backlog is stored."""
    for number in range(1, kills + 1):
        time.sleep(rng.uniform(0, MAX_PAUSE_SECONDS))
        victim, began = VICTIMS[(number - 1) % len(VICTIMS)], time.monotonic()
        known = set(developers.requests)
        kill(server, victim)
        eventually(lambda: server.running_url() is not None, RECOVERY_SECONDS, "the server stays away")
        up = time.monotonic()
        later = eventually(lambda known=known: set(developers.requests) - known, what="answers do not go on")
        eventually(lambda later=later: is_stored(server, min(later)), RECOVERY_SECONDS, "rows stay away")
        answers = developers.answers_since(began)
        yield DatabaseKill(
            number, victim, up - began, time.monotonic() - began, len(answers), max(answers, default=0.0)
        )


def kill(server: EmbeddedServer, victim: str) -> None:
    """Send SIGKILL to the postmaster, to all processes of the server at once, or to a client's process."""
    postmaster = process_discovery.find_postmaster(server.data)
    assert postmaster is not None
    children = postmaster.children()
    doomed = [postmaster, *children] if victim == ALL else [postmaster]
    if victim == BACKEND:
        doomed = [child for child in children if " iccm " in " ".join(child.cmdline())][:1]
        assert doomed, "the gateway is not connected"
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(doomed, timeout=10)


def is_stored(server: EmbeddedServer, request_id: str) -> bool:
    """Return whether a request is stored, as a client sees it that connects now."""
    query = "select from iccm.requests where request_id = %s"
    try:
        with psycopg.connect(str(server.running_url()), connect_timeout=5) as conn:
            return conn.execute(query, [request_id]).fetchone() is not None
    except psycopg.Error:
        return False


@contextmanager
def restarted(server: EmbeddedServer) -> Iterator[None]:
    """Start the server a second after it died, as an init system does, which nobody of the platform asks."""
    stopping = threading.Event()

    def supervise() -> None:
        while not stopping.wait(0.1):
            if server.has_died():
                stopping.wait(RESTART_SECONDS)
                with suppress(EmbeddedServerError):  # killed again: the next round starts it
                    server.revive()

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def find_differences(engine: sa.Engine, developers: Developers) -> list[str]:
    """Return what the database lacks, or has twice, of what was acknowledged; empty if it has all once."""
    acknowledged, rated = developers.requests, developers.ratings
    requests = [row[0] for row in rows(engine, "select request_id from iccm.requests")]
    responses = Counter(
        row[0] for row in rows(engine, "select request_id from iccm.requirements where kind = 'model'")
    )
    ratings = Counter(row[0] for row in rows(engine, "select session_id from iccm.feedback"))
    lengths = dict(
        tuple(row)
        for row in rows(engine, "select session_id, jsonb_array_length(content) from iccm.conversations")
    )
    counts = Counter(acknowledged.values())
    differences = {
        "requests lost": set(acknowledged) - set(requests),
        "requests nobody made": set(requests) - set(acknowledged),
        "requests without one response": {name for name in acknowledged if responses[name] != 1},
        "conversations without a question and an answer for each request": {
            session for session, count in counts.items() if lengths.get(session) != 2 * count
        },
        "sessions without one rating": {session for session in rated if ratings[session] != 1},
    }
    return [f"{len(names)} {what}: {sorted(names)[:3]}" for what, names in differences.items() if names]


def summarize(kills: Sequence[DatabaseKill], developers: Developers) -> str:
    """Return the figures of all kills in one line."""
    up, stored = sorted(kill.up_seconds for kill in kills), sorted(kill.stored_seconds for kill in kills)
    middle = len(kills) // 2
    return (
        f"{len(kills)} kills, {len(developers.requests)} requests and {len(developers.ratings)} ratings"
        f" acknowledged, outcomes {dict(developers.outcomes)}; median and maximum until the server answers"
        f" {up[middle]:.1f} and {up[-1]:.1f} s, until rows are stored {stored[middle]:.1f} and"
        f" {stored[-1]:.1f} s; slowest answer {max(seconds for _, seconds in developers.answers):.2f} s"
    )


def readiness(running: RunningGateway) -> str:
    """Return what the gateway says of its database."""
    return str(running.client.get("/readyz").json()["database"])
