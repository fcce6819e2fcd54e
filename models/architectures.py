"""Networks of the reference models."""

from __future__ import annotations

from torch import Tensor, nn


class SmallVGG(nn.Module):
    """The small VGG of the AWM paper (Chai & Chen, NeurIPS 2022).

    Six 3x3 convolutions in three blocks of `width`, 2 `width` and 4 `width` channels, each followed by BatchNorm and ELU,
    each block closed by 2x2 max-pooling; then one linear layer on the 4x4 map.  BatchNorm stands before ELU, so that an
    exporter can fold it into the convolution exactly.

    Takes (N, 3, 32, 32) float32, normalised; answers (N, classes) logits.
    """

    def __init__(self, *, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for after in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ELU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
