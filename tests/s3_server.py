"""A real S3 server for tests: SeaweedFS, on loopback alone, without telemetry, as an unprivileged plain process.

Found by the tests that need it through ``sys.path``. Everything it has lies in one scratch folder that goes with it. It is
started and stopped by its own process id, and has exited before it is started again.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

WEED: Final = Path(sys.executable).parent / "weed"
REGION: Final = "us-east-1"
_NOBODY: Final = 65534
_START_S: Final = 60.0
_STOP_S: Final = 3.0

# Every session parses megabytes of service descriptions; the tests make hundreds, of the same.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class S3Server:
    """One SeaweedFS with its S3 door.

    Attributes:
        access_key: The one identity it knows, by name.
        secret_key: Its secret.
        folder: Scratch; others may read nothing in it.
    """

    def __init__(self) -> None:
        # Short, and not below anybody's home: the server makes sockets and many files in it.
        self.folder = Path(tempfile.mkdtemp(prefix="lcs3-"))
        self.access_key = secrets.token_hex(8)
        self.secret_key = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None
        identity = {
            "name": "licet",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "data").mkdir()
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        names = ("master", "master.g", "volume", "volume.g", "volume.p", "filer", "filer.g", "filer.p", "s3", "s3.g")
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY)
            self._user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}

    @property
    def endpoint(self) -> str:
        """URL of the S3 door."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def port(self) -> int:
        """Port of the S3 door."""
        return self._ports["s3"]

    def start(self) -> None:
        """Start it and wait until it takes requests."""
        assert self._process is None, "it runs already"
        p = self._ports
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._weed()),
                    "-logtostderr=true",
                    "server",
                    f"-dir={self.folder / 'data'}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                    f"-master.port={p['master']}",
                    f"-master.port.grpc={p['master.g']}",
                    "-master.volumeSizeLimitMB=64",
                    "-master.electionTimeout=1s",
                    f"-volume.port={p['volume']}",
                    f"-volume.port.grpc={p['volume.g']}",
                    f"-volume.port.public={p['volume.p']}",
                    "-volume.max=2000",
                    "-volume.preStopSeconds=0",
                    "-volume.minFreeSpace=1",
                    f"-filer.port={p['filer']}",
                    f"-filer.port.grpc={p['filer.g']}",
                    f"-filer.port.public={p['filer.p']}",
                    f"-filer.localSocket={self.folder / 'filer.sock'}",
                    "-s3",
                    "-s3.iam=false",
                    "-s3.ip.bind=127.0.0.1",
                    f"-s3.port={p['s3']}",
                    f"-s3.port.grpc={p['s3.g']}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    f"-s3.localSocket={self.folder / 's3.sock'}",
                    f"-s3.config={self.folder / 's3.json'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin", "TMPDIR": str(self.folder)},
                **self._user,
            )
        self._wait()

    def stop(self) -> None:
        """Stop it; it has exited when this returns."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """Take it down without a word."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()

    def close(self) -> None:
        """End it, whatever it is at, and remove all it had."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_name(f"{self.folder.name}.credentials").unlink(missing_ok=True)

    def client(self, endpoint: str | None = None) -> Any:
        """A plain boto3 client, to look behind the adapter's back."""
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def bucket(self, *, lock: bool = True) -> str:
        """Make a new bucket; return its name."""
        name = f"licet-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)
        return name

    def output(self) -> str:
        """What it wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def _weed(self) -> Path:
        """The program, where an unprivileged user can reach it."""
        if not self._user:
            return WEED
        reachable = self.folder / "weed"
        if not reachable.exists():
            try:
                os.link(WEED, reachable)
            except OSError:
                shutil.copy2(WEED, reachable)
        return reachable

    def _wait(self) -> None:
        until_s = time.monotonic() + _START_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, f"the S3 server ended by itself:\n{self.output()[-2000:]}"
            try:
                # It takes requests for buckets long before it can store anything.
                probe = f"probe-{secrets.token_hex(4)}"
                self.client().create_bucket(Bucket=probe)
                self.client().put_object(Bucket=probe, Key="probe", Body=b"x" * 70_000)
            except (BotoCoreError, ClientError):
                assert time.monotonic() < until_s, f"the S3 server did not start:\n{self.output()[-2000:]}"
                time.sleep(0.2)
            else:
                return

    def options(self, bucket: str, prefix: str = "", **changes: str) -> dict[str, str]:
        """What an adapter is configured with to use a bucket here; the credentials lie in a file."""
        credentials = self.folder.parent / f"{self.folder.name}.credentials"
        if not credentials.exists():
            credentials.touch(0o600)
            credentials.write_text(
                f"[default]\naws_access_key_id = {self.access_key}\naws_secret_access_key = {self.secret_key}\n"
            )
        return {
            "s3_endpoint": self.endpoint,
            "s3_bucket": bucket,
            "s3_prefix": prefix,
            "s3_region": REGION,
            "s3_addressing": "path",
            "s3_credentials_file": str(credentials),
            "s3_timeout_s": "10",
        } | changes
