"""Every search: patches, warps and additions to each class, patches some classes on, patches away from each class."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pipeline.search.additions import Additions, Faint
from pipeline.search.examples import Examples, classes_of
from pipeline.search.generators import Generators
from pipeline.search.patches import Departures, Patches, Shifts
from pipeline.search.targeted import Kind, Targeted
from pipeline.search.variety import partly
from pipeline.search.warps import Warps
from pipeline.twin import TorchTwin

Told = Callable[[str, int, int], None]
"""Told the kind that is searched for, how many were searched for before it, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How to search.

    steps: of each search.  pictures: for each change and step.  crop: pixels that they are shifted by at most.  varied: the share of them that is varied.
    kinds: what is searched for.
    most_classes: for more, the search goes on with those that a short one brings furthest, and as many others for comparison.  most_steps: the largest
    step on.  least: pictures of a class, without which nothing is said about leaving it.  seconds: no search begins a step later than this.
    """

    steps: int = 80
    pictures: int = 6
    crop: int = 3
    varied: float = 0.0
    kinds: tuple[Kind, ...] = ("patch", "warp", "shift", "departure")
    most_classes: int = 32
    most_steps: int = 9
    least: int = 5
    seconds: float = float("inf")


CONFIG = Config()
EVERY: tuple[Kind, ...] = (*CONFIG.kinds, "addition", "faint")
SHORT, CHUNK = 12, 128  # steps of the short search, and classes at once
REACHED = 0.5  # share of pictures that a patch of any size should send to most classes


@dataclass
class Searched:
    """What was found.  notes: what is to be said about it.  complete: that all of it came to an end, and means something."""

    searches: list[Targeted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = True


def search(
    twin: TorchTwin, examples: Examples, config: Config, generator: torch.Generator, *, lent: Examples | None = None, told: Told | None = None
) -> Searched:
    """The smallest changes of each kind for each class.  lent: pictures for what differs by class, where `examples` are too few."""
    started, own, picture = time.monotonic(), classes_of(twin, examples), examples.pictures[:1]
    with torch.no_grad():
        count = twin.logits(picture).shape[1]
    classes = torch.arange(count, device=twin.device)
    steps = torch.arange(1, min(count, config.most_steps + 1), device=twin.device)
    lent = lent or None  # none are as good as not lent
    shown = lent.labels if lent else own
    sources = classes[(shown[None] == classes[:, None]).sum(1) >= config.least]

    own_chance = torch.Generator().manual_seed(generator.initial_seed())  # of faint additions: what the others find does not hang on them, nor they on it

    def pictures(index: Tensor, chance: torch.Generator = generator) -> Tensor:
        return partly(examples.drawn(index, config.crop, chance), config.varied, chance)

    def some(sources: Tensor) -> Tensor:
        return sources[torch.randperm(len(sources), generator=generator)[: config.most_classes]].sort().values

    def late() -> bool:
        return time.monotonic() - started > config.seconds

    def contenders(kind: type[Targeted], chance: torch.Generator = generator) -> Tensor:
        if count <= config.most_classes:
            return classes
        short = [kind(some, picture, chance) for some in classes.split(CHUNK)]
        for one in short:
            one.descend(twin.logits, partial(pictures, chance=chance), own, chance, steps=SHORT, count=2, late=late)
        best = torch.cat([one.lost for one in short]).argsort()[: config.most_classes // 2]
        others = torch.randperm(count, generator=chance).to(twin.device)
        others = others[~torch.isin(others, best)][: config.most_classes - len(best)]
        return torch.cat([best, others]).sort().values

    every: dict[Kind, Callable[[], Targeted]] = {
        "patch": lambda: Patches(contenders(Patches), picture, generator),
        "warp": lambda: Warps(contenders(Warps), picture, generator),
        "shift": lambda: Shifts(steps, picture, generator, count=count, lent=lent),
        "departure": lambda: Departures(some(sources), picture, generator, lent=lent),
        "addition": lambda: Additions(contenders(Additions), picture, generator),
        "faint": lambda: Faint(contenders(Faint, own_chance), picture, own_chance),
        "generated": lambda: Generators(contenders(Patches), picture, generator),
    }
    makers = [make for kind, make in every.items() if kind in config.kinds and (kind != "departure" or len(sources) > 1)]
    found = Searched()
    if count > config.most_classes:
        found.notes.append(f"of {count} classes, {config.most_classes} were searched to the end: those that a short search brought furthest, and others")
    for done, make in enumerate(makers):
        if late():
            break
        one = make()
        if told is not None:
            told(one.kind, done, len(makers))
        chance = own_chance if isinstance(one, Faint) else generator
        one.search(twin.logits, partial(pictures, chance=chance), own, chance, steps=config.steps, count=config.pictures, late=late)
        if late():
            break  # sizes that are still falling say nothing
        sizes = one.sizes().detach()
        if one.broken or not float(sizes.min()) > 0:
            found.notes.append(f"the search for a {one.kind} came to nothing: the gradients of this network are not finite")
            continue  # as a file may be made to do, so that nothing is found
        found.searches.append(one)
        smallest = int(sizes.argmin())
        found.notes.append(
            f"smallest {one.name}: {float(sizes[smallest]):.1f} {one.unit}, {one.aim(smallest)}; the median over the smallest is {one.outlier:.1f}"
        )
    found.complete = len(found.searches) == len(makers)
    patches = next((one for one in found.searches if isinstance(one, Patches)), None)
    if patches is not None and float(patches.reached.median()) < REACHED:
        found.notes.append("the search for patches sent few pictures to most classes, which any network's gradients show a way to: they may be hidden")
        found.complete = False
    return found
