"""scripts/servers: what it starts answers, to those who know the password, and goes when it is told to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from conftest import servers_script

MLFLOW_CLIENT = """
    import sys
    from mlflow import MlflowClient

    client = MlflowClient()
    hook = client.create_webhook("versions", sys.argv[1], ["model_version.created"], secret="of the webhook")
    assert hook.status == "ACTIVE", hook
    experiment = client.create_experiment("servers")
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "asr", 0.5)
    client.log_text(run.info.run_id, "kept", "notes/note.txt")
    client.create_registered_model("vendor")
    client.create_model_version("vendor", f"{run.info.artifact_uri}/notes", run.info.run_id)
    print(run.info.run_id)
"""
PREFECT_FLOW = """
    from prefect import flow, task
    from prefect.cache_policies import INPUTS

    @task(cache_policy=INPUTS, persist_result=True, result_serializer="json")
    def double(number):
        print("works on", number)
        return 2 * number

    @flow
    def doubles():
        return double(21)

    print(doubles())
"""


def client(code: str, env: dict[str, str], *arguments: str) -> str:
    """What a program of a client's prints."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], env=env, capture_output=True, text=True, timeout=90, check=False, cwd=env["PREFECT_HOME"]
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout.strip()


def asked(url: str, user: str = "", data: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """The answer to a request, with or without a user and password."""
    request = urllib.request.Request(url, None if data is None else json.dumps(data).encode(), {"Content-Type": "application/json"})
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(user.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def admin(env: dict[str, str]) -> str:
    return f"{env['MLFLOW_TRACKING_USERNAME']}:{env['MLFLOW_TRACKING_PASSWORD']}"


def in_bucket(env: dict[str, str], prefix: str) -> list[str]:
    code = """
        import boto3, sys
        found = boto3.client("s3").list_objects_v2(Bucket="onnx-audit", Prefix=sys.argv[1])
        print(*(entry["Key"] for entry in found.get("Contents", [])), sep="\\n")
    """
    return client(code, env, prefix).split()


@contextmanager
def receiver() -> Iterator[tuple[str, Queue[tuple[dict[str, str], bytes]]]]:
    """A place that webhooks can call, and what came."""
    came: Queue[tuple[dict[str, str], bytes]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", came
    finally:
        server.shutdown()
        server.server_close()


def processes(folder: Path) -> set[int]:
    """The processes of the sessions that the pid files name, and those of PostgreSQL, which have sessions of their own."""
    first = {int(path.read_text().split()[0]) for path in (folder / "run").glob("*.pid")}
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] != "Z" and (int(words[3]) in first or int(words[1]) in first):
            found.add(int(stat.parent.name))
    return found


def listening() -> set[tuple[str, int]]:
    """Addresses and ports on which anything on this machine listens."""
    found = set()
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            _, local, _, state, *_ = line.split()
            if state == "0A":
                address, port = local.split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


def test_everything_runs_and_its_secrets_are_private(servers: dict[str, str], servers_folder: Path) -> None:
    ended = servers_script("status", servers_folder)
    assert ended.returncode == 0 and ended.stdout.count(" runs ") == 4, ended.stdout
    for name in ("servers.json", "env", "databases", "mlflow.ini"):
        assert (servers_folder / name).stat().st_mode & 0o077 == 0, name
    again = servers_script("up", servers_folder)
    assert again.returncode == 0 and "all run already" in again.stdout


def test_only_this_machine_can_connect(servers: dict[str, str], servers_folder: Path) -> None:
    ports = set(json.loads((servers_folder / "servers.json").read_text())["ports"].values())
    assert {(address, port) for address, port in listening() if port in ports} == {("127.0.0.1", port) for port in ports}


def test_no_password_is_on_a_command_line(servers: dict[str, str], servers_folder: Path) -> None:
    secret = list(json.loads((servers_folder / "servers.json").read_text())["secrets"].values())
    lines = [Path(f"/proc/{pid}/cmdline").read_text(errors="replace") for pid in processes(servers_folder)]
    assert len(lines) > 4
    assert not [line for line in lines for word in secret if word in line]


def test_who_does_not_know_the_password_is_refused(servers: dict[str, str]) -> None:
    experiments = f"{servers['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert [asked(experiments)[0], asked(experiments, "admin:admin")[0], asked(experiments, admin(servers))[0]] == [401, 401, 200]
    artifacts = f"{servers['MLFLOW_TRACKING_URI']}/api/2.0/mlflow-artifacts/artifacts?path="
    assert asked(artifacts)[0] == 401
    flows = f"{servers['PREFECT_API_URL']}/flows/filter"
    assert [asked(flows, user, {})[0] for user in ("", "admin:admin", servers["PREFECT_API_AUTH_STRING"])] == [401, 401, 200]


def test_prefect_serves_its_interface(servers: dict[str, str]) -> None:
    status, page = asked(servers["PREFECT_API_URL"].removesuffix("/api") + "/")
    assert status == 200 and b"<html" in page
    settings = json.loads(asked(servers["PREFECT_API_URL"].removesuffix("/api") + "/ui-settings")[1])
    assert settings["api_url"] == servers["PREFECT_API_URL"], "where its pages ask: nobody can sign in elsewhere"


def test_results_of_a_flow_lie_in_the_store(servers: dict[str, str]) -> None:
    assert client(PREFECT_FLOW, servers).splitlines() == ["works on 21", "42"]
    assert in_bucket(servers, "results/")
    assert client(PREFECT_FLOW, servers | {"PREFECT_HOME": str(Path(servers["PREFECT_HOME"]) / "another")}).splitlines() == ["42"]


def test_mlflow_keeps_artifacts_in_the_store_and_tells_of_a_version(servers: dict[str, str], servers_folder: Path) -> None:
    with receiver() as (url, came):
        run = client(MLFLOW_CLIENT, servers, url)
        headers, body = came.get(timeout=20)
    (key,) = in_bucket(servers, "mlflow/")
    assert key.endswith(f"/{run}/artifacts/notes/note.txt")
    signed = f"{headers['x-mlflow-delivery-id']}.{headers['x-mlflow-timestamp']}.".encode() + body
    digest = hmac.new(b"of the webhook", signed, hashlib.sha256).digest()
    assert headers["x-mlflow-signature"] == "v1," + base64.b64encode(digest).decode()
    told = json.loads(body)
    assert (told["entity"], told["action"], told["data"]["name"], told["data"]["version"]) == ("model_version", "created", "vendor", "1")

    before = processes(servers_folder)
    assert len(before) > 4
    ended = servers_script("down", servers_folder)
    assert ended.returncode == 0, ended.stderr
    assert [pid for pid in before if Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()] == []
    assert servers_script("status", servers_folder).returncode == 1
    again = servers_script("up", servers_folder)
    assert again.returncode == 0 and "is empty now" in again.stdout, again.stdout + again.stderr
    status, answer = asked(f"{servers['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/get?run_id={run}", admin(servers))
    assert status == 200 and json.loads(answer)["run"]["data"]["metrics"][0]["value"] == 0.5
    assert in_bucket(servers, "") == []


def test_what_died_is_started_again(servers: dict[str, str], servers_folder: Path) -> None:
    first = {path.stem: int(path.read_text().split()[0]) for path in (servers_folder / "run").glob("*.pid")}
    os.kill(first["mlflow"], signal.SIGKILL)  # its worker lives on, and has the port
    os.kill(first["postgres"], signal.SIGKILL)  # its lock stays
    assert servers_script("status", servers_folder).returncode == 1
    again = servers_script("up", servers_folder)
    assert again.returncode == 0 and "started postgres, mlflow in" in again.stdout, again.stdout + again.stderr
    later = {path.stem: int(path.read_text().split()[0]) for path in (servers_folder / "run").glob("*.pid")}
    assert {name for name in first if first[name] != later[name]} == {"postgres", "mlflow"}


def test_a_process_that_took_the_number_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        (tmp_path / "run").mkdir()
        ports = dict.fromkeys(("postgres", "s3", "mlflow", "prefect"), 1)
        (tmp_path / "servers.json").write_text(json.dumps({"ports": ports, "secrets": {}}))
        (tmp_path / "run" / "mlflow.pid").write_text(f"{other.pid} 1\n")
        assert servers_script("down", tmp_path).returncode == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("what", ["down", "status"])
def test_a_folder_without_servers_is_an_error(tmp_path: Path, what: str) -> None:
    ended = servers_script(what, tmp_path)
    assert ended.returncode == 2 and "there are no servers" in ended.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    ended = servers_script("up", tmp_path)
    assert ended.returncode == 2 and "holds something else" in ended.stderr
