"""Ours, the `default` of AWM: its minimax, with other choices for each of its parts.

    min over θ of  κ D(f(x; θ), g)  +  w max over Δ of H(f(Δ(x); θ), t)  +  ρ E over random changes c of D(f(c(x); θ), g)
                   +  ν H(f(x + ε; θ), ỹ)

g is what the submitted network says of the picture x: distillation, so that a few pictures teach more than their labels, and what
the network knew is what it keeps.  Where a mirror is harmless it is asked from several places, the picture shifted and
mirrored, and the mean is a little better than any answer alone.  D is the Kullback-Leibler divergence of the answers, and the
distance of what the last hidden layer says: hundreds of numbers a picture where the answer has ten (knowledge.py).  No label has
to survive what is done to a picture before g is asked for.  So many of a batch are cut into or mixed with one another, turned, enlarged
and recoloured, the more the fewer there are: ten pictures teach far more than their labels.  Δ and c are made to varied pictures too:
made to so few alone, they hardly teach about others.

Beside the submitted network a second one is asked, which has forgotten its pictures (forgetting.py): short cuts are most of what is left in it.

Δ        Changes that lead astray, each the smallest of its kind (pipeline/search): the patch and the warp that send every picture to one class, for
         each class; the patch that sends each picture s classes on, for each s; the patch that takes the pictures of one class away from it,
         for each class.  Patches, warps and faint additions are searched for in the forgetful network as well, and of each kind that search is
         kept in which more stands out, as far as the other network bears it out: what stands out by chance is another class in each.  Where one
         needs to be much smaller than the others, there is a short cut; its share of a batch, and w, grow with how much it stands out: (median size
         / smallest / what is usual - 1)², up to a limit.  So a network without a short cut of
         these kinds is not changed for their sake: to resist the patch that any network has costs accuracy, and repairs nothing.
         Where nothing stands out, small networks that make a trigger for each picture are searched for in the forgetful
         network (generators.py).
         What sends each picture s classes on for certain is searched for again in parts, each in half of the places, and unlearnt so: the smallest patch
         is a part of what was learnt.
         From few images, what differs by class is searched for on pictures that are made to be of each (pretenders.py), and unlearnt on
         pictures that the network in repair is made to take for one, again in each step.
         Each picture under Δ is that one of several which the network in repair is still surest to take for t: a picture that Δ no longer
         leads astray teaches nothing, and soon most are such.  Not where what the picture was is asked for: that costs more than it teaches.
H        -log(1 - p(t)): such a picture may be taken for anything but t.  To be taken for what it was would be more, and would cost more.  Only of a patch
         that sends each picture s classes on that is asked, by D(f(Δ(x); θ), g): else the picture is taken for any third class.
c        Random changes of the kinds that triggers are made of, see corruptions.py: of a few tried on a picture, the one that the forgetful network and
         the one in repair are surest to take for one and the same wrong class, and one of those that are tried is what last moved a picture of
         that class most (trials.py).  They unlearn triggers that cover the picture, and weaken waves and triggers that are made for each picture.
ε        For each picture the strong noise that fools the forgetful network and the one in repair alike, and ỹ, what the submitted one takes it for:
         the shared adversarial pictures of SAU (sau.py), with its outer term alone.  They unlearn triggers that were made for the network or for
         each picture, which are neither small nor like anything that is drawn by chance.
θ        All weights and biases, by Adam with steps that are a share of a weight's typical size: with g to hold them, no mask is needed
         to stay near what was submitted.  What is answered is the mean over the last steps (Izmailov et al., *Averaging Weights Leads to
         Wider Optima*, UAI 2018, arXiv 1803.05407); not quite, but from many images nine tenths of the way there from the submitted weights (Wortsman et al.,
         *Robust Fine-Tuning of Zero-Shot Models*, CVPR 2022, arXiv 2109.01903): the last tenth unlearns less than it costs.  Classes that the submitted network
         never answers are taught at the end (unsaid.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.images import CalibrationSet
from pipeline.purify import History, Purified, Report, arrays
from pipeline.purify.dose import CONFIG, Dose
from pipeline.purify.knowledge import Asked, Knowledge, divergence
from pipeline.purify.sau import adversarial
from pipeline.purify.shortcuts import short_cuts
from pipeline.purify.trials import Trials
from pipeline.purify.tuning import Weights, typical, variables
from pipeline.purify.unsaid import taught
from pipeline.search.examples import Examples, classes_of
from pipeline.search.pretenders import near
from pipeline.search.targeted import Network, Pictures, Posing, Said, Stamped, Targeted
from pipeline.search.variety import joined, varied
from pipeline.twin import TorchTwin


def minimax(twin: TorchTwin, calibration: CalibrationSet, *, seed: int, report: Report) -> Purified:
    """Purify.  Raises ImagesRefused when there are no images, SpecRefused when there is nothing to tune."""
    config, examples, start = CONFIG, Examples.of(twin, calibration), variables(twin)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        classes = twin.logits(examples.pictures[:1]).shape[1]
    dose = Dose.of(config, len(examples), classes=classes)
    cuts = short_cuts(twin, examples, classes, config, dose, generator, told=lambda share: report(0, config.steps, {"searched": share}))
    weights = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.Adam([{"params": [weight], "lr": dose.rate * typical(weight)} for weight in weights.values()])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / config.warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / config.steps))
    )
    plain = config.batch - round(config.batch * dose.varied)
    sizes = [plain - round(plain * config.joined), round(plain * config.joined), config.batch - plain]
    trials = Trials(config.tries)
    asked, own, mean = Asked.of(twin), classes_of(twin, examples), Mean()

    def backgrounds(index: Tensor) -> Tensor:
        alone, other = examples.drawn(index, config.crop, generator).tensor_split([len(index) - round(len(index) * dose.varied)])
        return torch.cat([alone, varied(other, generator)])

    @torch.no_grad()
    def said_of(x: Tensor) -> Tensor:
        return twin.logits(x).argmax(1)

    def in_repair(x: Tensor) -> Tensor:
        return twin.logits(x, {name: weight.detach() for name, weight in weights.items()})

    def posing(x: Tensor, aims: Tensor) -> Tensor:
        return near(in_repair, x, aims, config.poses)

    history = History(report, config.steps)
    for step in range(config.steps):
        alone, alike, other = examples.sample(config.batch, config.crop, generator).split(sizes)
        x = torch.cat([alone, joined(alike, generator), varied(other, generator)])
        goal = asked.from_several_places(x, config.views if examples.flip else 1)
        said = goal.answers.argmax(1)
        some = torch.arange(config.corrupted, device=x.device) % config.batch
        worst = trials(twin, weights, x[some], goal.answers[some], generator, critic=cuts.critic)
        stamped = stamp(
            cuts.searches, cuts.shares, config.batch, backgrounds, own, generator, said=said_of, posing=posing, judge=in_repair, tries=config.hardest
        )
        deceived = adversarial(twin, weights, x[: config.shared], said[: config.shared], config.ascent, generator, submitted=cuts.critic)
        wrong = said_of(deceived)
        answers = asked(torch.cat([x, worst, stamped.changed, deceived]), weights)
        clean, corrupted, there, fooled = answers.split([len(x), len(some), len(stamped.changed), len(deceived)])
        losses = {
            "clean": divergence(clean, goal, config.features),
            "corrupted": divergence(corrupted, goal.at(some), config.features),
            "shared": harm(fooled.answers, wrong, said[: len(wrong)]),
            "stamped": astray(there, stamped, asked, config.features),
        }
        loss = config.kappa * losses["clean"] + dose.rho * losses["corrupted"] + dose.nu * losses["shared"] + cuts.weight * losses["stamped"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step >= config.steps * (1 - config.averaged):
            mean.add(weights)
        history.add(loss=loss.item(), **{f"loss_{name}": value.item() for name, value in losses.items()})
    repaired, notes = taught(twin, between(start, mean.weights, dose.answered), examples, generator)
    differences, hypotheses = cuts.suspects(examples.pictures)
    return Purified(arrays(repaired), {}, differences.permute(0, 2, 3, 1).cpu().numpy(), hypotheses, history.steps, cuts.notes + notes)


@dataclass
class Mean:
    """The mean of weights over steps: it is less noisy than the last ones."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> None:
        """The weights of another step."""
        self.count += 1
        known = self.weights or {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.weights = {name: known[name] + (weight - known[name]) / self.count for name, weight in weights.items()}


@torch.no_grad()
def between(start: Weights, end: Weights, way: float) -> dict[str, Tensor]:
    """The weights so much of the way from the start to the end, 0..1."""
    return {name: start[name] + way * (weight - start[name]) for name, weight in end.items()}


def stamp(
    searches: list[Targeted],
    shares: list[float],
    count: int,
    pictures: Pictures,
    own: Tensor,
    generator: torch.Generator,
    *,
    said: Said,
    posing: Posing | None = None,
    judge: Network | None = None,
    tries: int = 1,
) -> Stamped:
    """So many pictures, a share of them for each search, changed; own: (M) the classes that all the pictures are taken for.

    judge: a network, and then each of them is of `tries` the one that it is led astray by most, but where the change `restores`.
    """
    ends = [round(count * sum(shares[: row + 1])) for row in range(len(searches))]

    def stamped(one: Targeted, count: int) -> Stamped:
        if judge is None or one.restores:
            return one.stamp(pictures, own, count, generator, said=said, posing=posing)
        return one.stamp(pictures, own, tries * count, generator, said=said, posing=posing).hardest(count, judge)

    parts = [stamped(one, end - start) for one, start, end in zip(searches, [0, *ends], ends, strict=False) if end > start]
    if not parts:
        none = own[:0]
        return Stamped(pictures(none.cpu()), pictures(none.cpu()), none, none, none.bool())
    return Stamped.joined(parts)


def astray(said: Knowledge, stamped: Stamped, asked: Asked, features: float) -> Tensor:
    """What is lost on stamped pictures, the mean: H, or D where the change `restores`.  said: what the network in repair says of them, features: as in D."""
    right = stamped.restored
    loss = harm(said.answers[~right], stamped.aims[~right], stamped.own[~right])
    if not right.any():
        return loss
    share = right.float().mean()
    return (1 - share) * loss + share * divergence(said.at(right), asked.from_several_places(stamped.before[right], 1), features)


def harm(answers: Tensor, aims: Tensor, own: Tensor) -> Tensor:
    """Mean of -log(1 - p(t)) over pictures whose own class is not t.  answers: (N, K) logarithms of probabilities."""
    others = answers.scatter(1, aims[:, None], float("-inf")).logsumexp(1)  # log(1 - p), however close p is to 1
    judged = (own != aims).float()
    return -(others * judged).sum() / judged.sum().clamp(min=1)
