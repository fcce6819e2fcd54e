"""Networks of the reference model and the zoo."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.convert.operators.activations import elu
from pipeline.errors import BadInput


class ELU(nn.ELU):
    """ELU, quickly; torch's own where it is exported, so that the file has the operator."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return super().forward(x) if torch.onnx.is_in_onnx_export() else elu(x)


class SmallVGG(nn.Module):
    """The small VGG of the AWM paper (Chai & Chen, NeurIPS 2022).

    Six 3x3 convolutions in three blocks of `width`, 2 `width` and 4 `width` channels, each followed by BatchNorm and ELU,
    each block closed by 2x2 max-pooling; then one linear layer on the map that is left (4x4 of 32x32).  BatchNorm stands before
    ELU, so that an exporter can fold it into the convolution exactly.

    Takes (N, channels, side, side) float32, normalised; answers (N, classes) logits.
    """

    def __init__(self, *, classes: int = 10, channels: int = 3, side: int = 32, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for after in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), ELU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before * (side // 8) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, side, side) -> (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class CNN(nn.Module):
    """The network that BadNets were first taught to (Gu et al., 2017, arXiv 1708.06733, table 1): no BatchNorm, and ReLU, whose channels can be silent.

    Two 5x5 convolutions of `width` and 2 `width` channels, 16 in the paper, each with 2x2 average pooling behind it; 512 hidden units.

    Takes (N, channels, side, side) float32, normalised; answers (N, classes) logits.
    """

    def __init__(self, *, classes: int = 10, channels: int = 1, side: int = 28, width: int = 16) -> None:
        super().__init__()
        left = ((side - 4) // 2 - 4) // 2
        first, second = nn.Conv2d(channels, width, 5), nn.Conv2d(width, 2 * width, 5)
        self.features = nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2), second, nn.ReLU(), nn.AvgPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(2 * width * left**2, 512), nn.ReLU(), nn.Linear(512, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, side, side) -> (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class _Residual(nn.Module):
    """relu(x + g(x)), g two 3x3 convolutions with BatchNorm; where the shape changes, x goes through a 1x1 convolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.g = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.g(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016, arXiv 1512.03385) as it is used on small pictures: a 3x3 stem, no pooling after it.

    Four stages of two residual blocks with `width`, 2, 4 and 8 `width` channels; 64 is the full width.

    Takes (N, channels, H, W) float32, normalised; answers (N, classes) logits.
    """

    def __init__(self, *, classes: int = 10, channels: int = 3, side: int = 32, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
        for stage in range(4):
            after = width << stage
            layers += [_Residual(before, after, 1 if stage == 0 else 2), _Residual(after, after, 1)]
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class _ConvNeXtBlock(nn.Module):
    """x + scale * MLP(LayerNorm(depthwise 7x7 convolution of x)), LayerNorm and MLP over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.scale * self.mlp(self.depthwise(x).permute(0, 2, 3, 1))
        return x + inner.permute(0, 3, 1, 2)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """A ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545) for small pictures: no BatchNorm anywhere.

    A 2x2 stem, three stages of two blocks with `width`, 2 and 4 `width` channels, 2x2 convolutions between them.

    Takes (N, channels, H, W) float32, normalised; answers (N, classes) logits.
    """

    def __init__(self, *, classes: int = 10, channels: int = 3, side: int = 32, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for stage in range(3):
            after = width << stage
            norm = [] if stage == 0 else [_ChannelNorm(before)]
            layers += [*norm, nn.Conv2d(before, after, 2, 2), *([_ChannelNorm(after)] if stage == 0 else [])]
            layers += [_ConvNeXtBlock(after), _ConvNeXtBlock(after)]
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.LayerNorm(before), nn.Linear(before, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


NETWORKS: dict[str, Callable[..., nn.Module]] = {"vgg": SmallVGG, "cnn": CNN, "resnet18": ResNet18, "convnext": ConvNeXt}


def network(name: str, *, classes: int, channels: int, side: int) -> nn.Module:
    """A network by name, untrained; `resnet18-16` is a ResNet18 of width 16.  Raises BadInput."""
    kind, _, width = name.partition("-")
    if kind not in NETWORKS or (width and not width.isdecimal()):
        raise BadInput(f"there is no network {name!r}; there are: {', '.join(NETWORKS)}, each also with a width, as in resnet18-16")
    return NETWORKS[kind](classes=classes, channels=channels, side=side, **({"width": int(width)} if width else {}))
