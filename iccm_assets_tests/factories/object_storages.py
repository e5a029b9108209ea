"""A local S3 server, directories to publish, and a file system that fails as it is told."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

BUCKET = "iccm-tests"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run an S3 server with one bucket; yield the environment variables that lead to it."""
    import boto3
    from moto.server import ThreadedMotoServer

    # Whatever server an earlier test named, its connections are not used for this one.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="tests",
            aws_secret_access_key="tests",
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": address}
    finally:
        server.stop()


def make_artifact(directory: Path, files: int = 3, seed: int = 0) -> Path:
    """Fill a directory with files of random bytes, one of them in a folder and one twice."""
    draw = random.Random(seed)
    (directory / "folder").mkdir(parents=True)
    for number in range(files):
        (directory / f"file{number}").write_bytes(draw.randbytes(200 + 100 * number))
    (directory / "folder" / "inner").write_bytes(draw.randbytes(50))
    (directory / "copy").write_bytes((directory / "file0").read_bytes())
    return directory


def read_tree(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory by its path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


class Killed(BaseException):
    """The process ends here; nothing after it runs but what frees its resources."""


class FaultPlan:
    """Decides by chance whether a step fails, and how; counts what it did."""

    KINDS = ("before", "after", "truncated", "flipped", "killed", "disk full")

    def __init__(self, seed: int, share: float) -> None:
        self._draw, self._share = random.Random(seed), share
        self.faults: list[str] = []

    def next(self, step: str) -> str:
        """Return the fault of this step, or an empty text."""
        if self._draw.random() >= self._share:
            return ""
        fault = self._draw.choice(self.KINDS)
        if fault == "disk full" and step != "get":
            fault = "before"
        self.faults.append(f"{step}: {fault}")
        return fault

    def damage(self, content: bytes, fault: str) -> bytes:
        """Return the content as this fault leaves it."""
        if fault == "truncated":
            return content[: self._draw.randrange(max(1, len(content)))]
        if fault == "flipped" and content:
            place = self._draw.randrange(len(content))
            return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]
        return content


class FaultyFileSystem:
    """A file system whose writes and reads fail by a plan, one object at a time."""

    def __init__(self, inner: Any, plan: FaultPlan) -> None:
        self._inner, self._plan = inner, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put(self, sources: list[str], keys: list[str]) -> None:
        for source, key in zip(sources, keys, strict=True):
            self._write("put", key, Path(source).read_bytes(), {})

    def pipe_file(self, key: str, content: bytes, **options: str) -> None:
        self._write("pipe_file", key, content, options)

    def get(self, keys: list[str], targets: list[str]) -> None:
        for key, target in zip(keys, targets, strict=True):
            fault = self._raise("get")
            Path(target).write_bytes(self._plan.damage(self._inner.cat_file(key), fault))

    def cat_file(self, key: str) -> bytes:
        return self._plan.damage(self._inner.cat_file(key), self._raise("cat_file"))

    def _raise(self, step: str) -> str:
        fault = self._plan.next(step)
        if fault == "killed":
            raise Killed(step)
        if fault == "disk full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if fault in {"before", "after"}:
            raise ConnectionResetError(f"{step} failed")
        return fault

    def _write(self, step: str, key: str, content: bytes, options: dict[str, str]) -> None:
        fault = self._plan.next(step)
        if fault == "killed":
            raise Killed(step)
        if fault == "before":
            raise ConnectionResetError(f"{step} failed")
        self._inner.pipe_file(key, self._plan.damage(content, fault), **options)
        if fault == "after":
            raise ConnectionResetError(f"the answer to {step} was lost")
