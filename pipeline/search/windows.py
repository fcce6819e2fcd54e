"""Where in a picture does an opaque square lead a network astray most?

The descent of a patch begins almost transparent, and then knows no way to a small opaque trigger that works in one place and in its own
colours only.  So squares are tried all over the picture, a few steps each, and a patch can begin at the best one of its class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.search.targeted import MOST_PIXELS, Network, Pictures

SIDE, PLACES = 0.25, 5  # of the picture's shorter side; places along each axis
STEPS, RATE, TRIED, BATCH = 10, 0.5, 3, 96  # steps of Adam on the pattern; pictures a step; squares at once, at most
INSIDE, OUTSIDE = 2.0, -5.0  # logits of the opacity that a patch begins with
MEMORY = 0.6  # of the running mean of the loss


def best_windows(network: Network, pictures: Pictures, count: int, classes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits of opacity (K, 1, H, W) and pattern (K, C, H, W): for each class the square that sends most pictures to it.

    classes: (K) int64.  count: of pictures, for `pictures` to choose from.
    """
    some = pictures(torch.randint(0, count, (TRIED,), generator=generator))
    channels, height, width = some.shape[1:]
    side = max(1, round(SIDE * min(height, width)))
    top, left = (torch.linspace(0, length - side, PLACES).round().long().to(classes.device) for length in (height, width))
    corners = torch.cartesian_prod(top, left)
    rows = (corners.repeat(len(classes), 1)[:, :1] + torch.arange(side, device=classes.device))[:, :, None]
    columns = (corners.repeat(len(classes), 1)[:, 1:] + torch.arange(side, device=classes.device))[:, None, :]
    aims = classes.repeat_interleave(len(corners))
    pattern = (0.5 * torch.randn((len(aims), channels, side, side), generator=generator)).to(some).requires_grad_()
    optimizer = torch.optim.Adam([pattern], lr=RATE)
    loss = torch.zeros(len(aims), device=some.device)
    batch = max(1, min(BATCH, MOST_PIXELS // (TRIED * height * width)))
    for step in range(STEPS):
        some = pictures(torch.randint(0, count, (TRIED,), generator=generator))
        pattern.grad = torch.zeros_like(pattern)
        now = torch.zeros_like(loss)
        for part in torch.arange(len(aims), device=classes.device).split(batch):
            stamped = some.permute(2, 3, 0, 1).expand(len(part), height, width, TRIED, channels).clone()  # indices first, to be painted on
            stamped[torch.arange(len(part))[:, None, None], rows[part], columns[part]] = pattern[part].sigmoid().permute(0, 2, 3, 1)[:, :, :, None]
            said = network(stamped.permute(0, 3, 4, 1, 2).flatten(0, 1)).log_softmax(1)
            missed = -said.gather(1, aims[part].repeat_interleave(TRIED)[:, None]).view(len(part), TRIED).mean(1)
            pattern.grad += torch.autograd.grad(missed.sum(), pattern)[0]
            now[part] = missed.detach()
        optimizer.step()
        loss = MEMORY * loss + (1 - MEMORY) * now if step else now
    best = loss.view(len(classes), -1).argmin(1) + torch.arange(len(classes), device=classes.device) * len(corners)
    opacity = torch.full((len(classes), 1, height, width), OUTSIDE, device=some.device)
    painted = torch.zeros((len(classes), channels, height, width), device=some.device)
    every = torch.arange(len(classes))[:, None, None]
    opacity[every, 0, rows[best], columns[best]] = INSIDE
    painted.permute(0, 2, 3, 1)[every, rows[best], columns[best]] = pattern.detach()[best].permute(0, 2, 3, 1)
    return opacity, painted
