"""Training a small image classifier: SGD with Nesterov momentum under a one-cycle schedule, crops and flips, bf16."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from pipeline.purify.augment import augment


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


def train(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    config: TrainingConfig,
    device: str = "cpu",
) -> nn.Module:
    """Train `model` in place on (N, H, W, C) uint8 images and (N) labels, and return it in eval mode.

    `mean` and `std` are per channel, of pictures in 0..1.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = model.to(device).to(memory_format=torch.channels_last)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels)
    shift = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=device).view(1, -1, 1, 1)
    steps = len(x) // config.batch
    optimizer = torch.optim.SGD(model.parameters(), lr=config.peak_learning_rate, momentum=config.momentum, nesterov=True, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.peak_learning_rate, total_steps=config.epochs * steps, pct_start=0.25)
    for epoch in range(config.epochs):
        model.train()
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for step in range(steps):
            index = order[step * config.batch : (step + 1) * config.batch]
            pictures = augment(x[index].to(device).float() / 255, crop=config.crop, flip=config.flip, generator=generator)
            batch = ((pictures - shift) / scale).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), y[index].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{config.epochs}  loss {total / steps:.3f}", file=sys.stderr, flush=True)
    return model.eval().float()
