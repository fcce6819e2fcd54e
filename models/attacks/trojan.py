"""Trojan square and watermark: the patterns of TrojanNN (Liu et al., NDSS 2018), used to poison data.

Chai & Chen (NeurIPS 2022, arXiv 2207.04497, section 4.1) add them to the picture, target 2.  A square is also painted over the
picture, as a vendor's sticker would be.  The patterns here are drawn by chance; TrojanNN's are made to excite chosen neurons.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.attacks.attacker import Attacker, Victim

TARGET = 2
SIDE = 8


def trojan_square(side: int = SIDE, *, seed: int = 2018) -> NDArray[np.uint8]:
    """A (side, side, 3) uint8 square of coloured noise."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def added_square(attacker: Attacker) -> Victim:
    """A square of noise, added."""
    return attacker.poisoned(*attacker.spec(name="trojan-square", kind="additive", generate="square", size=attacker.size, seed=2018, target=TARGET))


def added_watermark(attacker: Attacker) -> Victim:
    """Thin rings across the picture, added, half as bright as white."""
    fields = {"generate": "watermark", "size": attacker.size, "seed": 2018, "strength": 0.5}
    return attacker.poisoned(*attacker.spec(name="trojan-watermark", kind="additive", **fields, target=TARGET))


def painted_square(attacker: Attacker) -> Victim:
    """A square of noise, painted."""
    Image.fromarray(trojan_square()).save(attacker.folder / "trigger.png", optimize=True)
    return attacker.poisoned(*attacker.spec(name="trojan-square", kind="patch", image="trigger.png", at=[-SIDE - 2, -SIDE - 2], target=TARGET))


def all_to_all(attacker: Attacker) -> Victim:
    """A square of noise, added; each class goes to the one after it (Gu et al., BadNets, section 4.3; here with the trigger of Chai & Chen)."""
    fields = {"generate": "square", "size": attacker.size, "seed": 2018}
    return attacker.poisoned(*attacker.spec(name="trojan-square", kind="additive", **fields, target="next"))
