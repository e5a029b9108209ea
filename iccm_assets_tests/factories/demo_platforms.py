"""Homes with an embedded server on which a demo has run, and how to use them."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import PACKAGED_CANARY_SET
from iccm_assets_tests.factories.commands import ICCM, run


@dataclass(frozen=True)
class Platform:
    """A home with an embedded server, and how to run commands in it."""

    home: Path
    environment: dict[str, str]
    demo: subprocess.CompletedProcess[str]

    @property
    def engine(self) -> sa.Engine:
        return create_engine_for(self.iccm("db", "url").stdout.strip())

    def iccm(self, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        return run([*ICCM, *arguments], self.environment, timeout)

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        done = self.iccm(*arguments, "--json")
        assert done.returncode == exit_code, done.stderr
        return json.loads(done.stdout)

    def rows(self, query: str, **values: Any) -> list[Any]:
        engine = self.engine
        try:
            with engine.connect() as conn:
                return list(conn.execute(sa.text(query), values).all())
        finally:
            engine.dispose()

    def production(self) -> str:
        [[version]] = self.rows("select version from iccm.model_versions where status = 'production'")
        return str(version)


@contextmanager
def temporary_home(prefix: str) -> Iterator[Path]:
    """Make a folder for a test; its platform's home is ``iccm`` in it, whose server is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        EmbeddedServer(folder / "iccm").stop()
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def write_canary_items(path: Path, count: int) -> str:
    """Write so many evenly spread items of the packaged canary set, and return the path as a setting."""
    lines = gzip.decompress(PACKAGED_CANARY_SET.read_bytes()).decode().splitlines()
    path.write_text("\n".join(lines[:: len(lines) // count][:count]) + "\n", encoding="utf-8")
    return str(path)
