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

`default`  Ours.  Δ is one small patch for each class the network could be sent to, all sought at once, and drawn by how
           suspiciously small they are: a backdoor is a targeted short cut, and an untargeted Δ also punishes what is no
           backdoor.  The goal on clean and stamped pictures alike is the answer of the submitted network on the clean picture
           (distillation, so that a few pictures and their random shifts and mirrors teach more than their labels, and no shift
           or mirror needs to keep its label).  Each step on m has unit length times η₂ before momentum: it moves the weights
           that matter in proportion, where Adam moves all of them alike, and it does not depend on the network's scale.  Few
           images ask for shorter steps, so η₂ = min(2, sqrt(n / 50)).  Linear weights are masked too.  Epochs go on until no
           patch stands out any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ImagesRefused, SpecRefused
from pipeline.images import CalibrationSet
from pipeline.purify import Purified, Report, arrays
from pipeline.purify.augment import augment
from pipeline.purify.search import TargetedPatches, UniversalPerturbation
from pipeline.results import Step
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


@dataclass(frozen=True, kw_only=True)
class DefaultConfig:
    """Ours.  epochs: at most; steps: of m an epoch; kappa κ: weight of the clean loss beside the stamped one."""

    epochs: int = 3
    steps: int = 80
    batch: int = 64
    eta_most: float = 2.0  # η₂ with many images
    eta_images: float = 50.0  # as many images give η₂ = 1
    momentum: float = 0.9
    kappa: float = 3.0
    search_steps: int = 80
    search_pictures: int = 6
    search_rate: float = 0.15
    most_classes: int = 64
    outlier: float = 0.5  # a patch below this share of the median size stands out
    crop: int = 3
    roles: frozenset[Role] = frozenset({Role.CONVOLUTION, Role.LINEAR})


def awm(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Mask the twin's weights; `preset` is `default` or `paper`.  Raises ImagesRefused on an empty set, SpecRefused otherwise."""
    if len(calibration) == 0:
        raise ImagesRefused("AWM needs at least one calibration image, and there are none")
    pictures = torch.from_numpy(calibration.pictures().transpose(0, 3, 1, 2).copy()).to(twin.device)
    labels = torch.from_numpy(calibration.labels.copy()).to(twin.device)
    if preset == "paper":
        classes = len(np.unique(calibration.labels))
        return paper(twin, pictures, labels, config=ONE_SHOT if len(labels) <= classes else PaperConfig(), seed=seed, report=report)
    return default(twin, pictures, config=DefaultConfig(), seed=seed, report=report)


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
    history: list[Step] = []

    def batches() -> list[tuple[Tensor, Tensor]]:
        order = [torch.randperm(len(labels), generator=generator) for _ in range(config.passes)]
        chunks = [chunk.to(labels.device) for one in order for chunk in one.split(config.batch)]
        return [(pictures[chunk], labels[chunk]) for chunk in chunks]

    for epoch in range(config.epochs):
        fixed = _masked(twin, masks, detach=True)
        adversary.search(lambda x, fixed=fixed: twin.logits(x, fixed), batches())  # type: ignore[misc]
        for x, y in batches():
            clean, stamped = twin.logits(torch.cat([x, adversary.stamp(x)]), _masked(twin, masks)).split(len(x))
            loss = config.alpha * F.cross_entropy(clean, y) + (1 - config.alpha) * F.cross_entropy(stamped, y)
            loss = loss + config.gamma * sum(mask.abs().sum() for mask in masks.values())
            _step(optimizer, loss, masks)
        _record(history, report, config.epochs, masks, loss=loss.item(), perturbation_l1=adversary.norm(), epoch=epoch + 1)
    found = adversary.delta.permute(0, 2, 3, 1).cpu().numpy()
    return _purified(twin, masks, found, ["universal, untargeted"], history, [])


def default(twin: TorchTwin, pictures: Tensor, *, config: DefaultConfig, seed: int, report: Report) -> Purified:
    """Ours: targeted patches, distillation, SGD on the masks, stopped when no patch stands out."""
    generator = torch.Generator().manual_seed(seed)
    device = pictures.device
    masks = _ones(twin, config.roles)
    count = twin.logits(pictures[:1]).shape[1]
    classes = torch.randperm(count, generator=generator)[: config.most_classes].sort().values.to(device)
    notes = [] if len(classes) == count else [f"patches were sought for {len(classes)} of {count} classes, chosen at random"]
    history: list[Step] = []
    searches: list[TargetedPatches] = []

    def sample(size: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(0, len(pictures), (size,), generator=generator).to(device)
        return augment(pictures[index], crop=config.crop, flip=True, generator=generator), index

    for epoch in range(config.epochs):
        fixed = _masked(twin, masks, detach=True)
        found = TargetedPatches.search(
            lambda x, fixed=fixed: twin.logits(x, fixed),  # type: ignore[misc]
            sample,
            classes,
            steps=config.search_steps,
            pictures=config.search_pictures,
            rate=config.search_rate,
            generator=generator,
        )
        if epoch and found.outlier >= config.outlier:
            notes.append(f"stopped after {epoch} epoch(s): no patch stands out any more (smallest / median size {found.outlier:.2f})")
            break
        searches.append(found)
        eta = min(config.eta_most, math.sqrt(len(pictures) / config.eta_images))
        optimizer = torch.optim.SGD(masks.values(), lr=eta, momentum=config.momentum)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / config.steps))
        for step in range(config.steps):
            x, _ = sample(config.batch)
            with torch.no_grad():
                goal = twin.logits(x).log_softmax(1)
            patches = searches[step % len(searches)]
            which = torch.multinomial(patches.probability.cpu(), len(x), replacement=True, generator=generator).to(device)
            answers = twin.logits(torch.cat([x, patches.stamp(x, which)]), _masked(twin, masks)).log_softmax(1)
            clean, stamped = (F.kl_div(answer, goal, log_target=True, reduction="none").sum(1) for answer in answers.split(len(x)))
            others = goal.argmax(1) != patches.classes[which]  # a picture of the target class shows nothing
            loss = config.kappa * clean.mean() + (stamped * others).sum() / others.sum().clamp(min=1)
            _step(optimizer, loss, masks, unit=True)
            schedule.step()
            done = epoch * config.steps + step + 1
            figures = {"loss": loss.item(), "loss_clean": clean.mean().item(), "perturbation_l1": float(patches.size.min())}
            _record(history, report, config.epochs * config.steps, masks, **figures, epoch=epoch + 1, step=done)
    first = searches[0]
    order = first.size.argsort()[:10]
    hypotheses = [f"class {int(first.classes[row])}: {float(first.size[row]):.1f} px" for row in order]
    return _purified(twin, masks, first.differences(pictures)[order].permute(0, 2, 3, 1).cpu().numpy(), hypotheses, history, notes)


def _ones(twin: TorchTwin, roles: frozenset[Role]) -> Masks:
    masks = {name: torch.ones_like(weight.value, requires_grad=True) for name, weight in twin.weights.items() if weight.role in roles}
    if not masks:
        raise SpecRefused(f"there is nothing to mask: the model has no weight of a {' or '.join(sorted(roles))} that can be bound")
    return masks


def _masked(twin: TorchTwin, masks: Masks, *, detach: bool = False) -> dict[str, Tensor]:
    """m * θ, by initializer."""
    return {name: (mask.detach() if detach else mask) * twin.weights[name].value for name, mask in masks.items()}


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, masks: Masks, *, unit: bool = False) -> None:
    """One step on m, and back into [0, 1]; `unit` gives the gradient of all masks together the length 1."""
    optimizer.zero_grad(set_to_none=True)
    gradients = torch.autograd.grad(loss, list(masks.values()))
    length = torch.sqrt(sum((gradient.square().sum() for gradient in gradients), start=loss.new_zeros(()))) if unit else loss.new_ones(())
    for mask, gradient in zip(masks.values(), gradients, strict=True):
        mask.grad = gradient / length.clamp(min=1e-12)
    optimizer.step()
    with torch.no_grad():
        for mask in masks.values():
            mask.clamp_(0, 1)


def _record(history: list[Step], report: Report, total: int, masks: Masks, *, step: int | None = None, **figures: float) -> None:
    step = len(history) + 1 if step is None else step
    figures["mask_mean"] = sum(float(mask.detach().sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    history.append(Step(step=step, metrics=figures))
    report(step, total, figures)


def _purified(twin: TorchTwin, masks: Masks, found: object, hypotheses: list[str], history: list[Step], notes: list[str]) -> Purified:
    weights = arrays(_masked(twin, masks, detach=True))
    return Purified(weights, arrays(masks), found, hypotheses, history, notes)  # type: ignore[arg-type]
