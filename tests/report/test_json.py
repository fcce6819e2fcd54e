"""report.json and its published schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from pipeline.report.json import render_json, render_schema, schema
from pipeline.report.model import AuditReport, MlflowRecord, SubmittedModel
from pipeline.report.schema import PUBLISHED

DESIGN = ["schema", "verdict", "reasons", "model", "findings", "parity", "submitted", "detection", "purified", "mlflow", "provenance", "files"]


@pytest.fixture(params=["full", "minimal"])
def report(request: pytest.FixtureRequest) -> AuditReport:
    value: AuditReport = request.getfixturevalue(request.param)
    return value


def errors(document: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema()).iter_errors(document)]


def test_the_published_schema_is_the_generated_one() -> None:
    assert PUBLISHED.read_bytes() == render_schema(), "run `python -m pipeline.report.schema`"


def test_the_schema_is_draft_2020_12() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_report_keeps_the_schema(report: AuditReport) -> None:
    assert errors(json.loads(render_json(report))) == []


def test_a_report_is_read_back(report: AuditReport) -> None:
    written = render_json(report)
    assert render_json(AuditReport.model_validate_json(written)) == written


def test_keys_are_those_of_the_design_and_in_its_order(report: AuditReport) -> None:
    document = json.loads(render_json(report))
    assert document["schema"] == "onnx-audit/report/1"
    assert [key for key in document if key in DESIGN] == DESIGN
    assert render_json(report).endswith(b"}\n")


@pytest.mark.parametrize("key", ["schema", "verdict", "parity", "purified", "provenance"])
def test_a_missing_key_breaks_the_schema(full: AuditReport, key: str) -> None:
    document = json.loads(render_json(full))
    del document[key]
    assert errors(document)


def test_an_unknown_key_breaks_the_schema_at_any_depth(full: AuditReport) -> None:
    document = json.loads(render_json(full))
    document["submitted"]["clean"]["extra"] = 1
    assert errors(document)


def test_figures_that_are_not_finite_are_kept_as_valid_json(full: AuditReport) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(render_json(full), parse_constant=refuse)
    assert document["parity"]["first_divergence"]["torch"] == "NaN"
    assert document["purified"]["changes"][2]["relative_change"] == "Infinity"


def test_the_file_holds_no_credentials(full: AuditReport) -> None:
    assert b"secret" not in render_json(full)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://robot:se@cret@mlflow.example:5000/base?a=b@c", "https://mlflow.example:5000/base?a=b@c"),
        ("sqlite:///folder/mlflow.db", "sqlite:///folder/mlflow.db"),
        ("postgresql://robot:secret@host/db", "postgresql://host/db"),
        ("/folder/user@home/mlruns", "/folder/user@home/mlruns"),
    ],
)
def test_credentials_of_the_tracking_server_are_left_out(given: str, kept: str) -> None:
    assert MlflowRecord(run_id="1", tracking_uri=given).tracking_uri == kept


def test_names_of_the_file_cannot_reorder_the_text_around_them(full: AuditReport) -> None:
    assert "\u202e" not in json.dumps(json.loads(render_json(full)), ensure_ascii=False)


def test_a_digest_has_no_prefix() -> None:
    with pytest.raises(ValidationError, match="sha256"):
        SubmittedModel(path="model.onnx", sha256="sha256:" + "0" * 64, bytes=1, opset=None, producer=None, parameters=None)
