"""Settings of ours (minimax.py), and what they come to with a number of images."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.purify.sau import Config as Ascent
from pipeline.search.kinds import CONFIG as SEARCH
from pipeline.search.kinds import Config as SearchConfig
from pipeline.search.targeted import Kind

ASCENT = Ascent(ascents=3)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings, the letters being those of minimax.py.

    steps: of θ; warm_up: of them, in which steps grow.  averaged: the share of them, at the end, whose weights are averaged.  rate: of Adam, a share of a
    weight's typical size.  kappa κ, rho ρ, nu ν.  rate, rho and nu are with `images` or more; see Dose for fewer.

    batch: pictures a step, shifted by up to `crop` pixels.  varied: the share of them that is varied with one image, falling to half of it with half of
    `images`; joined: of the others, the share that is mixed with one another.  views: places that the submitted network is asked from.  features: what
    their distance counts in D.  corrupted: pictures that are changed by chance, tries: changes drawn for each.  shared: those for which ε is sought,
    ascent: how.

    search: how Δ are searched for.  parts: patches in place of the smallest one that sends every class on.  most: the largest w, of warps and, with up to `few`
    images a class, of what leaves a class or sends each so many on; with more images half of that, and less with less than ten classes, among which one
    stands out by chance.  Of other kinds it is half of what it is for leaving a class, but 1.  dynamic: w of generators where nothing stands out at all; it
    falls to 0 where something has w = 1.  seen: pictures for each of them and step of their search.  poses: steps that a picture is changed by to pose as one
    of a class.  hardest: of so many pictures under Δ that one is unlearnt which it leads furthest astray, but where what the picture was is asked for.
    answered: how much of the way to the mean of the weights is gone with `images` or more; with fewer, more of it.
    """

    steps: int = 150
    batch: int = 64
    corrupted: int = 64
    tries: int = 8
    shared: int = 32
    ascent: Ascent = ASCENT
    joined: float = 0.5
    varied: float = 0.75
    features: float = 3.0
    rate: float = 0.04
    images: int = 500
    warm_up: int = 10
    kappa: float = 6.0
    rho: float = 1.0
    nu: float = 0.5
    most: float = 6.0
    few: int = 10
    dynamic: float = 3.0
    seen: int = 8
    poses: int = 5
    hardest: int = 4
    search: SearchConfig = SEARCH
    parts: int = 8
    views: int = 4
    averaged: float = 0.4
    answered: float = 0.9
    crop: int = 3


CONFIG = Config()


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What Config comes to with a number of images.

    few: whether there are so few that pictures are made for what needs more (pretenders.py).  varied: the share of a batch, and of the pictures that Δ is
    made to, that is varied.  most: the largest w, bent: of a warp, away: of what leaves a class or sends each so many on.  The others are as
    in Config.
    """

    few: bool
    varied: float
    rate: float
    rho: float
    nu: float
    most: float
    bent: float
    away: float
    dynamic: float
    answered: float

    @classmethod
    def of(cls, config: Config, images: int, classes: int) -> Dose:
        """For so many images of a network with so many classes."""
        plenty = min(1.0, images / config.images)
        few = images <= config.few * classes
        away = config.most if few else config.most * min(0.5, (classes - 1) / 18)
        return cls(
            few=few,
            varied=config.varied * max(0.5, 1 - plenty),
            rate=config.rate * plenty**0.25,
            rho=config.rho * plenty**0.125,
            nu=config.nu * plenty**0.25,
            most=min(away, max(1.0, away / 2)),
            bent=config.most,
            away=away,
            dynamic=config.dynamic * min(1.0, (classes - 1) / 9),
            answered=1 - (1 - config.answered) * plenty,
        )

    def limit(self, kind: Kind) -> float:
        """The largest w of a kind."""
        return {"warp": self.bent, "departure": self.away, "shift": self.away}.get(kind, self.most)
