"""The short cuts that ours unlearns (minimax.py): the changes Δ that lead a network astray, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import StageFailed
from pipeline.purify.dose import Config, Dose
from pipeline.purify.forgetting import forgetful
from pipeline.search.examples import Examples, classes_of
from pipeline.search.generators import Generators
from pipeline.search.kinds import Told, search
from pipeline.search.patches import Parts, Shifts
from pipeline.search.pretenders import pretenders
from pipeline.search.targeted import Kind, Targeted
from pipeline.twin import TorchTwin

# What is sought in the forgetful network, and how long.
SOUGHT: tuple[tuple[Kind, float], ...] = (("patch", 1.0), ("warp", 1.5), ("warp", 1.5), ("faint", 1.0), ("departure", 2.0))
CERTAIN = 1.0  # w from which on something stands out for certain: it is twice as small as is usual
USUAL: dict[Kind, float] = {"patch": 1.75, "warp": 2.0, "faint": 2.0, "departure": 1.5}  # `outlier` of clean networks that have forgotten their pictures


@dataclass(frozen=True)
class ShortCuts:
    """What is unlearnt.

    searches: Δ, each with the changes that it found, and worth: their w.  critic: the forgetful network.  submitted: the searches in the submitted network, and
    notes: what is to be said of all.
    """

    searches: list[Targeted]
    worth: list[float]
    critic: TorchTwin
    submitted: list[Targeted]
    notes: list[str]

    @property
    def weight(self) -> float:
        """w: that of what stands out most."""
        return max(self.worth)

    @property
    def shares(self) -> list[float]:
        """What each of the searches has of the pictures; nothing where nothing stands out."""
        return [one / sum(self.worth) for one in self.worth] if self.weight else self.worth

    def suspects(self, pictures: Tensor, most: int = 10) -> tuple[Tensor, list[str]]:
        """(K, C, H, W) what the smallest changes of the submitted network add to pictures, and their names.

        The kind that stands out most comes first, and of a kind the smallest.
        """
        found, names = [], []
        for one in sorted(self.submitted, key=lambda one: -one.outlier):
            sizes = one.sizes().detach()
            order = sizes.argsort()[: most // len(self.submitted)]
            found.append(one.differences(pictures[:64])[order])
            names += [f"{one.aim(int(row))}: {one.name} of {float(sizes[row]):.1f} {one.unit}" for row in order]
        return torch.cat(found) if found else torch.zeros_like(pictures[:0]), names


def short_cuts(
    twin: TorchTwin, examples: Examples, classes: int, config: Config, dose: Dose, generator: torch.Generator, *, told: Callable[[float], None]
) -> ShortCuts:
    """Search the submitted network and one that has forgotten its pictures.

    classes: of the network.  told: about how much of all that is sought has been, 0..1.  Raises StageFailed when gradients are not finite.
    """
    kinds = len(config.search.kinds)
    most = kinds + len(SOUGHT) + 1

    def after(before: int) -> Told:
        return lambda kind, done, total: told((before + done) / most)

    lent = pretenders(twin, examples, torch.randperm(classes, generator=generator)[: config.search.most_classes], dose.varied, generator) if dose.few else None
    found = search(twin, examples, config.search, generator, lent=lent, told=after(0))
    critic = forgetful(twin, examples, dose.varied, generator)
    kept = clearest(found.searches, shortest(critic, examples, config, generator, lent, told=lambda done: told((kinds + done) / most)), dose)
    if not kept:
        raise StageFailed("nothing can be searched for in this network: its gradients are not finite")
    searches = [in_parts(one, twin, examples, config, generator) if how >= CERTAIN else one for one, how in kept]
    worth = [min(dose.limit(one.kind), how) for one, how in kept]
    certain = max(worth)
    worth = worth if dose.few else compared(worth, [how for _, how in kept])
    if (left := dose.dynamic * (1 - certain**2)) > 0:  # nothing stands out for certain: if there is a trigger, it may be another one for each picture
        thorough = replace(config.search, kinds=("generated",), pictures=config.seen, varied=dose.varied if dose.few else 0.0)
        generated = search(critic, examples, thorough, generator, told=after(most - 1)).searches
        searches, worth = searches + generated, worth + [left for _ in generated]
    notes = found.notes + [forgotten(one) for one, its in zip(searches, worth, strict=True) if one not in found.searches and its]
    return ShortCuts(searches, worth, critic, found.searches, notes)


def in_parts(one: Targeted, twin: TorchTwin, examples: Examples, config: Config, generator: torch.Generator) -> Targeted:
    """A patch that sends every class on, sought again in parts, or as it was where that comes to nothing; what else there is as it is."""
    if not isinstance(one, Shifts):
        return one
    parts = Parts(one, examples.pictures[:1], generator, patches=config.parts)

    def pictures(index: Tensor) -> Tensor:
        return examples.drawn(index, config.search.crop, generator)

    parts.search(twin.logits, pictures, classes_of(twin, examples), generator, steps=config.search.steps, count=config.search.pictures)
    return one if parts.broken else parts


def compared(worth: list[float], unlimited: list[float]) -> list[float]:
    """w, each times the root of what it would be without a limit, over the largest of these: beside a true short cut others stand out by chance.

    Not with few images, of which something stands out by chance more than what is true.
    """
    return [its * (how / max(unlimited)) ** 0.5 if its else 0.0 for its, how in zip(worth, unlimited, strict=True)]


def shortest(
    critic: TorchTwin, examples: Examples, config: Config, generator: torch.Generator, lent: Examples | None, *, told: Callable[[int], None]
) -> list[Targeted]:
    """The smallest changes of the forgetful network: little else is left in it than short cuts, and some stand out more.  told: how many were sought."""
    found: list[Targeted] = []
    for done, (kind, steps) in enumerate(SOUGHT):
        told(done)
        if kind != "departure" or lent is not None:
            sought = replace(config.search, kinds=(kind,), steps=round(steps * config.search.steps))
            found += search(critic, examples, sought, generator, lent=lent).searches
    for one in found:
        one.usual = USUAL[one.kind]
    return found


def clearest(submitted: list[Targeted], forgetful: list[Targeted], dose: Dose) -> list[tuple[Targeted, float]]:
    """Of each kind the search that counts most, or the first of two that are alike, and w without a limit: how clearly something stands out, if borne out."""
    best: dict[Kind, tuple[Targeted, float]] = {}
    for searches, others in ((submitted, forgetful), (forgetful, submitted)):
        for one in searches:
            how = clear(one) * max((borne_out(one, other) for other in others if other.kind == one.kind), default=1.0)
            limit = dose.limit(one.kind)
            if one.kind not in best or min(how, limit) > min(best[one.kind][1], limit):
                best[one.kind] = one, how
    return list(best.values())


def clear(one: Targeted) -> float:
    """How clearly something stands out in a search: 0 where no class does, 1 where one needs half of what the others do."""
    return max(0.0, one.outlier / one.usual - 1) ** 2


def borne_out(one: Targeted, other: Targeted) -> float:
    """Whether what stands out in a search does so in that of another network: 1 where it needs half of what others do there, or less, 0 where it needs as much.

    A short cut is in both networks; what stands out by chance is another class in each.
    """
    aim, sizes = one.aim(int(one.sizes().argmin())), other.sizes().detach()
    same = [row for row in range(len(sizes)) if other.aim(row) == aim]
    return min(1.0, max(0.0, float(sizes.quantile(0.5) / sizes[same[0]]) - 1)) if same else 0.0


def forgotten(one: Targeted) -> str:
    """What is to be said of a search beside those of the submitted network."""
    if isinstance(one, Generators):
        return "no change stands out for certain, so small networks that make a trigger for each picture were unlearnt too"
    smallest = one.aim(int(one.sizes().argmin()))
    if isinstance(one, Parts):
        return f"the {one.name} {smallest} was searched for in {len(one.classes)} parts, of {float(one.sizes().detach().min()):.1f} {one.unit} and more"
    return f"in a copy that has forgotten its pictures, the {one.name} {smallest} stands out: the median is {one.outlier:.1f} times as large"
