"""What a network says of pictures, and how far that is from what another one said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.purify.network import Layer, layers, watch
from pipeline.twin import TorchTwin


@dataclass(frozen=True)
class Knowledge:
    """Of N pictures: answers, (N, K) logarithms of probabilities, and features, (N, F) what the last hidden layer says, the mean over positions."""

    answers: Tensor
    features: Tensor

    def at(self, index: Tensor) -> Knowledge:
        """Of the pictures at `index`."""
        return Knowledge(self.answers[index], self.features[index])

    def split(self, sizes: list[int]) -> list[Knowledge]:
        """Of so many pictures each."""
        return [Knowledge(*parts) for parts in zip(self.answers.split(sizes), self.features.split(sizes), strict=True)]


@dataclass(frozen=True)
class Asked:
    """A twin, and its last hidden layer; None where it has none, and there are no features then."""

    twin: TorchTwin
    layer: Layer | None

    @classmethod
    def of(cls, twin: TorchTwin) -> Asked:
        """With the last layer before those that make the scores."""
        return cls(twin, next(reversed(layers(twin)), None))

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Knowledge:
        """What the network says of (N, C, H, W) pictures in 0..1, with the submitted weights or with others."""
        if self.layer is None:
            answers = self.twin.logits(x, weights).log_softmax(1)
            return Knowledge(answers, answers[:, :0])
        logits, found = watch(self.twin, x, weights, [self.layer.seen])
        return Knowledge(logits.log_softmax(1), self.layer.per_channel(found[self.layer.seen]).float().mean(2))

    @torch.no_grad()
    def from_several_places(self, x: Tensor, views: int) -> Knowledge:
        """What the submitted network says of pictures that are shifted by a pixel and mirrored: the mean of its probabilities and of its features."""
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        height, width = x.shape[2:]
        places = [(1, 1), (1, 1), (2, 2), (0, 0), (2, 0), (0, 2)][:views]
        seen = [padded[:, :, top : top + height, left : left + width] for top, left in places]
        seen = [view.flip(3) if turn % 2 else view for turn, view in enumerate(seen)]
        said = self(torch.cat(seen))
        answers, features = (torch.stack(part.split(len(x))).mean(0) for part in (said.answers.exp(), said.features))
        return Knowledge(answers.clamp_min(1e-8).log(), features)


def divergence(said: Knowledge, goal: Knowledge, share: float) -> Tensor:
    """KL(goal, said) of the answers, and `share` of the squared distance of the features in units of the goal's mean square; the mean over pictures."""
    apart = F.kl_div(said.answers, goal.answers, log_target=True, reduction="batchmean")
    if not goal.features.shape[1]:
        return apart
    length = goal.features.square().sum(1).mean().clamp_min(1e-12)
    return apart + share * (said.features - goal.features).square().sum(1).mean() / length
