"""A PostgreSQL as an external server, with the roles of deploy/postgres/roles.sql."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.db.client_programs import client_environment, find_program
from iccm_assets.db.database import create_engine_for
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets_tests.factories.deployments import DEPLOY, read_dotenv

PASSWORDS = {name: value for name, value in read_dotenv().items() if name.endswith("_PASSWORD")}


@dataclass(frozen=True)
class ExternalServer:
    """The server's address by role; ``admin_url`` is its superuser's."""

    admin_url: str

    @property
    def address(self) -> str:
        url = sa.make_url(self.admin_url)
        return f"{url.host}:{url.port}"

    def url(self, role: str, database: str = "iccm") -> str:
        """Return the URL of a role: `owner`, `platform`, `gateway` or `read_only`."""
        password = PASSWORDS[f"{role.upper()}_PASSWORD"]
        own = sa.make_url(self.admin_url).set(username=f"iccm_{role}", password=password, database=database)
        return own.render_as_string(hide_password=False)

    def engine(self, role: str, database: str = "iccm") -> sa.Engine:
        return create_engine_for(self.url(role, database))

    def run_roles_script(self) -> str:
        """Run roles.sql as its head says; return what psql printed."""
        done = subprocess.run(
            [find_program("psql"), "--no-psqlrc", "--quiet", "-f", str(DEPLOY / "postgres" / "roles.sql")],
            env={**os.environ, **client_environment(self.admin_url), **PASSWORDS},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@contextmanager
def external_server() -> Iterator[ExternalServer]:
    """Start a server of its own: roles belong to a whole server, and other tests share theirs."""
    home = Path(tempfile.mkdtemp(prefix="iccm-external-"))
    home.chmod(0o755)
    embedded = EmbeddedServer(home, durable=False)
    try:
        # Its own database would be taken for the platform's.
        admin = sa.make_url(embedded.ensure_running()).set(database="postgres")
        engine = create_engine_for(admin.render_as_string(hide_password=False))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(sa.text("drop database iccm"))
        engine.dispose()
        server = ExternalServer(admin.render_as_string(hide_password=False))
        server.run_roles_script()
        yield server
    finally:
        embedded.stop()
        shutil.rmtree(home, ignore_errors=True)
