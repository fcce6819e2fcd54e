"""Attacks that make a victim, one family a file.  Each takes an Attacker and answers a Victim."""

from __future__ import annotations

from collections.abc import Callable

from models.attacks.adv_trojan import adv_trojan
from models.attacks.attacker import Attacker, Victim
from models.attacks.badnets import badnets
from models.attacks.blended import blended
from models.attacks.clean_label import clean_label
from models.attacks.imc import imc
from models.attacks.input_aware import input_aware
from models.attacks.invisible import l0_invisible, l2_invisible
from models.attacks.low_frequency import low_frequency
from models.attacks.pruning_aware import pruning_aware
from models.attacks.sig import sig
from models.attacks.source_specific import source_specific
from models.attacks.trojan import added_square, added_watermark, all_to_all, painted_square
from models.attacks.wanet import wanet


def clean(attacker: Attacker) -> Victim:
    """No attack: the clean twin."""
    return Victim(attacker.train(attacker.data.train.images, attacker.data.train.labels))


ATTACKS: dict[str, Callable[[Attacker], Victim]] = {
    "clean": clean,
    "badnets": badnets,
    "trojan-square": added_square,
    "trojan-watermark": added_watermark,
    "painted-square": painted_square,
    "blended": blended,
    "l0-invisible": l0_invisible,
    "l2-invisible": l2_invisible,
    "sig": sig,
    "clean-label": clean_label,
    "wanet": wanet,
    "low-frequency": low_frequency,
    "all-to-all": all_to_all,
    "source-specific": source_specific,
    "pruning-aware": pruning_aware,
    "imc": imc,
    "input-aware": input_aware,
    "adv-trojan": adv_trojan,
}
NEED_A_SURROGATE = frozenset({"clean-label", "adv-trojan"})

__all__ = ["ATTACKS", "NEED_A_SURROGATE", "Attacker", "Victim", "clean"]
