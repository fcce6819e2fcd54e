"""Triggers in pixel space, one family a file, in NumPy.

Each family is a callable on (N, H, W, C) float32 pictures in 0..1, and a spec: its fields in audit.yaml, by `kind`.
"""

from __future__ import annotations

from pipeline.triggers.patch import Patch, PatchSpec

TriggerSpec = PatchSpec  # becomes a union discriminated by `kind` with the second family
Trigger = Patch

__all__ = ["Patch", "PatchSpec", "Trigger", "TriggerSpec"]
