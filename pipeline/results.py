"""What the stages answer, as values that are checked where they come in.

Every rate is hits / total with a 95 % Wilson interval (contract 7).  A digest is `sha256:<hex>` of a file in the store.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.artifact import ModelArtifact
from pipeline.findings import Check, Finding, Printable
from pipeline.images import InputSpec

Onward = Annotated[str, Field(pattern=r"^(next|\+[1-9][0-9]*)$")]
"""Where each picture goes so many classes on: `next` for label + 1, `+2` for label + 2; after the last class comes the first."""
Target = Annotated[int, Field(ge=0)] | Onward | None
PARITY = 1e-3  # contract 5: the largest relative difference
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def onward(target: object) -> int | None:
    """How many classes on a target aims; None where it is a class."""
    if target == "next":
        return 1
    return int(target) if isinstance(target, str) and re.fullmatch(r"\+[1-9][0-9]*", target) else None


class Value(BaseModel):
    """A frozen record that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Value):
    """hits / total, and its 95 % Wilson score interval [low, high] (Wilson 1927)."""

    hits: int = Field(ge=0)
    total: int = Field(gt=0)
    rate: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @classmethod
    def of(cls, hits: int, total: int) -> Self:
        """The rate of `hits` among `total`; `total` must be positive."""
        p, z2 = hits / total, Z95**2
        centre = (p + z2 / (2 * total)) / (1 + z2 / total)
        half = Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
        return cls(hits=hits, total=total, rate=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))


class Attack(Value):
    """What a trigger does to a model.

    asr: share of triggered images, of other true classes than the target, that go to the target.  ra: share of the same images
    that keep their true label.  changed: those of them that the trigger changes at all.  untriggered: those that the file sends to the target without the
    trigger, which no repair is asked to undo; None in a record of a version that did not count them.  source: the only true class that was triggered;
    None: all of them.
    """

    name: Printable
    kind: Literal["known", "recovered"]
    target: Target
    source: int | None = None
    asr: Rate
    ra: Rate
    changed: Rate
    untriggered: Rate | None = None


class Measurement(Value):
    """A file as onnxruntime sees it on the hold-out images.

    classes: how many the model has.  answered: how many of them it ever gave to a clean image; commonest: images that were given the class which was
    given most.  by_class: accuracy on the images of each class, None where there are none.  repeated: of the images that were asked about twice, those
    that got the same class.  improbable: images whose scores, said to be probabilities, are none.  provider: the one that really ran.
    """

    clean: Rate
    attacks: list[Attack]
    classes: int = Field(ge=2)
    answered: int = Field(ge=1)
    commonest: Rate
    by_class: list[Rate | None]
    repeated: Rate
    improbable: int = Field(ge=0)
    provider: str


class ModelFacts(Value):
    """What a file says about itself.  input_shape: None where an axis is dynamic."""

    sha256: str
    bytes: int
    opset: int
    producer: Printable
    parameters: int
    nodes: int
    operators: dict[str, int]
    input_name: Printable
    input_shape: list[int | None]
    output_names: list[Printable]
    output_shapes: list[list[int | None] | None]


class ScanResult(Value):
    """The file and its graph."""

    model: ModelFacts
    findings: list[Finding]
    checks: list[Check]

    @property
    def gated(self) -> bool:
        """Whether a gate was found that gets past the weights."""
        return any(finding.rule == "graph.gate-past-the-weights" for finding in self.findings)

    @property
    def refusal(self) -> str | None:
        """Why the model can have no differentiable copy, in a sentence; None when nothing that was found speaks against one."""
        for finding in self.findings:
            if finding.rule == "graph.data-dependent-control-flow":
                return f"the graph runs differently from image to image ({finding.where}: {finding.message}), so it has no differentiable copy"
        return None


class OutputReading(Value):
    """Which output holds the scores, and whether they are probabilities.

    guessed: it was one of several, and the spec did not say which.  scores: what each of those was right on, on calibration images.
    """

    name: str
    probabilities: bool
    guessed: bool
    scores: dict[Printable, Rate] = {}


class ReadingResult(Value):
    """How the model reads pictures and answers; `guessed` when the spec did not say how it reads.

    scores: what each candidate was right on, on calibration images; on few, when they were enough to see that it is not the one.
    reference: .npz, pictures and what onnxruntime answers to them, for parity.
    """

    input: InputSpec
    guessed: bool
    scores: dict[str, Rate] = {}
    output: OutputReading
    reference: str = ""


class Divergence(Value):
    """The first node where onnxruntime and the torch twin part, with the value of each at the worst entry."""

    node: Printable
    operator: Printable
    onnxruntime: float
    torch: float


class Parity(Value):
    """onnxruntime against the torch twin on calibration images (contract 5).

    tolerance: the largest difference that is allowed; more than 1e-3 only where the graph itself rounds activations to integers.
    """

    max_relative_difference: float
    label_agreement: Rate
    tolerance: float = PARITY
    first_divergence: Divergence | None = None

    @property
    def holds(self) -> bool:
        """Whether gradients of the twin may be believed: as close as is asked for, and every label the same."""
        return self.max_relative_difference <= self.tolerance and self.label_agreement.hits == self.label_agreement.total


class Unbound(Value):
    """A weight that is left alone, and why."""

    name: Printable
    why: Printable


class Bound(Value):
    """How much of the model write-back reaches: parameters bound, of all, in how many initializers."""

    parameters: int
    of: int
    initializers: int


class ImportResult(Value):
    """Whether the model has a differentiable copy that agrees with it.

    parity: on calibration images, or on noise when there are none.  noise: on uniform noise.  others: of the float outputs beside
    the scores, by name.  batch: how many pictures the copy takes at a time; None: any number.
    """

    parity: Parity
    noise: Parity
    others: dict[str, Parity] = {}
    bound: Bound
    unbound: list[Unbound]
    batch: int | None = None


class ImportAnswer(ImportResult):
    """What `onnx-audit import` answers: can this model be audited, and how much of it repaired?

    images: that parity was judged on real ones.  seconds: of the whole look.
    """

    model: ModelFacts
    findings: list[Finding]
    checks: list[Check]
    input: InputSpec
    input_guessed: bool
    output: OutputReading
    images: bool
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the copy agrees with the model wherever they were compared."""
        return self.parity.holds and self.noise.holds


class Step(Value):
    """One step of a purifier's history: figures by name."""

    step: int
    metrics: dict[str, float]


class PurifyResult(Value):
    """What a purifier made: files by digest, and how it went.

    weights: .npz, initializer name -> new values.  masks: .npz, initializer name -> mask in 0..1.  perturbation: .npy,
    (K, H, W, C) float32, what the inner search ended with, one for each of the K `hypotheses`.
    """

    method: str
    preset: str
    seconds: float
    device: str
    weights: str
    masks: str
    perturbation: str | None
    hypotheses: list[Printable] = []
    history: list[Step]
    notes: list[Printable] = []


class Change(Value):
    """An initializer that write-back changed.  zeroed: share of its entries whose magnitude fell below a tenth of what it was."""

    name: Printable
    operator: str
    parameters: int
    relative_change: float
    zeroed: float


class WriteBackResult(Value):
    """The written file, and the proof of what differs from the submitted one."""

    model: ModelArtifact
    changes: list[Change]


class IntakeResult(Value):
    """The submitted file as it was read, with its external data."""

    model: ModelArtifact


class GateSeen(Value):
    """A gate in the graph, watched on clean images.

    value: its name.  steady: that it never moved.  kept: images that keep their label while the gate is held where most do.  turned: images
    that change it while the gate is held on the other side, and target, the class that most of those go to.  path: operators from the image to where it
    joins; crossed, other: learned numbers that the gate and what it joins have crossed.
    """

    value: Printable
    steady: bool
    kept: Rate
    turned: Rate
    target: int | None
    path: list[Printable] = []
    crossed: float = 0.0
    other: float = 0.0


class GatesResult(Value):
    """What the gates of a graph decide, and the graph without them.

    cut: the submitted file with its gates as constants and without what only they needed, `removed` nodes; None where an image changes its label by
    that, or a gate cannot be reached.  why: then, why not.
    """

    gates: list[GateSeen]
    cut: ModelArtifact | None = None
    removed: int = 0
    why: Printable = ""


class Hypothesis(Value):
    """The smallest change of a kind that leads the network astray.

    kind: patch, warp, addition or faint addition to a class; shift: a patch that sends pictures some classes on; departure: one that takes the pictures of a
    class away from it.  source: the only class that it works on.  text, aim: what it is and does, in words.  size: in `unit`; share: of the whole picture.
    outlier: the median size over classes over this one.  reached: calibration images that go where it aims.  score: P(backdoored) if nothing else spoke, in
    0..1.  trigger: its fields in audit.yaml, files by digest.
    """

    kind: Literal["patch", "warp", "shift", "departure", "addition", "faint"]
    target: Target
    source: int | None = None
    text: Printable
    aim: str
    size: float
    unit: str
    share: float
    outlier: float
    reached: Rate
    score: float = Field(ge=0, le=1)
    trigger: dict[str, Any]


class DetectResult(Value):
    """What the search for unknown triggers found, the likeliest first.

    score: P(backdoored) in 0..1.  sizes: of each kind of change, that of every one by what it aims at.  shown: .npy, (K, H, W, C) float32, what the
    hypotheses add to pictures.  clean, backdoored: scores of the reference models, each held against the others.  complete: every search came to an end.
    """

    hypotheses: list[Hypothesis]
    method: str
    score: float = Field(ge=0, le=1)
    sizes: dict[str, dict[str, float]]
    shown: str
    clean: list[float]
    backdoored: list[float]
    complete: bool
    seconds: float
    device: str
    notes: list[Printable] = []


class PlotsResult(Value):
    """Pictures for the report: name -> digest of a PNG."""

    plots: dict[str, str]
