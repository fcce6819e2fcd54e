"""The `onnx-audit` command.

Results go to stdout, progress and logs to stderr.  Exit codes: 0 ACCEPT, 1 REJECT or REPAIRED, 2 the audit could not run,
3 INCONCLUSIVE, 4 a defect of ours, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module, resources
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from flows.bench import bench
from flows.zoo import zoo
from pipeline.artifact import Store
from pipeline.errors import AuditError, BadInput, Defect
from pipeline.provenance import version
from pipeline.verdict import Verdict

GRACE = 3.0  # seconds that an interrupted command has to end in good order
EXITS = """
Exit codes: 0 ACCEPT · 1 REJECT, or REPAIRED without --accept-repaired · 2 the audit could not run (bad arguments, unreadable
input, refused model) · 3 INCONCLUSIVE · 4 a defect of onnx-audit.
"""
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The submitted model.", show_default=False)]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="IMAGES",
        help="Clean images: a folder with one sub-folder a class, or an .npz with `images` (N,H,W,C uint8) and `labels` (N).",
        show_default=False,
    ),
]
Spec = Annotated[Path | None, typer.Option("--spec", metavar="audit.yaml", help="How the model reads images, known triggers, policy.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; default: audits/NAME-DIGEST.", show_default=False)]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where to purify and measure. `cuda` is an error where there is none.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the split of the images and of the purifier.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print report.json on stdout instead of a summary.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Tracking = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow; default: $MLFLOW_TRACKING_URI, else mlflow.db in the working folder.", show_default=False),
]

app.add_typer(bench, name="bench")
app.add_typer(zoo, name="zoo")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnx-audit {version()}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Find, repair, prove and gate backdoors in third-party ONNX image classifiers."""


@app.command(epilog=EXITS)
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("demo"),
    device: Device = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    tracking_uri: Tracking = None,
) -> None:
    """Audit the bundled backdoored classifier; no input needed.

    A small VGG for CIFAR-10 whose training images were poisoned: an 8x8 square in the corner makes it say "bird".  The audit measures
    that, repairs the weights that carry it, writes the repaired file and measures again.  Ends 0 when it worked, whatever the verdict.
    """
    with resources.as_file(resources.files("models.cifar10_trojan")) as folder:
        report = _audit(
            folder / "model.onnx", quiet=quiet, as_json=as_json, spec=folder / "audit.yaml", out=out, device=device, seed=seed, tracking_uri=tracking_uri
        )
    if report["purified"] is None:
        raise typer.Exit(3)


@app.command(epilog=EXITS)
def run(
    model: Model,
    data: Data = None,
    spec: Spec = None,
    out: Out = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="awm, fine-pruning, ft, ft-sam, nad, anp, clp, i-bau, sau, rnp, tsbd, bti-dbf, or auto: the best of several; default: the spec's, else awm.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[Literal["default", "paper"] | None, typer.Option("--preset", help="Our settings, or the paper's.", show_default=False)] = None,
    purify: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option("--purify", help="Whether to purify; auto: when there is something to repair.", show_default=False),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    accept_repaired: Annotated[bool, typer.Option("--accept-repaired", help="REPAIRED exits 0: for a gate that ships the repaired file.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    tracking_uri: Tracking = None,
) -> None:
    """Audit a model: scan, measure, purify what must be, write back, measure again, decide, record.

    IMAGES are split, seeded and stratified, into calibration images (which a purifier may see) and hold-out images (which judge).
    """
    from pipeline.config import METHODS

    if method is not None and method not in METHODS:
        _fail(BadInput(f"there is no method {method!r}; there are: {', '.join(METHODS)}"))
    options = {"data": data, "method": method, "preset": preset, "purify": purify, "accept_repaired": accept_repaired}
    report = _audit(model, quiet=quiet, as_json=as_json, spec=spec, out=out, device=device, seed=seed, tracking_uri=tracking_uri, **options)
    raise typer.Exit(Verdict(report["verdict"]).exit_code(accept_repaired=accept_repaired))


@app.command(
    epilog="Exit codes: 0 nothing of high severity · 1 a finding of high severity · 2 the file is no model that can be audited · 3 it could not be looked at."
)
def scan(model: Model, out: Out = None, as_json: AsJson = False) -> None:
    """Look at the file and its graph only: no images, seconds."""
    with _Ending():
        from flows.scan import scan as scan_file

        found = scan_file(model)
        text = json.dumps(found, indent=2) + "\n"
        if out is not None:
            from pipeline.outputs import Outputs

            Outputs(out).write("scan.json", text.encode())
        if as_json:
            typer.echo(text, nl=False)
        else:
            from flows.terminal import show_scan

            show_scan(found)
    severe = any(finding["severity"] in ("high", "critical") for finding in found["findings"])
    errored = any(check["outcome"] == "errored" for check in found["checks"])
    raise typer.Exit(1 if severe else 3 if errored else 0)


@app.command(
    "import",
    epilog="Exit codes: 0 it can be audited and repaired · 2 the model, or what came with it, is refused · 3 it has no differentiable copy that agrees.",
)
def import_(
    model: Model,
    data: Data = None,
    spec: Spec = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Can this model be audited?  Operators, reading, parity, and which weights a repair can reach, in seconds.

    The model is scanned, converted to torch and compared with onnxruntime.  With IMAGES that is done on some of them, and the
    reading is settled by what scores best; without, on noise, and nothing is known of scale, mean and std.
    """
    from pipeline.config import AuditSpec, read_spec

    with _Ending() as ending:
        from flows.importing import look
        from flows.progress import watched_by
        from flows.terminal import Display

        ending.enter_context(watched_by(ending.enter_context(Display(quiet=quiet))))
        answer = look(model, read_spec(spec) if spec else AuditSpec(), data=data, device=device)
        if as_json:
            typer.echo(answer.model_dump_json(indent=2))
        else:
            from flows.terminal import show_import

            show_import(answer)
    raise typer.Exit(0 if answer.holds else 3)


@app.command(epilog=EXITS)
def review(
    model: Annotated[str, typer.Argument(metavar="NAME/VERSION|NAME@ALIAS", help="A version in the MLflow registry.", show_default=False)],
    data: Data = None,
    spec: Spec = None,
    catalogue: Annotated[
        Path | None, typer.Option("--catalogue", metavar="FILE.yaml", help="Lines `PATTERN: audit.yaml`: which spec belongs to which name.", show_default=False)
    ] = None,
    out: Out = None,
    approve: Annotated[str | None, typer.Option("--approve", metavar="ALIAS", help="Moved to the version that may be used.", show_default=False)] = None,
    accept_repaired: Annotated[bool, typer.Option("--accept-repaired", help="A repaired version may be used; REPAIRED exits 0.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also where this very review was made before.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found and written as JSON on stdout.")] = False,
    quiet: Quiet = False,
    tracking_uri: Tracking = None,
) -> None:
    """Audit a version in the MLflow registry, and write the result onto it: tags, and a description with the table.

    A repaired model becomes a new version with the tag `audit.parent`; the version that passed gets the alias `audited`.  The same review again changes
    nothing.  What the registry says of the version is the submitter's word: the spec comes from you.
    """
    options = {"data": data, "spec": spec, "catalogue": catalogue, "out": out, "approve": approve, "accept_repaired": accept_repaired, "again": again}
    with _Ending() as ending:
        found = _flow("flows.review", "review", ending, quiet=quiet)(model, device=device, seed=seed, tracking_uri=tracking_uri, **_plain(options))
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            from flows.terminal import show_review

            show_review(found)
    raise typer.Exit(code_of(found["verdict"], accept_repaired=accept_repaired))


@app.command(epilog=EXITS.replace("0 ACCEPT", "the worst of the models': 0 ACCEPT").replace("refused model)", "a model that is refused)"))
def fleet(
    fleet: Annotated[Path, typer.Argument(metavar="FLEET.yaml", help="Which models, by which specs: see docs/fleet.md.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write the reports; default: MLflow alone has them.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Audits at once, on this machine.")] = 1,
    deployment: Annotated[
        str | None,
        typer.Option("--deployment", metavar="FLOW/NAME", help="Let the workers of this Prefect deployment make the audits.", show_default=False),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what has not changed since the last time.")] = False,
    accept_repaired: Annotated[bool, typer.Option("--accept-repaired", help="REPAIRED exits 0.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON on stdout.")] = False,
    quiet: Quiet = False,
    tracking_uri: Tracking = None,
) -> None:
    """Audit many models: those that changed since the last time, or whose spec, images or auditor did.

    What was found hangs under one MLflow run, in which the next fleet of that name looks up what it need not do again.  A verdict that is another than the
    last time is a Prefect event.  One broken model stops no other.
    """
    options = {"out": out, "workers": workers, "deployment": deployment, "again": again}
    with _Ending() as ending:
        found = _flow("flows.fleet", "fleet", ending, quiet=quiet)(str(fleet), device=device, seed=seed, tracking_uri=tracking_uri, **_plain(options))
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            from flows.terminal import show_fleet

            show_fleet(found)
    raise typer.Exit(_worst({model["verdict"] for model in found["models"].values()}, accept_repaired=accept_repaired))


def _worst(verdicts: set[str], *, accept_repaired: bool) -> int:
    """The exit code of many verdicts: a backdoor is worse than what could not be audited, and that is worse than what is not known."""
    codes = {code_of(verdict, accept_repaired=accept_repaired) for verdict in verdicts}
    return next((code for code in (1, 2, 3) if code in codes), 0)


@app.command()
def hook(
    deployment: Annotated[str, typer.Option("--deployment", metavar="FLOW/NAME", help="Of the flow `review`, in Prefect.")] = "review/review",
    catalogue: Annotated[str | None, typer.Option("--catalogue", metavar="FILE.yaml", help="As the workers see it.", show_default=False)] = None,
    approve: Annotated[str | None, typer.Option("--approve", metavar="ALIAS", help="Moved to the version that may be used.", show_default=False)] = None,
    accept_repaired: Annotated[bool, typer.Option("--accept-repaired", help="A repaired version may be used.")] = False,
    host: Annotated[str, typer.Option("--host", help="Where to listen; MLflow sends to https only, unless it is told otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8200,
) -> None:
    """Serve MLflow's webhooks: when a version is registered, its review begins.

    POST /mlflow takes them; the secret that was given to MLflow is in $ONNX_AUDIT_HOOK_SECRET.  The review runs where the workers of the deployment are.
    """
    secret = os.environ.get("ONNX_AUDIT_HOOK_SECRET")
    if not secret:
        _fail(BadInput("set ONNX_AUDIT_HOOK_SECRET to the secret of the webhook in MLflow: what is not signed with it is not let in"))
    with _Ending():
        import uvicorn

        from flows.hook import door

        given = {"catalogue": catalogue, "approve": approve, "accept_repaired": accept_repaired}
        uvicorn.run(door(secret, deployment, parameters={name: value for name, value in given.items() if value}), host=host, port=port, log_level="info")


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of an audit whose record was not taken.", show_default=False)],
    tracking_uri: Tracking = None,
) -> None:
    """Send an audit to MLflow that could not be recorded when it ran."""
    with _Ending():
        from flows.resend import resend

        answer = resend(folder, tracking_uri=tracking_uri)
        typer.echo(f"MLflow run {answer['run_id']} in {answer['tracking_uri']}")


def code_of(verdict: str, *, accept_repaired: bool) -> int:
    """The exit code of a verdict, or of what came in its place."""
    return Verdict(verdict).exit_code(accept_repaired=accept_repaired) if verdict in tuple(Verdict) else 2 if verdict == "REFUSED" else 3


def _audit(model: Path, *, quiet: bool, as_json: bool, **options: Any) -> dict[str, Any]:
    """Run the flow with progress on stderr, print its result, and return the report."""
    given = _plain(options)
    with _Ending() as ending:
        report = _flow("flows.audit", "audit", ending, quiet=quiet)(str(model), **given, command=["onnx-audit", *sys.argv[1:]])
    from flows.terminal import show
    from pipeline.outputs import Outputs
    from pipeline.report.model import AuditReport

    written = AuditReport.model_validate(report)
    if as_json:
        from pipeline.report.json import render_json

        typer.echo(render_json(written).decode(), nl=False)
    else:
        show(written, folder=str(given["out"] or Outputs.beside(model, written.model.sha256).folder))
    return report


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as a flow takes them: paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _flow(module: str, name: str, ending: ExitStack, *, quiet: bool) -> Callable[..., dict[str, Any]]:
    """A flow, with a server to run under and somebody who watches it until `ending` ends."""
    store = Store()
    server = ending.enter_context(_prefect(store))  # starts in the background while the rest is imported
    from flows.terminal import Display

    display = ending.enter_context(Display(quiet=quiet))
    display.started("getting ready")
    from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    from flows.progress import watched_by

    flow: Callable[..., dict[str, Any]] = getattr(import_module(module), name)
    settings: dict[Any, Any] = {PREFECT_LOCAL_STORAGE_PATH: str(store.results)}
    if server is not None:
        settings[PREFECT_API_URL] = server.wait()
    ending.enter_context(temporary_settings(settings))
    ending.enter_context(watched_by(display))
    return flow


def _prefect(store: Store) -> Any:
    """The temporary server, when one is needed; and Prefect kept from talking over the progress bars."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "true")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from flows.server import prefect_server

    return prefect_server(store.folder / "prefect")


class _Ending(ExitStack):
    """Turns how a command ends into an exit code and one sentence; SIGTERM ends it as Ctrl-C does."""

    def __enter__(self) -> _Ending:
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in the background
            signal.signal(signal.SIGINT, _interrupt)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            super().__exit__(kind, error, trace)
        except BaseException as other:  # from leaving, and no less an error
            error = error or other
        if isinstance(error, KeyboardInterrupt):
            _leave()
        if isinstance(error, AuditError):
            _fail(error)
        if isinstance(error, Exception) and not isinstance(error, (typer.Exit, typer.Abort)):
            _fail(Defect(_remember(error)))


def _interrupt(*_: object) -> NoReturn:
    """Leave in good order, or not: Prefect tells its server of the end, and where that is busy it tries again for half a minute."""
    late = threading.Timer(GRACE, _leave)
    late.daemon = True
    late.start()
    raise KeyboardInterrupt


def _leave() -> NoReturn:
    """At once: children and the temporary server die with this process, and Prefect's threads are still talking to one that is gone."""
    typer.echo("interrupted; what had finished is kept, and the same audit goes on from there", err=True)
    sys.stderr.flush()
    os._exit(130)


def _remember(error: Exception) -> str:
    """Keep a traceback in a file, and say where: it is for us, not for the terminal."""
    log = Store().folder / "defect.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error}; this is a mistake in onnx-audit {version()}, please report it with {log}"


def _fail(error: AuditError) -> NoReturn:
    typer.echo(f"onnx-audit: {error}", err=True)
    raise typer.Exit(error.exit_code)


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
