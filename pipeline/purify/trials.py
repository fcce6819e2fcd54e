"""Of several random changes of a picture, the one that moves it most; and what moved pictures of a class is tried on the next ones.

A trigger moves every picture of the classes that it works on, an accident one.  So for each kind of change and each class the change that
was last found to move most stands beside those that are drawn anew: what resembles a trigger stays until it is unlearnt, and accidents
are forgotten.  By class, since some backdoors work on one class only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.purify.corruptions import KINDS, Drawn
from pipeline.twin import TorchTwin


@dataclass
class Trials:
    """tries: changes tried on a picture, one of them from memory where there is one.  most: changes remembered, the latest ones."""

    tries: int
    most: int = 256
    memory: dict[tuple[int, int], Drawn] = field(default_factory=dict)  # kind, class -> one change

    @torch.no_grad()
    def __call__(
        self, twin: TorchTwin, weights: Mapping[str, Tensor] | None, x: Tensor, goal: Tensor, generator: torch.Generator, *, critic: TorchTwin | None = None
    ) -> Tensor:
        """(N, C, H, W) pictures, each in that one of `tries` changes which moves its answer furthest from its goal, (N, K) logarithms of probabilities.

        critic: another network, and then it is the change that both are surest to take for one other class.
        """
        own, tries = goal.argmax(1).tolist(), self.tries
        drawn: list[tuple[int, Drawn]] = []
        changed: list[Tensor] = []
        for kind, places in enumerate(torch.arange(len(x)).tensor_split(len(KINDS))):
            if not len(places):
                continue
            pictures = x[places].repeat_interleave(tries, 0)
            changes = KINDS[kind].draw(pictures, generator)
            for row, place in enumerate(places.tolist()):
                for tensor, kept in zip(changes, self.memory.get((kind, own[place]), ()), strict=False):
                    tensor[(row + 1) * tries - 1] = kept
            drawn.append((kind, changes))
            changed.append(KINDS[kind].make(pictures, *changes))
        each = torch.arange(len(x), device=x.device).repeat_interleave(tries)
        every = torch.cat(changed)
        answers = twin.logits(every, weights).log_softmax(1)
        if critic is None:
            distances = F.kl_div(answers, goal[each], log_target=True, reduction="none").sum(1)
        else:
            both = answers + critic.logits(every).log_softmax(1)
            distances = both.scatter(1, goal.argmax(1)[each, None], float("-inf")).amax(1)
        found = distances.view(-1, tries).max(1)
        self._remember(drawn, own, found.values.tolist(), found.indices.tolist())
        return every[found.indices + torch.arange(0, len(every), tries, device=x.device)]

    def _remember(self, drawn: list[tuple[int, Drawn]], own: list[int], distances: list[float], best: list[int]) -> None:
        """For each kind and class the change that moved a picture furthest this time."""
        place, furthest = 0, dict[tuple[int, int], float]()
        for kind, changes in drawn:
            for row in range(0, len(changes[0]), self.tries):
                key = kind, own[place]
                if distances[place] > furthest.get(key, float("-inf")):
                    furthest[key] = distances[place]
                    self.memory.pop(key, None)
                    self.memory[key] = tuple(tensor[row + best[place]].clone() for tensor in changes)
                place += 1
        while len(self.memory) > self.most:
            del self.memory[next(iter(self.memory))]
