"""Several methods, and of what they make the one that does best on calibration images: `--method auto`.

Three calibration images in four are what each candidate works with; the others, kept aside, judge it as a hold-out set would, but without
a trigger.  In its place stand changes that triggers are made of:

recovered   the smallest changes of the submitted network, of every kind that `awm` searches for, drawn as it does, by how small they are;
random      of eight random changes of a picture the one that moves the answer most, see corruptions.py.

Fooled is a picture that goes where the first aims, or is no longer what the submitted network said by the second.  What is estimated
is the rating that papers give, DER = (max(0, Δfooled) - max(0, Δaccuracy) + 1) / 2, with the mean of the two for ASR.  An estimate: a
method can look good here and fail on the trigger, and `awm` has learnt against changes of these kinds, though not from these pictures.

With fewer than `few` images a class none can be kept aside that says anything, and `awm` it is.  `clp`, which needs no images, is the
fallback where there are none, or where no candidate can work with the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import AuditError
from pipeline.images import CalibrationSet, LabelledImages, split
from pipeline.purify import History, Purified, Purifier, Report
from pipeline.purify.awm import awm
from pipeline.purify.clp import clp
from pipeline.purify.dose import CONFIG
from pipeline.purify.fine_pruning import fine_pruning
from pipeline.purify.sau import sau
from pipeline.purify.trials import Trials
from pipeline.search.examples import Examples, accuracy
from pipeline.search.kinds import CONFIG as SEARCH
from pipeline.search.kinds import search
from pipeline.search.targeted import Targeted
from pipeline.twin import TorchTwin

CANDIDATES = {"awm": awm, "sau": sau, "fine-pruning": fine_pruning}


@dataclass(frozen=True, kw_only=True)
class Config:
    """few: images a class, from which on some can be kept aside.  aside: their share."""

    few: int = 8
    aside: float = 0.25


CONFIG_AUTO = Config()


@dataclass(frozen=True)
class Judged:
    """Shares of the pictures kept aside, in 0..1: right, sent to a class by a recovered change, moved by a random one."""

    accuracy: float
    recovered: float
    random: float

    @property
    def fooled(self) -> float:
        """The mean of the two kinds."""
        return (self.recovered + self.random) / 2

    def __str__(self) -> str:
        """For a note."""
        return f"accuracy {100 * self.accuracy:.1f} %, recovered changes {100 * self.recovered:.1f} %, random changes {100 * self.random:.1f} %"


def auto(twin: TorchTwin, calibration: CalibrationSet, *, preset: str, seed: int, report: Report) -> Purified:
    """Purify by each candidate, and answer the best; the history is of all of them, one after another."""
    history = History(report, 1)

    def run(method: Purifier, images: CalibrationSet) -> Purified:
        def told(step: int, total: int, figures: dict[str, float]) -> None:
            history.most = len(history.steps) + 1 + total - step
            if step:
                history.add(**figures)
            else:
                report(len(history.steps), history.most, figures)

        return method(twin, images, preset=preset, seed=seed, report=told)

    chosen, best, notes = _choose(twin, calibration, seed, run)
    return replace(best, history=history.steps, notes=[*notes, f"{chosen} was chosen", *best.notes])


def _choose(twin: TorchTwin, calibration: CalibrationSet, seed: int, run: Callable[[Purifier, CalibrationSet], Purified]) -> tuple[str, Purified, list[str]]:
    """The name of the best, what it answers, and why it is the best."""
    if len(calibration) == 0:
        return "clp", run(clp, calibration), ["there are no images, and clp needs none"]
    with torch.no_grad():
        classes = twin.logits(Examples.of(twin, calibration).pictures[:1]).shape[1]
    if len(calibration) < CONFIG_AUTO.few * classes:
        why = f"{len(calibration)} images of {classes} classes are too few to keep some aside and compare methods"
        return "awm", run(awm, calibration), [why]
    used, kept = split(LabelledImages(calibration.images, calibration.labels), calibration=round(len(calibration) * (1 - CONFIG_AUTO.aside)), seed=seed)
    jury = Jury(twin, Examples.of(twin, CalibrationSet(kept.images, kept.labels)), seed)
    before, found = jury(None), {}
    notes = [f"submitted: {before}, on {len(kept)} calibration images kept aside"]
    if not jury.searches:
        notes.append("no change could be searched for: the gradients of this network are not finite")
    for name, method in CANDIDATES.items():
        try:
            purified = run(method, used)
        except AuditError as error:
            notes.append(f"{name}: {error}")
            continue
        after = jury({weight: torch.from_numpy(value).to(twin.device) for weight, value in purified.weights.items()})
        estimate = (max(0.0, before.fooled - after.fooled) - max(0.0, before.accuracy - after.accuracy) + 1) / 2
        notes.append(f"{name}: {after}; estimated DER {estimate:.3f}")
        found[name] = (estimate, purified)
    if not found:
        return "clp", run(clp, calibration), notes
    best = max(found, key=lambda name: found[name][0])
    return best, found[best][1], notes


class Jury:
    """The pictures kept aside, and the changes that they are judged by; the same for every candidate."""

    def __init__(self, twin: TorchTwin, kept: Examples, seed: int) -> None:
        self.twin, self.kept, self.seed = twin, kept, seed
        self.searches: list[Targeted] = search(twin, kept, SEARCH, torch.Generator().manual_seed(seed)).searches
        with torch.no_grad():
            self.goal = twin.logits(kept.pictures).log_softmax(1)

    @torch.no_grad()
    def __call__(self, weights: dict[str, Tensor] | None) -> Judged:
        """What these weights do; None: the submitted ones."""
        generator, pictures, own = torch.Generator().manual_seed(self.seed), self.kept.pictures, self.goal.argmax(1)
        there = [self._sent(search, weights, generator) for search in self.searches]
        worst = Trials(CONFIG.tries)(self.twin, weights, pictures, self.goal, generator)
        moved = (self.twin.logits(worst, weights).argmax(1) != own).float().mean()
        return Judged(accuracy(self.twin, pictures, self.kept.labels, weights), sum(there) / max(1, len(there)), float(moved))

    def _sent(self, search: Targeted, weights: dict[str, Tensor] | None, generator: torch.Generator) -> float:
        """The share of pictures of other classes that a search's changes send where they aim."""
        own = self.goal.argmax(1)
        stamped = search.stamp(lambda index: self.kept.pictures[index], own, len(own), generator)
        judged = stamped.own != stamped.aims
        hits = (self.twin.logits(stamped.changed, weights).argmax(1) == stamped.aims) & judged
        return float(hits.sum() / judged.sum().clamp(min=1))
