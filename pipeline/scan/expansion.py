"""How many nodes the model has once its functions are written out.

A file of two kilobytes whose functions each call the one before twice has 2^30 of them, and hangs every checker, shape inference
and onnxruntime itself.  Counting over the call graph costs nothing.
"""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter

from onnx import ModelProto

from pipeline.errors import ModelRefused
from pipeline.findings import printable
from pipeline.scan.interface import STANDARD
from pipeline.scan.walk import Body, nested

MOST_NODES = 1_000_000
Key = tuple[str, str, str]
"""Domain, name and overload: what a node calls a function by."""


def check_expansion(model: ModelProto) -> None:
    """Raise ModelRefused when functions call one another in a circle, or expand to over a million nodes (CWE-674, CWE-400)."""
    calls: dict[Key, Counter[Key]] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        name = printable(function.name, limit=60)
        if function.domain in STANDARD:
            raise ModelRefused(f"the model defines {name!r} as a function among the standard operators; runtimes do not agree on what that means")
        if key in calls:
            raise ModelRefused(f"the model defines the function {name!r} twice; runtimes do not agree on which one counts")
        calls[key] = _calls(function)
    try:
        order = list(TopologicalSorter({key: [called for called in counts if called in calls] for key, counts in calls.items()}).static_order())
    except CycleError as error:
        raise ModelRefused("the functions of the model call one another in a circle; no runtime can run it") from error
    sizes: dict[Key, int] = {}
    for key in order:
        sizes[key] = _size(calls[key], sizes)
    if _size(_calls(model.graph), sizes) > MOST_NODES:
        raise ModelRefused(f"the model expands to more than {MOST_NODES} nodes when its functions are written out, which is not audited")


def _size(calls: Counter[Key], sizes: dict[Key, int]) -> int:
    """Nodes that a body expands to, each call itself among them; no further than just above the limit, where counting ends."""
    return min(sum(times * (1 + sizes.get(called, 0)) for called, times in calls.items()), MOST_NODES + 1)


def _calls(body: Body) -> Counter[Key]:
    """How often a body, its nested graphs included, names each operator."""
    found: Counter[Key] = Counter()
    pending: list[Body] = [body]
    while pending:
        body = pending.pop()
        found.update((node.domain, node.op_type, node.overload) for node in body.node)
        pending += nested(body)
    return found
