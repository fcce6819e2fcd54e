"""How many nodes the model has once its functions are written out.

A file of two kilobytes whose functions each call the one before twice has 2^30 of them, and hangs every checker, shape inference
and onnxruntime itself.  Counting over the call graph costs nothing.
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter

from onnx import ModelProto

from pipeline.errors import ModelRefused
from pipeline.scan.walk import Body, subgraphs

MOST_NODES = 1_000_000


def check_expansion(model: ModelProto) -> None:
    """Raise ModelRefused when functions call one another in a circle, or expand to over a million nodes (CWE-674, CWE-400)."""
    calls = {(function.domain, function.name): _calls(function) for function in model.functions}
    try:
        order = list(TopologicalSorter({key: [called for called in counts if called in calls] for key, counts in calls.items()}).static_order())
    except CycleError as error:
        raise ModelRefused("the functions of the model call one another in a circle; no runtime can run it") from error
    sizes: dict[tuple[str, str], int] = {}
    for key in order:
        sizes[key] = sum(times * sizes.get(called, 1) for called, times in calls[key].items())
    total = sum(times * sizes.get(called, 1) for called, times in _calls(model.graph).items())
    if total > MOST_NODES:
        raise ModelRefused(f"the model expands to {total:.3g} nodes when its functions are written out; at most {MOST_NODES} are audited")


def _calls(body: Body) -> Counter[tuple[str, str]]:
    """How often a body, its nested graphs included, names each operator."""
    found: Counter[tuple[str, str]] = Counter()
    pending: list[Body] = [body]
    while pending:
        for node in pending.pop().node:
            found[node.domain, node.op_type] += 1
            pending += subgraphs(node)
    return found
