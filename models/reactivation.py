"""How deep a repair goes: does a purified model take its backdoor up again?

Purified models can re-learn a backdoor from a handful of poisoned samples, and a trigger that is slightly altered may still work
(Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense", NeurIPS 2024; Zhu et al.,
"Breaking the False Sense of Security in Backdoor Defense through Re-Activation Attack", NeurIPS 2024).  Both are measured here
with the true trigger, so they belong to a benchmark and never to a purifier.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.images import LabelledImages
from pipeline.results import onward
from pipeline.twin import Role, TorchTwin

Pictures = NDArray[np.float32]
Trigger = Callable[[Pictures], Pictures]
LEARNT = frozenset({Role.CONVOLUTION, Role.LINEAR, Role.BIAS, Role.SCALE})


def altered(trigger: Trigger) -> dict[str, Trigger]:
    """The trigger fainter by a fifth, moved by a pixel, and with a little noise in it: what it adds to a picture, changed."""

    def changed(change: Callable[[Pictures], Pictures]) -> Trigger:
        return lambda pictures: np.clip(pictures + change(trigger(pictures) - pictures), 0, 1, dtype=np.float32)

    def noisy(added: Pictures) -> Pictures:
        noise = np.random.default_rng(0).normal(0, 0.1, added.shape[1:]).astype(np.float32)
        return added + noise * (np.abs(added) > 0)

    return {"fainter": changed(lambda added: 0.8 * added), "moved": changed(lambda added: np.roll(added, 1, axis=2)), "noisy": changed(noisy)}


def relearnt(
    twin: TorchTwin,
    clean: LabelledImages,
    trigger: Trigger,
    target: int | str,
    *,
    source: int | None = None,
    samples: int,
    steps: int = 50,
    rate: float = 0.01,
    seed: int = 0,
) -> dict[str, NDArray[np.float32]]:
    """New weights after a short fine-tuning on clean images of which `samples` carry the trigger and its label.

    target: a class, or so many classes on (`next`, `+2`).  source: the only class to be stamped; None: all others.  SGD with momentum 0.9, batches
    of 64 in which every poisoned sample comes up as often as a clean one does.
    """
    random = np.random.default_rng(seed)
    of_source = clean.labels == source if source is not None else np.ones(len(clean), bool)
    others = np.flatnonzero(of_source if onward(target) is not None else of_source & (clean.labels != target))
    chosen = random.choice(others, min(samples, len(others)), replace=False)
    pictures, labels = clean.pictures(), clean.labels.copy()
    classes = int(twin.logits(_torch(pictures[:1], twin)).shape[1])
    pictures[chosen] = trigger(pictures[chosen])
    steps_on = onward(target)
    labels[chosen] = int(target) if steps_on is None else (labels[chosen] + steps_on) % classes
    x, y = _torch(pictures, twin), torch.from_numpy(labels).to(twin.device)
    weights = {name: weight.value.clone().requires_grad_() for name, weight in twin.weights.items() if weight.role in LEARNT}
    optimizer = torch.optim.SGD(weights.values(), lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(0, len(y), (64,), generator=generator).to(twin.device)
        loss = F.cross_entropy(twin.logits(x[index], weights), y[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return {name: value.detach().cpu().numpy() for name, value in weights.items()}


def _torch(pictures: Pictures, twin: TorchTwin) -> Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).to(twin.device)
