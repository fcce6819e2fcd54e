"""A Prefect server of our own for one command, when the user has none.

Prefect would start one itself, and leave it behind as an orphan when the flow is killed.  This one dies with its parent, and is
kept out of the terminal's process group, so that Ctrl-C lets the flow end its run before its server goes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import StageFailed
from pipeline.sandbox import die_with

START_SECONDS = 90.0


class TemporaryServer:
    """A server process on a free port of the loopback interface.  Starting it and waiting for it are two steps: it takes seconds."""

    def __init__(self, home: Path) -> None:
        """Start it; its database and log lie in `home`."""
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self.log = home / "server.log"
        settings = {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.server", str(port), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=kept
                | settings
                | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)},
            )

    def wait(self) -> str:
        """The URL of its API, once it answers.  Raises StageFailed when it does not come up."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:  # noqa: S310 - the address is ours
                    if answer.status == 200:
                        return self.url
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise StageFailed(
            f"the temporary Prefect server did not start within {START_SECONDS:g} s; its log is {self.log}, or set PREFECT_API_URL to a server of yours"
        )

    def stop(self) -> None:
        """End it at once: what it keeps is in its database already."""
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def prefect_server(home: Path) -> Iterator[TemporaryServer | None]:
    """A temporary server, or None where the user's settings name one."""
    if os.environ.get("PREFECT_API_URL") or _profile_names_one():
        yield None
        return
    server = TemporaryServer(home)
    try:
        yield server
    finally:
        server.stop()


def _profile_names_one() -> bool:
    profiles = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser() / "profiles.toml"
    if not profiles.is_file():
        return False
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


def main() -> None:
    """Serve on a port of the loopback interface for as long as the parent lives."""
    port, parent = map(int, sys.argv[1:3])
    die_with(parent)
    import uvicorn
    from prefect.server.api.server import create_app

    uvicorn.run(create_app(ephemeral=True), host="127.0.0.1", port=port, log_level="error", lifespan="on")


if __name__ == "__main__":
    main()
