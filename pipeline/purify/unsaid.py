"""Classes that a network never answers, though pictures of them are at hand: they are taught when it has been repaired.

A class can be lost in a vendor's training.  Its pictures are all taken for their neighbours, and if one of these is the target of a trigger, they count as
pictures that the trigger leads there; nor is what the submitted network says of them worth holding on to.  So of the layer that makes the scores the part of
such a class, and nothing else, is learnt from the labels of all pictures.  Not before the repair: what the trigger does to the last hidden layer would be taken
for that class.  Steps and rate were chosen on five clean networks that were taught without a class, by their accuracy on pictures of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from pipeline.purify.network import scores
from pipeline.purify.tuning import Weights, typical
from pipeline.search.examples import Examples, classes_of
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """least: pictures of a class that none is taken for; of fewer it may be chance.  steps: of Adam, each a share `rate` of a weight's typical size.
    batch: pictures a step, shifted by up to `crop` pixels.
    """

    least: int = 10
    steps: int = 300
    rate: float = 0.03
    batch: int = 64
    crop: int = 3


CONFIG = Config()


def taught(twin: TorchTwin, weights: Weights, examples: Examples, generator: torch.Generator) -> tuple[Weights, list[str]]:
    """Weights by which the network answers all classes, and what is to be said of it.

    twin: as submitted, weights: repaired.  The same weights, and nothing drawn by chance, where it answered all as submitted, or no layer is known to make its
    scores.
    """
    config, layer = CONFIG, scores(twin)
    with torch.no_grad():
        count = twin.logits(examples.pictures[:1]).shape[1]
    if layer is None or layer.channels != count:
        return weights, []
    there = examples.labels.bincount(minlength=count)
    unsaid = (classes_of(twin, examples).bincount(minlength=count) == 0) & (there >= config.least)
    if not unsaid.any():
        return weights, []
    masks = layer.mask(twin, unsaid.nonzero()[:, 0])
    start = {name: weights.get(name, twin.weights[name].value) for name in masks}
    moved = {name: torch.zeros_like(value).requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam([{"params": [moved[name]], "lr": config.rate * typical(value)} for name, value in start.items()])

    def now() -> Weights:
        return weights | {name: value + (1 - masks[name]) * moved[name] for name, value in start.items()}

    for _ in range(config.steps):
        index = torch.randint(0, len(examples), (config.batch,), generator=generator)
        loss = F.cross_entropy(twin.logits(examples.drawn(index, config.crop, generator), now()), examples.at(index).labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in now().items()}, [
        f"class {label} was answered for none of {len(examples)} calibration pictures, of which {int(there[label])} are of it: it was taught from their labels"
        for label in unsaid.nonzero()[:, 0].tolist()
    ]
