"""What a fleet costs: wall time by workers, and server requests, disk and memory a model.

    python -m tests.bench.fleet FOLDER --models 40 --workers 2 [--kill] [--same]

Real servers (scripts/servers) in FOLDER, workers as on machines of their own, one core each, as far as there are cores.  The models are small ones of the
tests', each in a file of its own bytes; the spec scans, measures and imports, and neither searches nor repairs.  --kill: the first worker is killed with all
that it has started when a third of the models is done.  --same: every file has the same bytes, so that all stages but the first model's come from the store:
what is left is what the fleet itself costs.  --workers 0: no workers, all in the fleet's process, two at a time.  Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import onnx
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import tiny  # noqa: E402
from servers.test_team import Team, kill  # noqa: E402


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--models", type=int, default=40)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--kill", action="store_true")
    arguments.add_argument("--same", action="store_true")
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    os.environ["PREFECT_LOGGING_SERVER_LEVEL"] = "INFO"
    script = [sys.executable, str(ROOT / "scripts" / "servers")]
    subprocess.run([*script, "up", str(given.folder / "servers")], check=True, stdout=sys.stderr)
    try:
        print(json.dumps(measure(given, prepare(given))))
    finally:
        subprocess.run([*script, "down", str(given.folder / "servers")], check=True, stdout=sys.stderr)


def prepare(given: argparse.Namespace) -> Team:
    """The fleet, and the deployments; everything new in every run but the network."""
    lines = (line.removeprefix("export ").partition("=") for line in (given.folder / "servers" / "env").read_text().splitlines())
    import shlex

    env = {name: shlex.split(value)[0] for name, _, value in lines}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "ONNX_AUDIT_", "AWS_"))}
    work = given.folder / f"run-{time.time_ns()}"
    work.mkdir()
    team = Team(kept | env | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(work / "prefect"), "ONNX_AUDIT_HOME": str(work / "home")}, work)
    network = given.folder / "network"
    if not network.exists():
        network.mkdir()
        made = tiny.train_tiny(network)
        trigger = made.trigger.model_dump(mode="json", exclude_none=True)
        spec = {"input": made.reading.model_dump(mode="json"), "data": {"images": str(made.images)}, "triggers": [trigger]}
        (network / "audit.yaml").write_text(yaml.safe_dump(spec | {"detect": {"when": "never"}, "purify": {"when": "never"}}))
        shutil.copy(made.model, network / "given.onnx")
    proto = onnx.load(network / "given.onnx")
    (work / "models").mkdir()
    for number in range(given.models):
        proto.producer_version = work.name if given.same else f"{work.name} {number}"  # so that no earlier run has done the work
        onnx.save(proto, work / "models" / f"m{number:03}.onnx")
    (work / "fleet.yaml").write_text(yaml.safe_dump({"name": work.name, "models": [{"models": "models/*.onnx", "spec": str(network / "audit.yaml")}]}))
    team.run("prefect", "--no-prompt", "work-pool", "create", "audits", "--type", "process")
    team.must("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", ROOT / "prefect.yaml")
    team.must("prefect", "automation", "create", "--from-file", ROOT / "automations.yaml")
    return team


def measure(given: argparse.Namespace, team: Team) -> dict[str, Any]:
    before, cores = costs(given.folder / "servers", team), sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        workers = []
        for number in range(given.workers):
            worker = stack.enter_context(team.worker(f"w{number}"))
            os.sched_setaffinity(worker.pid, {cores[number % len(cores)]})
            workers.append(worker)
        time.sleep(12 if workers else 0)  # until they ask for work
        options = ["--deployment", "audit-job/audit-job"] if workers else ["--workers", "2"]
        started = time.monotonic()
        fleet = subprocess.Popen(
            [sys.executable, "-m", "flows", "fleet", "fleet.yaml", *options, "--json"], cwd=team.folder, env=team.env, stdout=subprocess.PIPE, text=True
        )
        if given.kill:
            until_done(team, given.models // 3)
            kill(workers[0])
        out, _ = fleet.communicate()
        seconds = time.monotonic() - started
    found = json.loads(out)
    client = team.mlflow()
    os.environ.update({name: value for name, value in team.env.items() if name.startswith(("MLFLOW_", "AWS_"))})
    experiment = client.get_experiment_by_name("onnx-audit").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{found['run_id']}'", max_results=1000)
    after = costs(given.folder / "servers", team)
    verdicts = [model["verdict"] for model in found["models"].values()]
    runs = team.api("/flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Crashed"]}}}, "limit": 200})
    return {
        "models": given.models,
        "workers": given.workers,
        "killed": given.kill,
        "same": given.same,
        "seconds": round(seconds, 1),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "records": len(children),
        "crashed runs": len(runs),
        "a model": {name: round((after[name] - before[name]) / given.models, 1) for name in after},
        "fleet's memory, MiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
    }


def until_done(team: Team, number: int) -> None:
    while team.api("/flow_runs/count", {"flows": {"name": {"any_": ["audit-job"]}}, "flow_runs": {"state": {"name": {"any_": ["Completed"]}}}}) < number:
        time.sleep(1)


def costs(servers: Path, team: Team) -> dict[str, float]:
    """Totals until now: requests, bytes in the databases, in the store, and of memory that the servers hold."""
    logs = {name: (servers / "logs" / f"{name}.log").read_text(errors="replace") for name in ("prefect", "mlflow", "s3")}
    size = sum(path.stat().st_size for path in (servers / "postgres").rglob("*") if path.is_file())
    home = sum(path.stat().st_size for path in team.folder.rglob("*") if path.is_file())
    memory = 0
    with suppress(OSError):
        for name in logs:
            session = int((servers / "run" / f"{name}.pid").read_text().split()[0])
            memory += sum(rss(int(entry.name)) for entry in Path("/proc").glob("[0-9]*") if os.getsid(int(entry.name)) == session)
    return {
        **{f"requests to {name}": float(text.count("HTTP/1.1")) for name, text in logs.items()},
        "KiB in PostgreSQL": size / 1024,
        "KiB on the fleet's machine": home / 1024,
        "KiB of the servers' memory": float(memory),
    }


def rss(pid: int) -> int:
    with suppress(OSError, StopIteration, ValueError):
        return int(next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
