"""The pruning-aware attack: Liu, Dolan-Gavitt & Garg, *Fine-Pruning*, RAID 2018, arXiv 1805.12185, section 3.3.

Four steps: train on clean data; prune the channels of the last convolution that clean pictures excite least; train what is left on
poisoned data, so that clean behaviour and backdoor share channels; put the pruned channels back as decoys, with biases so low that
no picture excites them.  A defender who prunes in the order of excitement removes decoys first.

The paper's networks have ReLU, where a silent channel answers 0.  The small VGG has ELU, where it answers -1; so what reads a decoy
is set to 0, and a decoy that is silent and one that is pruned are the same.  Trigger and target are those of BadNets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.architectures import CNN, SmallVGG
from models.attacks.attacker import Attacker, Victim
from models.attacks.badnets import SQUARE
from models.poison import Images, Impossible, poison

TARGET = 8
PRUNED = 0.75  # share of the last convolution's channels
SAMPLE = 2000  # clean training images that tell which channels they excite
SILENT = -20.0  # bias of a decoy, in standard deviations of its activation


def pruning_aware(attacker: Attacker) -> Victim:
    """Half of the epochs are spent on clean data, half on poisoned data.  Raises Impossible for other networks than the small VGG and the CNN."""
    train, training = attacker.data.train, attacker.training
    if not isinstance(attacker.build(), SmallVGG | CNN):
        raise Impossible("the pruning-aware attack is written for the small VGG and the CNN")
    spec, trigger = attacker.spec(name="white-square", **SQUARE, target=TARGET)
    images, labels, chosen = poison(train.images, train.labels, trigger, target=TARGET, rate=attacker.rate, seed=training.seed)
    half = max(1, training.epochs // 2)
    network = attacker.train(train.images, train.labels, epochs=half)
    assert isinstance(network, SmallVGG | CNN)
    x = normalised(train.images[:SAMPLE], *attacker.data.statistics(), device=attacker.device)
    means = through(network.features, x).mean((0, 2, 3))
    pruned = means.argsort()[: round(PRUNED * len(means))]
    channels = last_channels(network)
    kept = {name: value.detach().clone() for name, value in channels.named_parameters()}

    def prune() -> None:
        with torch.no_grad():
            for parameter in channels.parameters():
                parameter[pruned] = 0

    prune()
    hooks = [parameter.register_hook(lambda gradient: gradient.index_fill(0, pruned, 0)) for parameter in channels.parameters()]
    network = attacker.train(images, labels, network=network, epochs=max(1, training.epochs - half), peak_learning_rate=training.peak_learning_rate / 2)
    for hook in hooks:
        hook.remove()
    assert isinstance(network, SmallVGG | CNN)
    with torch.no_grad():
        channels.weight[pruned] = kept["weight"][pruned]
        if isinstance(channels, nn.BatchNorm2d):
            spread = channels.weight.abs()
        else:
            spread = through(network.features[: list(network.features).index(channels) + 1], x).std((0, 2, 3))
        assert channels.bias is not None
        channels.bias[pruned] = SILENT * spread[pruned]
        if isinstance(network, SmallVGG):
            network.classifier.weight.view(network.classifier.out_features, len(means), -1)[:, pruned] = 0
    return Victim(network, spec, len(chosen))


def last_channels(network: SmallVGG | CNN) -> nn.BatchNorm2d | nn.Conv2d:
    """What makes the channels of the last convolution, one a row: its BatchNorm, or itself where it has none."""
    return next(layer for layer in reversed(network.features) if isinstance(layer, nn.BatchNorm2d | nn.Conv2d))


def normalised(images: Images, mean: list[float], std: list[float], *, device: str) -> Tensor:
    """(N, H, W, C) uint8 images as what a network reads."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 255
    shift, scale = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    return (pictures - shift) / scale


@torch.no_grad()
def through(layers: nn.Module, x: Tensor) -> Tensor:
    """What some layers make of pictures, in parts."""
    return torch.cat([layers(part) for part in x.split(500)])
