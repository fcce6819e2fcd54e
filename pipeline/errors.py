"""What can go wrong, as one tree of typed errors.

    AuditError                        everything that onnx-audit raises on purpose
    ├── BadInput                      the audit cannot run: exit 2
    │   ├── ModelRefused              the file is no image classifier that can be audited
    │   ├── ImagesRefused             the images or their labels cannot be used
    │   ├── SpecRefused               audit.yaml or an option says something that cannot be done
    │   └── DeviceUnavailable         the device that was asked for is not there
    ├── StageFailed                   a stage gave no answer: INCONCLUSIVE, exit 3
    │   ├── StageKilled               its process was killed by a signal: worth one more try
    │   ├── ConversionFailed          the graph has no differentiable copy
    │   └── RecordFailed              the tracking server did not take the record
    └── Defect                        a mistake of ours: exit 4

A finding about the model is no error: see `pipeline.findings`.  A message says what was expected, what came, and what to do.
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of everything that onnx-audit raises on purpose."""

    exit_code = 4


class BadInput(AuditError):
    """The audit cannot run on what it was given."""

    exit_code = 2


class ModelRefused(BadInput):
    """The file is no image classifier that can be audited."""


class ImagesRefused(BadInput):
    """The images or their labels cannot be used."""


class SpecRefused(BadInput):
    """audit.yaml, or an option, says something that cannot be done."""


class DeviceUnavailable(BadInput):
    """The device that was asked for is not there."""


class StageFailed(AuditError):
    """A stage gave no answer: killed, out of time, out of memory, or defeated by the model."""

    exit_code = 3


class StageKilled(StageFailed):
    """A stage's process was killed by a signal that was not ours."""


class ConversionFailed(StageFailed):
    """The graph has no differentiable copy; it can still be measured."""


class RecordFailed(StageFailed):
    """The tracking server did not take the record."""


class Defect(AuditError):
    """A mistake of ours."""


def _tree(root: type[AuditError]) -> dict[str, type[AuditError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_NAME = _tree(AuditError)
"""Every error by its name, so that a child process can name the one it met."""
