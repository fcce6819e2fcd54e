"""Where third-party models may be found: they are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

CORPUS = Path(os.environ.get("ONNX_AUDIT_CORPUS") or Path(__file__).resolve().parents[2] / "shared" / "corpus")
