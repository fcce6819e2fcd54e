"""Models in the MLflow registry: a version is fetched to be audited, and told what came of it.

Like tracking.py, whose ways with MLflow these are, it runs in a child: what is fetched is as hostile as any file.  What the registry says of a version, its
tags among it, is written by whoever may write there, the vendor too: no spec and no policy is taken from it, and that a version was reviewed, or is the
repair of another, is believed when the runs of our own experiment say so.  Vendors must not be able to write there.
"""

from __future__ import annotations

import fnmatch
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline.artifact import sha256
from pipeline.errors import BadInput, ModelRefused
from pipeline.findings import printable
from pipeline.results import Value
from pipeline.tracking import MODEL, answering, connect, contact, talking, transfer

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MARK = "**onnx-audit**"  # what stands behind it in a description is ours; lists of versions show the first line
MOST_TAG, MOST_DESCRIPTION = 4900, 4900  # characters
AUDITED = "audited"  # the alias of the version that an audit left as the one to use
PARENT = "audit.parent"  # tag of a repaired version: the version it was made from
REVIEW = "audit.review"  # tag of a version and of its run: digest of what a review follows from; the same digest is the same review
RUN = "audit.run_id"  # tag of a version: the run of its audit
BESIDE = re.compile(r"(MLmodel|conda\.yaml|python_env\.yaml|requirements\.txt|registered_model_meta|(serving_)?input_example\.json|metadata/.*)")


class Named(Value):
    """A version in the registry.  version: its number; None: the one that has the alias."""

    name: str
    version: str | None = None
    alias: str | None = None

    @classmethod
    def of(cls, text: str) -> Named:
        """From NAME/VERSION or NAME@ALIAS, with or without `models:/` before it.  Raises BadInput."""
        given = text.removeprefix("models:/")
        if match := re.fullmatch(r"(?P<name>[^@]+)/(?P<version>[0-9]+)|(?P<other>[^@]+)@(?P<alias>[^@/]+)", given):
            return cls(name=match["name"] or match["other"], version=match["version"], alias=match["alias"])
        raise BadInput(f"{printable(text)} names no version: give NAME/VERSION or NAME@ALIAS")


class FetchRequest(Value):
    """Which version to fetch, and from where.  experiment: the name of the one that audits are recorded in."""

    tracking_uri: str
    named: Named
    experiment: str


class FetchResult(Value):
    """A version, and the files of its model under their own names, external data among them; `main` is the ONNX file.

    tags: what the registry says.  reviewed: the tags of the run that reviewed it, where there is such a run.
    """

    name: str
    version: str
    main: str
    files: dict[str, str]
    tags: dict[str, str]
    reviewed: dict[str, str]


class ListRequest(Value):
    """Which versions to list.  pattern: of names, with `*`.  which: `latest`, `all`, or `@ALIAS`."""

    tracking_uri: str
    pattern: str
    which: str = "latest"


class Listed(Value):
    """A version in the registry, with its tags."""

    name: str
    version: str
    tags: dict[str, str]


class ListResult(Value):
    """The versions, by name and number."""

    versions: list[Listed]


class NoteRequest(Value):
    """What to write onto a version.

    tags: of ours, `audit.…`.  description: Markdown, which takes the place of what an earlier audit wrote.  run_id: the audit's; None: it came to none.
    repaired: MLflow run that holds the repaired model, to be registered as a new version with `repaired_tags`; None: none.  aliases: for the version that
    passed, this one or its repair.  withdrawn: aliases that this version must not have.
    """

    tracking_uri: str
    name: str
    version: str
    tags: dict[str, str]
    description: str
    run_id: str | None = None
    repaired: str | None = None
    repaired_tags: dict[str, str] = {}
    aliases: list[str] = []
    withdrawn: list[str] = []


class NoteResult(Value):
    """What was written.  repaired: number of the repaired version.  aliases: alias -> version, of those that were moved; None: it was taken away."""

    repaired: str | None
    aliases: dict[str, str | None]


def list_versions(request: ListRequest) -> ListResult:
    """The versions of every model whose name matches.  Raises RecordFailed."""
    with talking(request.tracking_uri), answering(request.tracking_uri, "list its versions"), transfer():
        client = connect(request.tracking_uri)
        found: list[Listed] = []
        for name in sorted(name for name in _names(client) if fnmatch.fnmatchcase(name, request.pattern)):
            if request.which.startswith("@"):
                number = _holder(client, name, request.which.removeprefix("@"))
                theirs = [client.get_model_version(name, number)] if number is not None else []
            else:
                theirs = _versions(client, name)[0 if request.which == "all" else -1 :]
            found += [Listed(name=name, version=str(version.version), tags=dict(version.tags or {})) for version in theirs]
    return ListResult(versions=found)


def _names(client: MlflowClient) -> list[str]:
    found, token = [], None
    while True:
        page = client.search_registered_models(max_results=500, page_token=token)
        found += [str(model.name) for model in page]
        token = page.token
        if not token:
            return found


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Every version of a name, the oldest first."""
    quoted, found, token = name.replace("'", "\\'"), [], None
    while True:
        page = client.search_model_versions(f"name='{quoted}'", max_results=500, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def fetch(request: FetchRequest, folder: Path) -> FetchResult:
    """Download a version into `folder`.  Raises BadInput when there is none, ModelRefused when it holds no ONNX, RecordFailed when MLflow does not answer."""
    import mlflow

    with talking(request.tracking_uri), answering(request.tracking_uri, "give the version"):
        with contact():
            client = connect(request.tracking_uri)
            version = _find(client, request.named)
            reviewed = _run_of(client, dict(version.tags or {}).get(RUN), request.experiment)
        with transfer():
            local = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}", dst_path=str(folder)))
    main = _onnx_file(local, f"{printable(version.name)}/{version.version}")
    root = (local / main).parent
    there = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and not BESIDE.fullmatch(str(path.relative_to(local)))]
    files = {str(path.relative_to(root)): str(path) for path in there}
    return FetchResult(name=version.name, version=str(version.version), main=Path(main).name, files=files, tags=dict(version.tags or {}), reviewed=reviewed)


def _run_of(client: MlflowClient, run_id: str | None, experiment: str) -> dict[str, str]:
    """The tags of a run, where it is a finished one of ours."""
    from mlflow import MlflowException

    ours = client.get_experiment_by_name(experiment)
    if run_id is None or ours is None:
        return {}
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return {}
    return dict(run.data.tags) if run.info.experiment_id == ours.experiment_id and run.info.status == "FINISHED" else {}


def _onnx_file(local: Path, what: str) -> str:
    """The path of the ONNX file, as MLmodel has it.  Raises ModelRefused."""
    try:
        flavours = yaml.safe_load((local / "MLmodel").read_text())["flavors"]
        if "onnx" not in flavours:
            raise ModelRefused(f"{what} has no ONNX flavour; it has: {', '.join(map(printable, sorted(flavours)))}")
        name = str(flavours["onnx"]["data"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ModelRefused(f"{what} has no MLmodel file that says where its ONNX file is ({type(error).__name__})") from error
    path = local / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(local.resolve()) or path.is_symlink() or not path.is_file():
        raise ModelRefused(f"the MLmodel file of {what} names {printable(name)}, which is no file of that version")
    return name


def annotate(request: NoteRequest) -> NoteResult:
    """Write onto a version what an audit found; the same again changes nothing.  Raises RecordFailed."""
    import mlflow

    with talking(request.tracking_uri), answering(request.tracking_uri, "take the review"), transfer():
        client = connect(request.tracking_uri)
        version = client.get_model_version(request.name, request.version)
        repaired: str | None = None
        aliases: dict[str, str | None] = {}
        if request.repaired is not None:
            repaired = _repaired(client, request)
            if repaired is None:
                made = mlflow.register_model(f"runs:/{request.repaired}/{MODEL}", request.name, tags=_tags(request.repaired_tags | {PARENT: request.version}))
                repaired = str(made.version)
                said = f"Repair of version {request.version} by onnx-audit: the description of that one has the figures of both."
                client.update_model_version(request.name, repaired, said)  # without MARK, which lists of versions would show in its place
        good = repaired or request.version
        for alias in request.aliases:
            if _holder(client, request.name, alias) != good:
                client.set_registered_model_alias(request.name, alias, good)
            aliases[alias] = good
        for alias in request.withdrawn:
            if _holder(client, request.name, alias) == request.version:
                client.delete_registered_model_alias(request.name, alias)
                aliases[alias] = None
        if request.run_id is not None and REVIEW in request.tags:
            client.set_tag(request.run_id, REVIEW, request.tags[REVIEW])
        known = dict(version.tags or {})
        for name, value in _tags(request.tags | ({"audit.repaired_version": repaired} if repaired else {})).items():
            if known.get(name) != value:
                client.set_model_version_tag(request.name, request.version, name, value)
        text = described(version.description or "", request.description)
        if text != (version.description or ""):
            client.update_model_version(request.name, request.version, text)
    return NoteResult(repaired=repaired, aliases=aliases)


def described(before: str, ours: str) -> str:
    """A description with what we say behind what others said, in place of what we said before."""
    theirs = before.split(MARK)[0].rstrip()
    room = MOST_DESCRIPTION - len(theirs) - len(MARK) - 4
    return f"{theirs}\n\n{MARK}\n{ours[:room]}".lstrip() if room > 0 else theirs


def _tags(given: dict[str, str]) -> dict[str, str]:
    return {name: printable(value, limit=MOST_TAG) for name, value in given.items()}


def _find(client: MlflowClient, named: Named) -> ModelVersion:
    from mlflow import MlflowException

    try:
        if named.version is not None:
            return client.get_model_version(named.name, named.version)
        assert named.alias is not None
        return client.get_model_version_by_alias(named.name, named.alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            which = f"version {named.version}" if named.version is not None else f"alias {printable(named.alias)}"
            raise BadInput(f"the registry has no {which} of {printable(named.name)}") from error
        raise


def _repaired(client: MlflowClient, request: NoteRequest) -> str | None:
    """The version that an earlier review made of the same repair: with its tags, which anybody can write, and its bytes, which only we could."""
    import mlflow

    assert request.repaired is not None
    wanted = client.get_run(request.repaired).data.tags.get("record.stored_sha256")
    for version in _versions(client, request.name):
        tags = dict(version.tags or {})
        if tags.get(PARENT) != request.version or version.run_id != request.repaired:
            continue
        with tempfile.TemporaryDirectory() as folder:
            there = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}", dst_path=folder)
            if wanted is not None and sha256(Path(there) / _onnx_file(Path(there), "the repaired version")) == wanted:
                return str(version.version)
    return None


def _holder(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that has an alias."""
    from mlflow import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        return None
