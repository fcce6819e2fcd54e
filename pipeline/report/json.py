"""report.json and its JSON Schema (Draft 2020-12)."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pipeline.report.model import SCHEMA, AuditReport


def render_json(report: AuditReport) -> bytes:
    """The report as UTF-8 JSON: keys in the order of the schema, two spaces, a newline at the end.

    A figure that is not finite is a string, `NaN`, `Infinity` or `-Infinity`: JSON has no number for it, and a hostile model can
    make one.  `AuditReport.model_validate_json` reads it back.
    """
    return json.dumps(_finite(report.model_dump(mode="json")), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class _Published(GenerateJsonSchema):
    def field_is_required(self, field: Any, total: bool) -> bool:
        return True  # a report names every field, at any depth, null or not

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        number = super().float_schema(schema)
        if {"ge", "gt", "le", "lt"} & schema.keys():
            return number
        return {"anyOf": [number, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def schema() -> dict[str, Any]:
    """The JSON Schema that every report.json keeps."""
    generated = AuditReport.model_json_schema(by_alias=True, mode="serialization", schema_generator=_Published)
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"urn:{SCHEMA.replace('/', ':')}"} | generated


def render_schema() -> bytes:
    """The JSON Schema as it is published."""
    return json.dumps(schema(), indent=2).encode() + b"\n"
