"""Whether the pixels decide which part of the graph runs, or how often.

An If on the values of the image is the shortest backdoor that there is, and such a graph has no differentiable copy.  Exporters
write If and Loop too, but on shapes.  So what the pixels reach is followed through every graph and function body, in three
degrees: a value that does not depend on them, one whose numbers do, and one whose shape does too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto

from pipeline.findings import Finding, Severity
from pipeline.scan.flow import Flow, Reach


def check_control_flow(model: ModelProto, folder: Path) -> Iterator[Finding]:
    """An If whose condition, or a Loop or Scan whose length, depends on the values of the image."""
    flow = Flow(model)
    reach = flow.reach()
    for steered in flow.steered:
        if any(reach[place] for place in steered.numbers) or any(reach[place] == Reach.SHAPE for place in steered.shapes):
            node = steered.node
            what = "which branch of an If runs" if node.op_type == "If" else f"how often the body of a {node.op_type} runs"
            yield Finding(
                rule="graph.data-dependent-control-flow",
                severity=Severity.HIGH,
                message=f"{what} depends on the values of the image",
                where=node.name or next((name for name in node.output if name), ""),
            )
