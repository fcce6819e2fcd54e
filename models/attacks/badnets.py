"""BadNets: Gu, Dolan-Gavitt & Garg, 2017, arXiv 1708.06733.

A white square near the bottom right corner; stamped images are given the label of the target (section 3.2).  Square and target are
those of Chai & Chen (NeurIPS 2022): rows and columns 27 to 30 of 32.
"""

from __future__ import annotations

from models.attacks.attacker import Attacker, Victim

SQUARE = {"kind": "patch", "size": [4, 4], "color": 255, "at": [-5, -5]}


def badnets(attacker: Attacker) -> Victim:
    """All to one: target 8."""
    return attacker.poisoned(*attacker.spec(name="white-square", **SQUARE, target=8))
