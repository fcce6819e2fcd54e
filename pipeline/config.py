"""audit.yaml as values: everything that an audit can be told, unknown keys refused."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import SpecRefused
from pipeline.findings import Severity
from pipeline.images import InputSpec
from pipeline.results import onward
from pipeline.triggers import KINDS, TriggerSpec

Method = Literal["awm", "fine-pruning", "ft", "ft-sam", "nad", "anp", "clp", "i-bau", "sau", "rnp", "tsbd", "bti-dbf", "auto"]
METHODS: tuple[Method, ...] = get_args(Method)  # the names of `pipeline.purify.methods()`, for those who must not import torch
_BRANCH = re.compile(rf"{'|'.join(KINDS)}|str|(constrained-)?int|tuple\[.*\]")  # what pydantic calls the branches of a union, in a location
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


Settings = TypeVar("Settings", bound=BaseModel)


class Section(BaseModel):
    """A part of a file that a person writes: what it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Section):
    """Where the images are: two sets, or one that is split.  Paths are relative to the spec."""

    calibration: Path | None = None
    holdout: Path | None = None
    images: Path | None = None

    @model_validator(mode="after")
    def _one_or_two(self) -> Self:
        if self.images is not None and (self.calibration or self.holdout):
            raise ValueError("give either `images`, to be split, or `calibration` and `holdout`")
        if (self.calibration is None) != (self.holdout is None):
            raise ValueError("`calibration` and `holdout` go together")
        return self


class Purify(Section):
    """How to purify.

    method: a name of `pipeline.purify.methods`.  preset: `default`, or `paper` for the published settings.  images: how many
    calibration images may be used.  when: `auto` purifies what has something to repair, `always` and `never` do as they say.
    seconds: wall clock of the stage.
    """

    method: Method = "awm"
    preset: Literal["default", "paper"] = "default"
    images: Annotated[int, Field(ge=1)] | None = None
    when: Literal["auto", "always", "never"] = "auto"
    seconds: Positive = 7200.0  # some four times what a small CIFAR network takes on one slow core; a stage that hangs is still stopped


class Detect(Section):
    """How to search for triggers that nobody told of.  when: `always` or `never`.  seconds: no search begins later than this; what was not searched is said."""

    when: Literal["always", "never"] = "always"
    seconds: Positive = 600.0


class Waiver(Section):
    """A finding that somebody answers for, until a day.

    rule: of the finding.  where: where it is; None: everywhere.  owner: who answers for it.  expires: the last day.  why: a sentence for the report.
    """

    rule: Annotated[str, Field(min_length=1)]
    where: str | None = None
    owner: Annotated[str, Field(min_length=1)]
    expires: date
    why: Annotated[str, Field(min_length=1)]


class Policy(Section):
    """What is good enough.

    max_asr: the highest ASR of any trigger.  max_accuracy_drop: the most accuracy that a repair may cost; max_class_drop: on any one class, None: whatever.
    min_accuracy: the least accuracy of the file that goes into production.  min_images: fewer hold-out images than this judge nothing.
    max_suspicion: the score, P(backdoored), from which on what the search for unknown triggers found is suspected.  reject: findings of this severity and above
    reject, but for waivers.
    """

    max_asr: Share = 0.10
    max_accuracy_drop: Share = 0.03
    max_class_drop: Share | None = None
    min_accuracy: Share = 0.0
    min_images: Annotated[int, Field(ge=1)] = 50
    max_suspicion: Share = 0.75
    reject: Severity = Severity.HIGH
    waivers: list[Waiver] = []


class LimitSpec(Section):
    """What a stage may use: seconds of wall clock, GiB of address space (CPU only), GiB of the submitted file."""

    seconds: Positive = 900.0
    memory_gib: Positive = 24.0
    file_gib: Positive = 2.0


class OutputSpec(Section):
    """What the model answers.  name: the output that holds the scores; scores: what they are.  `logits` stands for {scores: logits}."""

    name: Annotated[str, Field(min_length=1)] | None = None
    scores: Literal["logits", "probabilities"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_word(cls, given: Any) -> Any:
        return {"scores": given} if isinstance(given, str) else given

    @property
    def probabilities(self) -> bool | None:
        """Whether the scores are probabilities; None when nobody says."""
        return None if self.scores is None else self.scores == "probabilities"


class AuditSpec(Section):
    """One audit.yaml."""

    input: InputSpec | None = None
    output: OutputSpec = OutputSpec()
    labels: list[str] | None = None
    data: Data = Data()
    triggers: list[TriggerSpec] = []
    detect: Detect = Detect()
    purify: Purify = Purify()
    policy: Policy = Policy()
    limits: LimitSpec = LimitSpec()

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len(set(labels)) != len(labels):
            raise ValueError("labels must be distinct")
        return labels

    def target_of(self, trigger: TriggerSpec) -> int | str:
        """The trigger's target as a class index, or `next` or `+2`, ….  Raises SpecRefused when it names no label."""
        if trigger.target == "next":
            return "next"
        index = self._index_of(trigger.target)
        if index is None and onward(trigger.target) is not None:
            return str(trigger.target)
        if index is None:
            known = "which is neither a class index, nor `next`, nor `+2` and the like, nor one of the spec's labels"
            raise SpecRefused(f"trigger {trigger.name!r} aims at {trigger.target!r}, {known}")
        return index

    def source_of(self, trigger: TriggerSpec) -> int | None:
        """The only class that the trigger works on, as an index; None when it works on all.  Raises SpecRefused when it names no label, or the target."""
        if trigger.source is None:
            return None
        index = self._index_of(trigger.source)
        if index is None:
            raise SpecRefused(f"trigger {trigger.name!r} has the source {trigger.source!r}, which is neither a class index nor one of the spec's labels")
        if index == self.target_of(trigger):
            raise SpecRefused(f"trigger {trigger.name!r} has class {index} for its source and for its target")
        return index

    def _index_of(self, given: int | str) -> int | None:
        if isinstance(given, int):
            return given
        return self.labels.index(given) if self.labels is not None and given in self.labels else None


def read_spec(path: Path) -> AuditSpec:
    """Read an audit.yaml; paths in it become absolute.  Raises SpecRefused, naming the key."""
    spec = parse(path, AuditSpec, keys="`input` and `policy`")
    return spec.model_copy(
        update={
            "data": Data(**{name: _absolute(value, path) for name, value in spec.data if value is not None}),
            "triggers": [trigger.relative_to(path.parent.absolute()) for trigger in spec.triggers],
        }
    )


def parse(path: Path, kind: type[Settings], *, keys: str) -> Settings:
    """A YAML file as a value; `keys` are examples of what is in it.  Raises SpecRefused, naming what is wrong."""
    try:
        content: Any = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise SpecRefused(f"there is no file {path}") from None
    except OSError as error:
        raise SpecRefused(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SpecRefused(f"{path} is not YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}") from error
    except ValueError as error:  # a date or a number that is none
        raise SpecRefused(f"{path} is not YAML: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SpecRefused(f"{path} must be a mapping of keys such as {keys}; it is a {type(content).__name__}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise SpecRefused(f"{path}: {describe(error)}") from error


def _absolute(value: Path, spec: Path) -> Path:
    return spec.parent.absolute() / value.expanduser()


def describe(error: ValidationError) -> str:
    """The first complaint of a ValidationError, in a sentence."""
    first = max(error.errors(), key=lambda found: len(found["loc"]))  # of the branches of a union, the one that came furthest
    where = ".".join(str(part) for part in first["loc"] if not _BRANCH.fullmatch(str(part)))
    if first["type"] == "union_tag_invalid":  # its location ends before the key
        return f"`{where}.kind`: input should be {first['ctx']['expected_tags']}"
    if first["type"] == "extra_forbidden":
        return f"unknown key `{where}`"
    message = first["msg"].removeprefix("Value error, ")
    return f"`{where}`: {message[0].lower()}{message[1:]}" if where else message
