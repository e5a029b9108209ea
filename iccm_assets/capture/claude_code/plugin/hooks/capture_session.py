"""Capture a Claude Code session when it ends: copy its transcript to a spool, which the platform imports.

A SessionEnd hook, run by `python -I` with the standard library only. It reads the hook's JSON from standard
input, opens no database, always exits with status 0, and gives up after a second. A copy appears complete or
not at all and is fsynced; capturing the same content twice leaves one copy, and a longer one replaces what it
extends.
"""

import io
import json
import os
import signal
import stat
import sys
from contextlib import suppress
from hashlib import sha256

MAX_SECONDS = 0.9
MAX_INPUT_BYTES = 1 << 20
# A longer transcript is imported from where it is, as copying it takes too long.
MAX_COPIED_BYTES = 24 << 20
CHUNK_BYTES = 1 << 20
SPOOL = "captured-sessions"


class Interrupted(Exception):
    """The time is up."""


def main(arguments: list[str]) -> None:
    """Capture the session that standard input describes; report a failure on standard error."""
    try:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        event = _read_event(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1))
        capture(event, os.path.join(_get_home(arguments), SPOOL))
        signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException as error:  # a hook never fails the session
        with suppress(BaseException):
            sys.stderr.write(f"session not captured: {str(error) or type(error).__name__}\n")
            sys.stderr.flush()
    os._exit(0)


def capture(event: dict[str, str], spool: str) -> None:
    """Write the session to the spool: a line of JSON that describes it, then the transcript.

    A file whose name ends with `.partial` was not finished; its first line says where the transcript is.
    """
    descriptor = os.open(event["transcript_path"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as transcript:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("the transcript is not a file")
        if status.st_size == 0:
            return
        os.makedirs(spool, mode=0o700, exist_ok=True)
        key = _digest(event["session_id"].encode("utf-8", "surrogatepass"))[:16]
        partial = os.path.join(spool, f"{key}-{os.getpid()}-{os.urandom(8).hex()}.partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(partial, flags, 0o600), "wb", buffering=0) as copy:
            copied = status.st_size <= MAX_COPIED_BYTES
            copy.write(json.dumps({**event, "copied": copied}).encode() + b"\n")
            if copied:
                earlier = _find_earlier(spool, key)
                size, digest, replaced = _copy(transcript, copy, earlier)
            else:
                identity = f"{event['transcript_path']} {status.st_size} {status.st_mtime_ns}"
                size, digest, replaced = 0, _digest(identity.encode("utf-8", "surrogatepass")), []
            os.fsync(copy.fileno())
    name = f"{key}-{size}-{digest[:32]}.session"
    os.replace(partial, os.path.join(spool, name))
    for other in replaced:
        if other != name:
            _remove(os.path.join(spool, other))
    _fsync_directory(spool)


def _read_event(text: bytes) -> dict[str, str]:
    """Parse the hook's input; raises ``ValueError`` if it is not what Claude Code sends."""
    if len(text) > MAX_INPUT_BYTES:
        raise ValueError("the input is too long")
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("the input is not a JSON object")
    event = {}
    for key in ("session_id", "transcript_path", "cwd", "reason"):
        value = document.get(key, "" if key in ("cwd", "reason") else None)
        if not isinstance(value, str) or "\x00" in value:
            raise ValueError(f"the input has no {key}")
        event[key] = value
    if not event["session_id"]:
        raise ValueError("the input has no session_id")
    event["transcript_path"] = os.path.abspath(os.path.expanduser(event["transcript_path"]))
    if not event["transcript_path"].endswith(".jsonl"):
        raise ValueError("the transcript is no .jsonl file")
    return event


def _get_home(arguments: list[str]) -> str:
    home = (
        arguments[1] if arguments[:1] == ["--home"] and len(arguments) == 2 else os.environ.get("ICCM_HOME")
    )
    return os.path.abspath(os.path.expanduser(home or "~/.iccm"))


def _find_earlier(spool: str, key: str) -> dict[int, list[str]]:
    """Find the copies of the same session that wait already, by their size."""
    earlier: dict[int, list[str]] = {}
    for name in os.listdir(spool):
        parts = name.removesuffix(".session").split("-")
        if name.endswith(".session") and len(parts) == 3 and parts[0] == key and parts[1].isdigit():
            earlier.setdefault(int(parts[1]), []).append(name)
    return earlier


def _copy(
    transcript: io.FileIO, copy: io.FileIO, earlier: dict[int, list[str]]
) -> tuple[int, str, list[str]]:
    """Copy a transcript; return its size and digest, and the earlier copies that it begins with."""
    size, hashed = 0, sha256()
    replaced: list[str] = []
    while True:
        following = min((limit - size for limit in earlier if limit > size), default=CHUNK_BYTES)
        chunk = transcript.read(min(CHUNK_BYTES, following))
        if not chunk:
            return size, hashed.hexdigest(), replaced
        written = memoryview(chunk)
        while written:
            written = written[copy.write(written) :]
        hashed.update(chunk)
        size += len(chunk)
        if size in earlier:
            ending = f"-{hashed.hexdigest()[:32]}.session"
            replaced += [name for name in earlier[size] if name.endswith(ending)]


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):  # imported meanwhile, or replaced by another hook
        os.unlink(path)


def _fsync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(text: bytes) -> str:
    return sha256(text).hexdigest()


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("it took too long")


if __name__ == "__main__":
    main(sys.argv[1:])
