"""A submitted network as several methods need it: its layers and their channels, and what they answer to pictures.

The twin's module is a graph of the operators that the vendor exported, with the weights as inputs; no layer is a torch layer, and
BatchNorm is folded more often than not.  So a channel is found in the graph: the kernel that makes it, the numbers that belong
to it alone, and the activation that the rest of the network sees of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pipeline.twin import Role, TorchTwin

KERNELS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention"})  # what mixes channels
ACTIVATIONS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign"}
    | {"Mish", "Gelu", "Swish", "Clip", "Erf", "Sign"}  # Erf: of a Gelu in pieces, Sigmoid: of a Swish in pieces; both rise with their input
)
POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"})
NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"})
PASSED = POOLS | NORMS | {"Add", "Sub", "Mul", "Div", "Identity", "Dropout"}  # what may stand between a layer and its activation
OWN = frozenset({"BatchNormalization", "Add", "Mul"})  # what gives a channel a shift or a factor of its own


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer whose output channels can be told apart, and are not the scores.

    kernel: initializer.  axis: of the kernel, the one of the `channels` outputs.  own: initializers with one number a channel
    that shift or scale the layer's output before anything else is added (bias, BatchNorm's scale and bias): where kernel and these
    are zero, the channel is zero.  output: name of the layer's submodule; seen: of the activation that follows, or of the pooling
    behind that; the layer's own where no activation follows.
    """

    role: Role
    kernel: str
    axis: int
    channels: int
    own: tuple[str, ...]
    output: str
    seen: str

    @property
    def activated(self) -> bool:
        """Whether an activation follows."""
        return self.seen != self.output

    def per_channel(self, values: Tensor) -> Tensor:
        """What `seen` answers, (N, C, ...) of a convolution or (N, ..., C), as (N, C, positions)."""
        if self.role is Role.LINEAR:
            values = values.movedim(-1, 1)
        return values.reshape(*values.shape[:2], -1)

    def mask(self, twin: TorchTwin, gone: Tensor) -> dict[str, Tensor]:
        """1, and 0 for the channels with the indices `gone`: for the kernel and each of `own`, in their shapes."""
        keep = torch.ones(self.channels, device=twin.device).index_fill(0, gone.to(twin.device), 0.0)
        shape = [1] * twin.weights[self.kernel].value.dim()
        shape[self.axis] = -1
        masks = {self.kernel: keep.view(shape).expand_as(twin.weights[self.kernel].value)}
        return masks | {name: keep.view_as(twin.weights[name].value) for name in self.own}


def layers(twin: TorchTwin) -> list[Layer]:
    """Every layer of the twin that has a bound kernel of its own, in the graph's order, without those that make the scores."""
    return _Graph(twin).layers()


def scores(twin: TorchTwin) -> Layer | None:
    """The one layer whose channels are the scores; None where there is none, or several."""
    found = _Graph(twin).layers(scoring=True)
    return found[0] if len(found) == 1 else None


def watch(twin: TorchTwin, pictures: Tensor, weights: Mapping[str, Tensor] | None, names: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits (N, K) of (N, C, H, W) pictures in 0..1, and what the submodules `names` answered on the way: name -> (N, ...)."""
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = []
    try:
        for name, kept in parts.items():
            hooks.append(twin.module.get_submodule(name).register_forward_hook(lambda module, given, answer, kept=kept: kept.append(answer)))
        logits = twin.logits(pictures, weights)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, {name: torch.cat(kept)[: len(pictures)] for name, kept in parts.items()}


class _Graph:
    """The twin's graph, asked about layers."""

    def __init__(self, twin: TorchTwin) -> None:
        assert isinstance(twin.module, fx.GraphModule)
        self.twin, self.module = twin, twin.module
        self.nodes = list(twin.module.graph.nodes)
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        self.weights: dict[object, str] = dict(zip(inputs[1:], twin.weights, strict=True))

    def layers(self, *, scoring: bool = False) -> list[Layer]:
        """Those that another kernel comes behind, or, `scoring`, those that none does."""
        feeds: dict[fx.Node, bool] = {}  # whether a kernel comes later
        for node in reversed(self.nodes):
            feeds[node] = any(feeds[user] or self.operator(user) in KERNELS for user in node.users)
        return [layer for node in self.nodes if feeds[node] is not scoring and (layer := self.layer(node)) is not None]

    def part(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def operator(self, node: fx.Node) -> str:
        return str(getattr(self.part(node), "name", ""))

    def layer(self, node: fx.Node) -> Layer | None:
        operator = self.operator(node)
        kernel = self.alone(node.args[1]) if operator in ("Conv", "Gemm", "MatMul") and len(node.args) > 1 else None
        if kernel is None or (weight := self.twin.weights[kernel]).role not in (Role.CONVOLUTION, Role.LINEAR) or weight.value.dim() < 2:
            return None
        if operator == "MatMul" and weight.value.dim() > 2:
            return None
        transposed = operator == "Gemm" and getattr(self.part(node), "function").keywords.get("transB", 0)  # noqa: B009
        axis = 0 if operator == "Conv" or transposed else 1
        channels = weight.value.shape[axis]
        own, seen = self.own(node, channels), self.seen(node)
        return Layer(weight.role, kernel, axis, channels, own, str(node.target), str(seen.target))

    def alone(self, value: object) -> str | None:
        """The initializer that a value is, when nothing else uses it."""
        return self.weights.get(value) if isinstance(value, fx.Node) and len(value.users) == 1 else None

    def own(self, node: fx.Node, channels: int) -> tuple[str, ...]:
        """The bias of the layer, then what BatchNorm, Add or Mul with an initializer do to its output."""
        found = [self.alone(value) for value in node.args[2:]]
        while len(node.users) == 1 and self.operator(user := next(iter(node.users))) in OWN:
            others = [value for value in user.args if value is not node]
            if not all(value in self.weights for value in others):
                break
            found += [self.alone(value) for value in others]
            node = user
        kept = (name for name in found if name is not None and self.twin.weights[name].role in (Role.BIAS, Role.SCALE))
        return tuple(name for name in kept if self.twin.weights[name].value.numel() == channels)

    def seen(self, node: fx.Node) -> fx.Node:
        """The nearest activation behind a layer, or the pooling behind that; the layer itself when another kernel comes first."""
        queue, met = [node], {node}
        while queue:
            for user in queue.pop(0).users:
                operator = self.operator(user)
                if operator in ACTIVATIONS:
                    after = next(iter(user.users))
                    return after if len(user.users) == 1 and self.operator(after) in POOLS else user
                if operator in PASSED and user not in met:
                    queue.append(user)
                    met.add(user)
        return node
