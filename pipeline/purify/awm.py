"""Adversarial Weight Masking (Chai & Chen, NeurIPS 2022, arXiv 2207.04497).

A mask m in [0, 1] for each weight, soft and never thresholded, such that the network m * θ keeps what it does on clean pictures
and resists the worst perturbation Δ that can be found for it (equation 4):

    min over m of  E_(x,y) [ α L(f(x; m θ), y)  +  β max_Δ L(f(x + Δ; m θ), y) ]  +  γ ‖m‖₁

Each epoch first seeks Δ for the network as it is, then takes steps on m, clipping it to [0, 1].  Two presets:

`paper`    One universal, untargeted Δ in an L1 ball, found by plain ascent; labels as the goal; Adam on m; convolution kernels
           only.  The numbers are those of the released settings.  Two things there are decided here on purpose: the inner loss
           uses the label y as equation 4 does (the released code uses the network's own answer), and Δ lives in pixel space
           with the model's normalisation inside the differentiable path.  With Adam, γ = 1e-8 is as large as Adam's ε: a weight
           that clean pictures never use has no other gradient, and its mask falls to 0 in some 200 steps.  That is part of what
           the method does, so it is kept.

`default`  Ours, see pipeline/purify/minimax.py: the same minimax, with other choices for each of its parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ImagesRefused, SpecRefused
from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.minimax import minimax
from pipeline.purify.universal import UniversalPerturbation
from pipeline.search.augment import augment
from pipeline.twin import Role, TorchTwin

Masks = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """The released settings.  epochs E; passes T over the images for Δ and again for m; eta_delta η₁; eta_mask η₂; tau τ in L1."""

    epochs: int = 20
    passes: int = 5
    batch: int = 128
    eta_delta: float = 10.0
    eta_mask: float = 0.01
    alpha: float = 0.9
    gamma: float = 1e-8
    tau: float = 1000.0
    copies: int = 0  # augmented copies of each image, beside the image itself
    roles: frozenset[Role] = frozenset({Role.CONVOLUTION})


ONE_SHOT = PaperConfig(batch=32, tau=100.0, alpha=0.99, copies=9)


def awm(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Purify; `preset` is `default` or `paper`.  Raises ImagesRefused on an empty set, SpecRefused when there is nothing to change."""
    if preset != "paper":
        return minimax(twin, calibration, seed=seed, report=report)
    if len(calibration) == 0:
        raise ImagesRefused("AWM needs at least one calibration image, and there are none")
    pictures = torch.from_numpy(calibration.pictures().transpose(0, 3, 1, 2).copy()).to(twin.device)
    labels = torch.from_numpy(calibration.labels.copy()).to(twin.device)
    with torch.no_grad():
        classes = twin.logits(pictures[:1]).shape[1]
    return paper(twin, pictures, labels, config=ONE_SHOT if len(labels) <= classes else PaperConfig(), seed=seed, report=report)


def paper(twin: TorchTwin, pictures: Tensor, labels: Tensor, *, config: PaperConfig, seed: int, report: Report) -> Purified:
    """Algorithm 1 of the paper."""
    count = twin.logits(pictures[:1]).shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= count:
        raise ImagesRefused(f"calibration labels run from {int(labels.min())} to {int(labels.max())}, and the model has {count} classes")
    generator = torch.Generator().manual_seed(seed)
    if config.copies:
        changed = [augment(pictures, crop=4, flip=True, generator=generator) for _ in range(config.copies)]
        pictures, labels = torch.cat([pictures, *changed]), labels.repeat(1 + config.copies)
    masks = _ones(twin, config.roles)
    optimizer = torch.optim.Adam(masks.values(), lr=config.eta_mask)
    adversary = UniversalPerturbation(torch.zeros_like(pictures[:1]), config.tau, config.eta_delta)
    history = History(report, config.epochs)

    def batches() -> list[tuple[Tensor, Tensor]]:
        order = [torch.randperm(len(labels), generator=generator) for _ in range(config.passes)]
        chunks = [chunk.to(labels.device) for one in order for chunk in one.split(config.batch)]
        return [(pictures[chunk], labels[chunk]) for chunk in chunks]

    for _ in range(config.epochs):
        fixed = _masked(twin, masks, detach=True)
        adversary.search(lambda x, fixed=fixed: twin.logits(x, fixed), batches())  # type: ignore[misc]
        for x, y in batches():
            clean, stamped = twin.logits(torch.cat([x, adversary.stamp(x)]), _masked(twin, masks)).split(len(x))
            loss = config.alpha * F.cross_entropy(clean, y) + (1 - config.alpha) * F.cross_entropy(stamped, y)
            loss = loss + config.gamma * sum(mask.abs().sum() for mask in masks.values())
            _step(optimizer, loss, masks)
        kept = sum(float(mask.detach().sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        history.add(loss=loss.item(), perturbation_l1=adversary.norm(), mask_mean=kept)
    found = adversary.delta.permute(0, 2, 3, 1).cpu().numpy()
    return Purified(arrays(_masked(twin, masks, detach=True)), arrays(masks), found, ["universal, untargeted"], history.steps, [])


def _ones(twin: TorchTwin, roles: frozenset[Role]) -> Masks:
    masks = {name: torch.ones_like(weight.value, requires_grad=True) for name, weight in twin.weights.items() if weight.role in roles}
    if not masks:
        raise SpecRefused(f"there is nothing to mask: the model has no weight of a {' or '.join(sorted(roles))} that can be bound")
    return masks


def _masked(twin: TorchTwin, masks: Masks, *, detach: bool = False) -> dict[str, Tensor]:
    """m * θ, by initializer."""
    return {name: (mask.detach() if detach else mask) * twin.weights[name].value for name, mask in masks.items()}


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, masks: Masks) -> None:
    """One step on m, and back into [0, 1]."""
    optimizer.zero_grad(set_to_none=True)
    for mask, gradient in zip(masks.values(), torch.autograd.grad(loss, list(masks.values())), strict=True):
        mask.grad = gradient
    optimizer.step()
    with torch.no_grad():
        for mask in masks.values():
            mask.clamp_(0, 1)
