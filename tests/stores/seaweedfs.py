"""A real object store on this machine: SeaweedFS, with its S3 interface on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"


def program() -> Path:
    tools = os.environ.get("SALSA_STORE_TOOLS") or Path.home() / ".cache/salsa-dist/test-tools"
    return Path(tools) / "weed"


def why_not() -> str | None:
    """Why there can be no server here; None where there can."""
    if not program().is_file():
        return "SeaweedFS is not here: tests/stores/install.sh fetches it"
    return None


class SeaweedFS:
    """Runs until `close`; data in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List"]
        who = {"name": "tests", "credentials": credentials, "actions": actions}
        (folder / "s3.json").write_text(json.dumps({"identities": [who]}))
        names = ("s3.port", "master.port", "volume.port", "filer.port")
        ports = dict(zip(names, _ports(4), strict=True))
        self.port = ports["s3.port"]
        self._folder = folder
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                *(str(program()), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-volume.max=20"),
                # Services with a fixed port, which two servers can't share; and nothing is sent out.
                *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
                *(f"-{name}={port}" for name, port in ports.items()),
            ],
            cwd=folder,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2)
            except urllib.error.HTTPError:
                return  # it answers, and wants to know who asks
            except OSError:
                time.sleep(0.2)
            else:
                return
        log = (self._folder / "log").read_text()[-2000:]
        self.close()
        raise RuntimeError(f"SeaweedFS did not start: {log}")

    def close(self) -> None:
        self._process.kill()  # on SIGTERM it takes half a minute
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _ports(count: int) -> list[int]:
    """Free ones; a server's gRPC port is its port and 10,000, so both are."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if not 20_000 < port < 55_000 or port in found:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found
