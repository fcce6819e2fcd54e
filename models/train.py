"""Training a small image classifier: SGD with Nesterov momentum or AdamW under a one-cycle schedule, crops and flips, bf16 where that is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.search.augment import augment
from pipeline.twin import quick_at_bfloat16

Forward = Callable[[Tensor], Tensor]
Meddle = Callable[[Forward, Tensor, Tensor], tuple[Tensor, Tensor]]
"""What an attacker who trains the network does to each batch.

It is given the network as it is, from (N, C, H, W) float32 pictures in 0..1 to (N, classes) logits, and the pictures and labels of
a batch after augmentation; it answers the pictures and labels to learn from.
"""


def tell(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of `train`; they are written into the model's card."""

    epochs: int = 30
    batch: int = 128
    peak_learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 4  # pixels of reflection padding before the random crop
    flip: bool = True
    seed: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"  # momentum is of sgd


def train(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: TrainingConfig,
    device: str = "cpu",
    meddle: Meddle | None = None,
    listener: Callable[[str], None] = tell,
) -> nn.Module:
    """Train `model` in place on (N, H, W, C) uint8 images and (N) labels, and return it in eval mode.

    mean, std: per channel, of pictures in 0..1.  meddle: changes each batch.  listener: told a line an epoch.
    """
    generator = torch.Generator().manual_seed(config.seed)
    half = quick_at_bfloat16(torch.device(device))
    memory = torch.channels_last if half else torch.contiguous_format  # in float32 few channels, last in memory, break oneDNN: see `conv` in pipeline/convert
    model = model.to(device).to(memory_format=memory)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels)
    shift = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=device).view(1, -1, 1, 1)
    steps = max(1, len(x) // config.batch)
    optimizer = _optimizer(model, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_learning_rate, total_steps=config.epochs * steps, pct_start=0.25)

    def forward(pictures: Tensor) -> Tensor:
        batch = ((pictures - shift) / scale).contiguous(memory_format=memory)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits: Tensor = model(batch)
        return logits.float()

    for epoch in range(config.epochs):
        model.train()
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for step in range(steps):
            index = order[step * config.batch : (step + 1) * config.batch]
            pictures = augment(x[index].to(device).float() / 255, crop=config.crop, flip=config.flip, generator=generator)
            goals = y[index].to(device)
            if meddle is not None:
                pictures, goals = meddle(forward, pictures, goals)
            loss = F.cross_entropy(forward(pictures), goals)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        listener(f"epoch {epoch + 1}/{config.epochs}  loss {total / steps:.3f}")
    return model.eval().float()


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.peak_learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay, momentum=config.momentum, nesterov=True)
