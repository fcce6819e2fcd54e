"""What a network still knows once it has forgotten its clean pictures: its short cuts.

    small steps of   min over θ of  E_x KL(uniform, f(x; θ))   from the submitted weights, until that is small enough

The steps undo what the network says of clean pictures, as they are and varied, and hardly touch what clean pictures never use.  So its
answers to clean pictures lose their certainty first, and triggers work all the more surely.  It begins as RNP (rnp.py) and TSBD (tsbd.py)
do, who unlearn clean pictures by ascent on their labels; but it goes to indifference, which is a minimum, and stops on the way there: by
ascent a network ends in one class for everything, a trigger included, and near the minimum the short cuts are gone too.  How many steps lead there
depends on the network: a ResNet-18 is where a small VGG is after 56 when it has made 17.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipeline.purify.tuning import Weights, typical, variables
from pipeline.search.examples import Examples
from pipeline.search.variety import varied
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """indifferent: the divergence at which enough is forgotten, of a batch in the mean and in units of log K for K classes: some 1.5 before, 0 where the
    network says nothing of any picture.  steps: of Adam, at most, each a share `rate` of a weight's typical size.  batch: pictures a step; crop: pixels that
    they are shifted by at most.
    """

    indifferent: float = 0.25
    steps: int = 64
    rate: float = 0.00125
    batch: int = 64
    crop: int = 3


CONFIG = Config()


def forgetful(twin: TorchTwin, examples: Examples, share: float, generator: torch.Generator) -> TorchTwin:
    """The same network, on the way to saying nothing of clean pictures.  share: of a batch that is varied.  Raises SpecRefused when nothing can be tuned."""
    return twin.having(forget(twin, examples, share, CONFIG, generator))


def forget(twin: TorchTwin, examples: Examples, share: float, config: Config, generator: torch.Generator) -> Weights:
    """Its weights, by name."""
    weights = {name: value.detach().clone().requires_grad_() for name, value in variables(twin).items()}
    optimizer = torch.optim.Adam([{"params": [weight], "lr": config.rate * typical(weight)} for weight in weights.values()])
    plain = config.batch - round(config.batch * share)
    for _ in range(config.steps):
        alone, other = examples.sample(config.batch, config.crop, generator).split([plain, config.batch - plain])
        answers = twin.logits(torch.cat([alone, varied(other, generator)]), weights).log_softmax(1)
        most = math.log(answers.shape[1])
        certain = -answers.mean() - most
        if certain.item() <= config.indifferent * most:
            break
        optimizer.zero_grad(set_to_none=True)
        certain.backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}
