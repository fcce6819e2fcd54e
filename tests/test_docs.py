"""What the documents say is complete: they name every file, key, option and reason that there is, and their links lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from markdown_it import MarkdownIt
from pydantic import BaseModel

from flows.cli import app
from pipeline.config import AuditSpec
from pipeline.report.model import AuditReport
from pipeline.scan import CHECKS
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("pipeline", "flows", "models")


def quoted(name: str) -> set[str]:
    """Everything between single backticks in a document of `docs/`."""
    return set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", (ROOT / "docs" / name).read_text()))


def calls(name: str) -> Iterator[ast.Call]:
    """Every call of a function `name` in `pipeline` and `flows`."""
    for package in ("pipeline", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                    yield node


def argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((word.value for word in call.keywords if word.arg == name), None)


def pattern(code: ast.expr) -> str:
    """A regular expression of the codes that an expression can make."""
    if isinstance(code, ast.Constant):
        return re.escape(str(code.value))
    assert isinstance(code, ast.JoinedStr), ast.unparse(code)
    return "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in code.values)


def reason_patterns() -> set[str]:
    codes = [argument(call, "code") for call in calls("Reason")]
    assert None not in codes, "a Reason without code="
    rules = [argument(call, "rule") for call in calls("Finding")]  # those of high severity become codes as they are
    found = {pattern(code) for code in codes if code is not None and ast.unparse(code) != "finding.rule"}
    return found | {pattern(rule) for rule in rules if rule is not None}


@pytest.mark.parametrize("code", sorted(reason_patterns()))
def test_every_reason_is_explained(code: str) -> None:
    assert any(re.fullmatch(code, text) for text in quoted("report.md")), f"docs/report.md says nothing about {code}"


def test_reasons_are_found_in_the_sources() -> None:
    found = reason_patterns()
    assert {re.escape("detect.absent"), re.escape("record.failed"), re.escape("file.non-finite-weights"), r".+\.asr"} <= found
    assert len(found) >= 20


def test_reasons_with_a_name_in_them_are_spelt_out() -> None:
    steps = {str(step.value) for call in calls("stages") if isinstance(step := argument(call, "step"), ast.Constant)}
    assert steps, "no stage runs under another name"
    made = {f"{stage.replace(' ', '-')}.failed" for stage in {*STAGES, *steps}}
    made |= {f"{check}.{outcome}" for check in CHECKS for outcome in ("errored", "skipped")}
    made |= {f"{which}.{what}" for which in ("submitted", "purified") for what in ("asr", "accuracy", "constant")} | {"purified.accuracy-drop"}
    assert made - quoted("report.md") == set()


def test_every_field_of_the_report_is_explained() -> None:
    assert {field.alias or name for name, field in AuditReport.model_fields.items()} - quoted("report.md") == set()


def models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """The pydantic models in an annotation, and whether they stand in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    for inner in get_args(annotation):
        for model, listed in models_in(inner):
            yield model, listed or getattr(annotation, "__origin__", None) is list


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield before + name
        for inner, listed in models_in(field.annotation):
            yield from keys(inner, f"{before}{name}{'[]' if listed else ''}.")


def test_every_key_of_the_spec_is_explained() -> None:
    found = set(keys(AuditSpec))
    assert {"input.scale", "triggers[].target", "policy.max_asr", "limits.seconds"} <= found
    assert found - quoted("spec.md") == set()


def test_no_key_is_explained_that_is_not_there() -> None:
    section = (ROOT / "docs" / "spec.md").read_text().split("\n## Keys\n")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))
    assert len(listed) > 30
    assert listed - set(keys(AuditSpec)) == set()


def test_every_option_is_explained() -> None:
    group: Any = typer.main.get_command(app)
    options = {option for command in [group, *group.commands.values()] for given in command.params for option in given.opts if option.startswith("-")}
    assert {"--accept-repaired", "-q", "--version"} <= options
    assert options - quoted("spec.md") == set()


def tree() -> set[str]:
    """The files in the tree of docs/design.md: four spaces before the roots, two more for each folder."""
    found, folders = set(), list[str]()
    for line in (ROOT / "docs" / "design.md").read_text().splitlines():
        if entry := re.match(r"    ( *)([\w.]+/?) {2,}\S", line):
            depth, name = len(entry[1]) // 2, entry[2]
            del folders[depth:]
            if name.endswith("/"):
                folders.append(name)
            else:
                found.add("".join(folders) + name)
    return found


def test_the_layout_is_the_layout() -> None:
    there = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"}
    assert there - tree() == set(), "not in docs/design.md"
    assert tree() - there == set(), "only in docs/design.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    tokens = [inner for token in MarkdownIt().parse(document.read_text()) for inner in token.children or []]
    targets = [str(token.attrs.get("href") or token.attrs.get("src")) for token in tokens if token.type in ("link_open", "image")]
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if target and not (document.parent / target).exists()] == []
