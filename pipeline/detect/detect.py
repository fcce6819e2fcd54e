"""Search for triggers that nobody told us about, and say how sure one can be.

The searches are those of pipeline/search; each gives the smallest change of its kind for each class, step or source.  A backdoor is a short cut:
its change is much smaller than the others (Neural Cleanse, Wang et al., S&P 2019, section 4).  How much smaller is usual, bank.py knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.detect import bank
from pipeline.detect.recovered import trigger_of
from pipeline.images import CalibrationSet
from pipeline.results import Hypothesis, Rate
from pipeline.search.examples import Examples, classes_of
from pipeline.search.kinds import EVERY, Config, Searched, Told, search
from pipeline.search.patches import ARRIVED, Patches
from pipeline.search.targeted import Targeted
from pipeline.twin import TorchTwin

METHOD = "the smallest patch, warp, addition and faint addition to each class, patch to other classes in turn, and patch away from each class"
CONFIG = Config(kinds=EVERY)
LIKELY, MOST = 0.5, 3  # beside the smallest change of a kind, so many others that are as likely as this
JUDGES = 256  # pictures at most that a change is tried on


@dataclass(frozen=True)
class Detected:
    """What was found.

    hypotheses: the likeliest first.  score: P(backdoored), in 0..1.  sizes: of each change, by kind and by what it aims at.  differences: (K, H, W, C) float32,
    what each hypothesis adds to pictures in 0..1, in the mean.  notes, complete: of the search.
    """

    hypotheses: list[Hypothesis]
    score: float
    sizes: dict[str, dict[str, float]]
    differences: NDArray[np.float32]
    notes: list[str]
    complete: bool


def detect(twin: TorchTwin, calibration: CalibrationSet, *, seed: int, seconds: float, folder: Path, told: Told | None = None) -> Detected:
    """Search, for so many seconds at most; triggers that could be read by audit.yaml are written into `folder`.

    Deterministic under a seed as long as there is time.  Raises ImagesRefused when there are no images.
    """
    twin, examples, found = look(twin, calibration, seed=seed, seconds=seconds, told=told)
    standings: dict[str, bank.Standing] = {one.kind: standing(one) for one in found.searches}
    scale = bank.Scale.of(bank.nearest(bank.references(), len(calibration)))
    own = classes_of(twin, examples)
    rows = [(one, row, score) for one in found.searches for row, score in likely(one, scale)]
    rows.sort(key=lambda entry: -entry[2])
    hypotheses, differences = [], []
    for place, (one, row, score) in enumerate(rows):
        sizes = one.sizes().detach()
        aim = one.aim(row)
        assert one.kind != "generated", "only ours searches for these"
        hypotheses.append(
            Hypothesis(
                kind=one.kind,
                target=aim.goal,
                source=aim.source,
                text=f"{one.name} {aim}",
                aim=str(aim),
                size=float(sizes[row]),
                unit=one.unit,
                share=float(sizes[row]) / one.whole,
                outlier=float(sizes.quantile(0.5) / sizes[row]),
                reached=transfer(twin, one, row, examples.pictures[:JUDGES], own[:JUDGES]),
                score=score,
                trigger=trigger_of(one, row, folder / str(place)),
            )
        )
        differences.append(one.differences(examples.pictures[:64])[row].permute(1, 2, 0).cpu().numpy())
    return Detected(
        hypotheses=hypotheses,
        score=scale.score(standings),
        sizes={one.kind: {str(one.aim(row)): size for row, size in enumerate(one.sizes().detach().tolist())} for one in found.searches},
        differences=np.stack(differences) if differences else np.zeros((0, 1, 1, 1), np.float32),
        notes=found.notes,
        complete=found.complete,
    )


def look(twin: TorchTwin, calibration: CalibrationSet, *, seed: int, seconds: float, told: Told | None = None) -> tuple[TorchTwin, Examples, Searched]:
    """The searches alone, with the twin and the pictures that they used."""
    quick = twin.quick(torch.from_numpy(calibration.pictures()[:8].transpose(0, 3, 1, 2).copy()).to(twin.device))
    examples = Examples.of(quick, calibration)
    return quick, examples, search(quick, examples, replace(CONFIG, seconds=seconds), torch.Generator().manual_seed(seed), told=told)


def standing(one: Targeted, row: int | None = None) -> bank.Standing:
    """How the smallest change of a search stands out; or another one, as if it were the smallest."""
    shares = (one.sizes().detach() / one.whole).tolist()
    smallest = bank.Standing.of(shares)
    return smallest if row is None else bank.Standing(smallest.outlier * smallest.share / shares[row], shares[row])


def likely(one: Targeted, scale: bank.Scale) -> list[tuple[int, float]]:
    """Rows of a search, and the score that each has alone: the smallest change, and others that stand out as well and do what they should."""
    order = one.sizes().detach().argsort().tolist()
    scores = [(row, scale.probability(scale.deviation(one.kind, standing(one, row)))) for row in order]
    return scores[:1] + [(row, score) for row, score in scores[1 : MOST + 1] if score >= LIKELY and float(one.reached[row]) >= ARRIVED]


@torch.no_grad()
def transfer(twin: TorchTwin, one: Targeted, row: int, pictures: Tensor, own: Tensor) -> Rate:
    """Of the calibration pictures that a change is meant for, those that it takes where it aims, without the small variations of the search."""
    which = torch.full((len(own),), row, device=own.device)
    aims, aim = one.aims(which, own), one.aim(row)
    judged = own != aims
    if aim.source is not None:
        judged &= own == aim.source
    if not judged.any():
        return Rate.of(0, 1)
    said = torch.cat([twin.logits(one.change(some, which[: len(some)])).argmax(1) for some in pictures[judged].split(64)])
    return Rate.of(int((said == aims[judged]).sum()), int(judged.sum()))


def anomaly_index(found: Searched) -> float:
    """How far the smallest patch lies below the median, in consistent median deviations: above 2 Neural Cleanse suspects a network; 0 without patches."""
    sizes = next((one.sizes().detach() for one in found.searches if isinstance(one, Patches)), None)
    if sizes is None:
        return 0.0
    median = sizes.quantile(0.5)
    deviation = 1.4826 * (sizes - median).abs().quantile(0.5)
    return float((median - sizes.min()) / deviation.clamp_min(1e-9))
