"""docs/operations.md does what it says: its commands are run as they stand, in one shell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue

import pytest

ROOT = Path(__file__).resolve().parents[2]


def commands(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def told() -> Iterator[tuple[str, Queue[bytes]]]:
    """The team's chat: an address, and what is said there."""
    heard: Queue[bytes] = Queue()

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.put(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Ear)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/audits", heard
    server.shutdown()


@pytest.mark.timeout(600)
def test_every_command_of_the_page_works(servers_folder: Path, told: tuple[str, Queue[bytes]]) -> None:
    """`servers_folder` is only asked for because it skips where PostgreSQL cannot be had."""
    blocks = commands(ROOT / "docs" / "operations.md")
    assert len(blocks) >= 10
    address, heard = told
    new = 'sed -i "s/name: vendors/name: others/" "$TEAM/fleet.yaml"; onnx-audit fleet "$TEAM/fleet.yaml" > /dev/null || test $? = 3\n'  # all of it is news
    place = next(number for number, block in enumerate(blocks) if "CallWebhook" in block) + 1
    dump = next(number for number, block in enumerate(blocks) if "pg_dump" in block) + 1
    lose = "python -c 'import mlflow; mlflow.MlflowClient().delete_registered_model(\"acme\")'\n"
    found = 'python -c \'import mlflow; print(mlflow.MlflowClient().get_model_version("acme", "1").tags["audit.verdict"])\' | tee "$TEAM/restored"\n'
    script = "\n".join(["set -euo pipefail", *blocks[:place], new, "sleep 8", *blocks[place:dump], lose, blocks[dump], found, *blocks[dump + 1 :]])
    with tempfile.TemporaryDirectory(prefix="onnx-audit-operations-") as team:
        Path(team).chmod(0o711)  # PostgreSQL's user walks through
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "ONNX_AUDIT_", "AWS_"))}
        own = {
            "TEAM": team,
            "TELL": address,
            "HOME": team,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ONNX_AUDIT_HOME": f"{team}/home",
            "PREFECT_HOME": f"{team}/prefect",
        }
        log = Path(team) / "log"
        try:
            with log.open("wb") as output:
                done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=kept | own, stdout=output, stderr=output, timeout=580, check=False)
            assert done.returncode == 0, log.read_text()[-4000:]
            assert (Path(team) / "restored").read_text() == "INCONCLUSIVE\n", "what was dumped, lost and restored is there again"
            said = [json.loads(heard.get_nowait()) for _ in range(heard.qsize())]
            assert [(one["before"], one["verdict"]) for one in said] == [("UNSEEN", "INCONCLUSIVE")], said
        finally:
            subprocess.run([sys.executable, ROOT / "scripts" / "servers", "down", f"{team}/servers"], check=False)
            for name in ("worker", "hook"):
                subprocess.run(["bash", "-c", f"kill -9 $(cat {team}/{name}.pid) 2> /dev/null"], check=False)
