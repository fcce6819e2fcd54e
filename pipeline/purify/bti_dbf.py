"""BTI-DBF, unlearning (Xu, Huang, Li, Qin & Ren, *Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign
Features*, ICLR 2024, no arXiv number).

Other inversions look for the backdoor's features; this one finds the benign ones first, for all classes at once.  Let h be the
features that enter the last layer g.  In each round:

1. A mask m in [0, 1] on features, such that those it lets through suffice and the rest does not:
       min over m of  L(g(m h(x)), y) - L(g((1 - m) h(x)), y)
2. A generator G that moves the other features as far as it can, while pictures and benign features stay close:
       max over G of  mean ((1 - m)(h(G(x)) - h(x)))² - a mean (m (h(G(x)) - h(x)))²   while  mean (G(x) - x)² <= τ
   and from the second round on, G also aims at the class it sent most pictures to in the first.
3. Unlearning: some pictures of each batch go through G, and keep their label and their features:
       min over θ of  L(f(x'; θ), y) + mean (h(x') - h(x))²

The released code has a U-Net for G, trained beforehand to copy pictures.  Here G adds to a picture what four convolutions make of
it, which is little at the start.  Its τ is of normalised pictures; here it is of pictures in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.errors import SpecRefused
from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.network import KERNELS
from pipeline.purify.tuning import Weights, variables
from pipeline.search.examples import Examples, accuracy
from pipeline.twin import TorchTwin


@dataclass(frozen=True, kw_only=True)
class Config:
    """*_steps: of each part of a round; rate_*: of Adam; share: of a batch that goes through G; bound τ; price a; width: of G; crop: pixels."""

    rounds: int = 5
    mask_steps: int = 400
    generator_steps: int = 600
    unlearning_steps: int = 600
    batch: int = 128
    rate_mask: float = 0.01
    rate_generator: float = 1e-3
    rate: float = 1e-4
    share: float = 0.1
    bound: float = 0.02
    price: float = 0.01
    width: int = 32
    crop: int = 4


PAPER = Config()
DEFAULT = Config(rounds=3, mask_steps=100, generator_steps=150, unlearning_steps=100, batch=64, rate=3e-4, share=0.5)  # within minutes on a CPU


def bti_dbf(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Some rounds of the three steps.  Raises ImagesRefused, SpecRefused when there is nothing to tune."""
    config = PAPER if preset == "paper" else DEFAULT
    examples = Examples.of(twin, calibration)
    weights = {name: value.clone().requires_grad_() for name, value in variables(twin).items()}
    network = Features(twin)
    random = torch.Generator().manual_seed(seed)
    history = History(report, 3 * config.rounds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(examples.pictures.shape[1], config.width).to(twin.device)
    of_generator = torch.optim.Adam(generator.parameters(), lr=config.rate_generator)
    of_weights = torch.optim.Adam(weights.values(), lr=config.rate)
    target: Tensor | None = None

    def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(chain.from_iterable(examples.batches(config.batch, crop=config.crop, generator=random) for _ in count()), steps)

    for _ in range(config.rounds):
        now = {name: weight.detach().clone() for name, weight in weights.items()}
        raw = torch.randn(network(examples.pictures[:1], now)[1].shape[1:], generator=random).to(twin.device).requires_grad_()
        of_mask = torch.optim.Adam([raw], lr=config.rate_mask)
        for x, y in batches(config.mask_steps):
            loss = decoupling(network, now, raw.sigmoid(), x, y)
            step(of_mask, loss)
        mask = raw.detach().sigmoid()
        history.add(loss_mask=loss.item(), mask_mean=float(mask.mean()))

        for x, _ in batches(config.generator_steps):
            loss, size = inversion(network, now, mask, x, generator(x), target, bound=config.bound, price=config.price)
            step(of_generator, loss)
        history.add(loss_generator=loss.item(), change=size)
        if target is None:
            with torch.no_grad():
                target = network.twin.logits(generator(examples.pictures), now).argmax(1).mode().values

        for x, y in batches(config.unlearning_steps):
            some = torch.randperm(len(x), generator=random)[: int(config.share * len(x)) + 1].to(x.device)
            with torch.no_grad():
                stamped = x.index_copy(0, some, generator(x[some]))
            loss = unlearning(network, weights, x, stamped, y)
            step(of_weights, loss)
        history.add(loss=loss.item(), accuracy=accuracy(twin, examples.pictures, examples.labels, weights))

    with torch.no_grad():
        found = (generator(examples.pictures) - examples.pictures).mean(0, keepdim=True).permute(0, 2, 3, 1).cpu().numpy()
    assert target is not None
    return Purified(arrays(weights), {}, found, [f"class {int(target)}: mean over the pictures"], history.steps, [])


def decoupling(network: Features, weights: Weights, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The loss of step 1."""
    benign, rest = (F.cross_entropy(network(x, weights, part)[0], y) for part in (mask, 1 - mask))
    return benign - rest


def inversion(
    network: Features, weights: Weights, mask: Tensor, x: Tensor, stamped: Tensor, target: Tensor | None, *, bound: float, price: float
) -> tuple[Tensor, float]:
    """The loss of step 2, and the mean square of what G changed: nothing else counts while that is over the bound."""
    with torch.no_grad():
        features = network(x, weights)[1]
    logits, moved = network(stamped, weights)
    size = (stamped - x).square().mean()
    loss = size if size > bound else price * (mask * (moved - features)).square().mean() - ((1 - mask) * (moved - features)).square().mean()
    if target is not None:
        loss = loss + F.cross_entropy(logits, target.expand(len(x)))
    return loss, size.item()


def unlearning(network: Features, weights: Weights, x: Tensor, stamped: Tensor, y: Tensor) -> Tensor:
    """The loss of step 3."""
    features = network(x, weights)[1]
    logits, moved = network(stamped, weights)
    return F.cross_entropy(logits, y) + F.mse_loss(moved, features)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Generator(nn.Module):
    """G: (N, C, H, W) pictures in 0..1 -> the same with what four convolutions make of them added, two of them at half size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU())
        self.last = nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The pictures with a trigger, in 0..1."""
        change: Tensor = self.last(F.interpolate(self.middle(self.down(x)), x.shape[2:])).tanh()
        return (x + change).clamp(0, 1)


class Features:
    """A network as h, the features that enter its last layer, and g, that layer."""

    def __init__(self, twin: TorchTwin) -> None:
        assert isinstance(twin.module, fx.GraphModule)
        parts = [twin.module.get_submodule(str(node.target)) for node in twin.module.graph.nodes if node.op == "call_module"]
        kernels = [part for part in parts if getattr(part, "name", None) in KERNELS]
        if not kernels:
            raise SpecRefused("there is nothing to decouple: the model has no layer that mixes features")
        self.twin, self.last = twin, kernels[-1]

    def __call__(self, pictures: Tensor, weights: Weights, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and h (N, ...) of (N, C, H, W) pictures in 0..1; a mask in the shape of one h is multiplied onto each."""
        seen: list[Tensor] = []

        def look(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(inputs[0])
            return inputs if mask is None else (inputs[0] * mask, *inputs[1:])

        hook = self.last.register_forward_pre_hook(look)
        try:
            logits = self.twin.logits(pictures, weights)
        finally:
            hook.remove()
        return logits, torch.cat(seen)[: len(pictures)]
