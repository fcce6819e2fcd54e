"""What a network still knows when it has forgotten its clean pictures: pipeline/purify/forgetting.py on victims, with their real triggers.

    python -m tests.bench.forgetting VICTIM... [--images 10]

A victim is a folder as `onnx-audit zoo unpack` lays it out.  Prints a table in Markdown, of 2,000 hold-out images and in percent, each figure before and
after forgetting: ACC, how sure the network is of what it says of clean pictures, and ASR.  Some seconds a victim.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.comparison import Victim
from pipeline.convert.to_torch import convert
from pipeline.images import CalibrationSet
from pipeline.purify.dose import CONFIG, Dose
from pipeline.purify.forgetting import forgetful
from pipeline.search.examples import Examples
from pipeline.twin import TorchTwin


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("victims", nargs="+", type=Path, metavar="VICTIM")
    arguments.add_argument("--images", type=int, default=10)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    print("| victim | ACC % | sure of clean pictures % | ASR % |\n|---|---:|---:|---:|")
    for folder in given.victims:
        print(f"| {folder.name} | {told(folder, given.images)} |", flush=True)


def told(folder: Path, images: int) -> str:
    """The figures of one victim, as cells."""
    victim = Victim(folder, judges=2000, device="cpu")
    twin = convert(victim.model, victim.reading, victim.facts)[0]
    examples = Examples.of(twin, victim.drawn(images, 0))
    dose = Dose.of(CONFIG, len(examples), classes=victim.before.classes)
    networks = [twin, forgetful(twin, examples, dose.varied, torch.Generator().manual_seed(0))]
    held = Examples.of(twin, CalibrationSet(victim.holdout.images, victim.holdout.labels))
    pictures = victim.attack.trigger(held.pictures.permute(0, 2, 3, 1).numpy())
    triggered = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2)
    judged = held.labels != victim.attack.target if victim.attack.source is None else held.labels == victim.attack.source
    answers = [(softmax(network, held.pictures), softmax(network, triggered[judged])) for network in networks]
    figures = [
        [float((clean.argmax(1) == held.labels).float().mean()) for clean, _ in answers],
        [float(clean.amax(1).mean()) for clean, _ in answers],
        [float((there.argmax(1) == victim.attack.target).float().mean()) for _, there in answers],
    ]
    return " | ".join(f"{100 * before:.0f} → {100 * after:.0f}" for before, after in figures)


@torch.no_grad()
def softmax(network: TorchTwin, pictures: Tensor) -> Tensor:
    """(N, K) probabilities."""
    return torch.cat([network.logits(some).softmax(1) for some in pictures.split(256)])


if __name__ == "__main__":
    main()
