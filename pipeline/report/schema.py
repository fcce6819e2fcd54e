"""Publish the JSON Schema of report.json beside this file: `python -m pipeline.report.schema`."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.json import render_schema

PUBLISHED = Path(__file__).with_name("report.schema.json")

if __name__ == "__main__":
    PUBLISHED.write_bytes(render_schema())
