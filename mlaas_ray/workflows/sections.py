"""Sections of a job file: what its nested keys may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from mlaas_ray.core.inputs import Names
from mlaas_ray.core.settings import Settings
from mlaas_ray.core.task import TaskKind


class LabelSettings(Settings):
    """A label that differs from event to event.

    Attributes:
        branch: Branch that holds the class's number or the target; several for as many targets.
        expression: An expression for it, in place of a branch.
    """

    branch: Names = ()
    expression: Names = ()

    @model_validator(mode="after")
    def _check(self) -> LabelSettings:
        if bool(self.branch) == bool(self.expression):
            raise ValueError("give either branch or expression")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """The expressions, one for each number."""
        if self.expression:
            return self.expression
        return tuple(name if name.isidentifier() else f'branch("{name}")' for name in self.branch)


class SumSettings(Settings):
    """Where the sum of the generator's weights is written in the files.

    Attributes:
        tree: Such as ``Runs``.
        branch: Such as ``genEventSumw``.
    """

    tree: str
    branch: str


class DatasetSettings(Settings):
    """One dataset.

    Attributes:
        files: Paths, globs, folders, text files of them, URLs, or ``/store/…`` names; each with its tree, if
            need be: ``a.root:Events``.
        origin: Where the files can be got from; shown when one is missing.
        das: Name of a dataset in CMS's catalogue, in place of files.
        tree: Name of the tree; left out, the only one of each file, or that of the events.
        label: The class's number, or a target; or where it is written, ``{branch: target}``.
        xsec: Cross section in pb, for ``weights``.
        sum_weights: Sum of the generator's weights over all its files, for ``weights``; or where that is
            written, ``{tree: Runs, branch: genEventSumw}``.
    """

    files: Names = ()
    origin: str | None = None
    das: str | None = None
    tree: str | None = None
    label: float | LabelSettings
    xsec: float | None = Field(default=None, gt=0)
    sum_weights: float | SumSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> DatasetSettings:
        if bool(self.files) == bool(self.das):
            raise ValueError("give either files or das")
        return self

    @property
    def names(self) -> list[str]:
        """What to read, as the streaming layer takes it."""
        return [f"das:{self.das}"] if self.das else list(self.files)


class WeightSettings(Settings):
    """How much events count.

    Attributes:
        expression: Each event's weight: an expression over branches, ``xsec`` (pb), ``lumi`` (1/pb) and
            ``sum_weights``. Left out, 1.
        balance: ``none``, or ``classes``: all classes count the same in training.
        negative: What becomes of negative weights in training: they ``keep`` their sign, count by their
            ``absolute`` value, or as ``zero``. Must be said where there are some.
    """

    expression: str | None = None
    balance: Literal["none", "classes"] = "none"
    negative: Literal["keep", "absolute", "zero"] | None = None


class TaskSettings(Settings):
    """What the model is to learn.

    Attributes:
        kind: ``binary``, ``multiclass`` or ``regression``; left out, as the labels are: ``regression`` for
            several targets, ``multiclass`` for more than two numbers, else ``binary``.
        classes: Names of the classes in the order of their numbers; left out, those of their datasets.
        targets: Names of the targets; left out, those of their branches.
    """

    kind: TaskKind | None = None
    classes: Names = ()
    targets: Names = ()


class SplitSettings(Settings):
    """Fractions of the events, split by a hash so that an event never changes side.

    Attributes:
        train: What the model learns from; left out, the rest.
        validation: What it is judged by after each epoch.
        test: What is not touched.
        key: Branches that identify an event; left out, run, luminosity block and event where all files have
            them, and else file and entry.
    """

    train: float | None = Field(default=None, gt=0, le=1)
    validation: float = Field(default=0.2, gt=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    key: Names | None = None

    @model_validator(mode="after")
    def _check(self) -> SplitSettings:
        rest = self.validation + self.test
        if rest >= 1 or (self.train is not None and self.train + rest > 1 + 1e-9):
            raise ValueError("the fractions must leave something for train and sum to at most 1")
        return self

    @property
    def parts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The intervals of [0, 1) for training and validation."""
        train = 1.0 - self.validation - self.test if self.train is None else self.train
        return (0.0, train), (train, _upper(train + self.validation))

    @property
    def held_out(self) -> tuple[float, float]:
        """The interval of what no model has been judged by: the test part, or else that for validation."""
        validation = self.parts[1]
        return (validation[1], _upper(validation[1] + self.test)) if self.test else validation


def _upper(stop: float) -> float:
    # 0.7 + 0.3 may fall short of 1 by rounding, and the hash's last interval must reach it.
    return 1.0 if stop > 1 - 1e-9 else stop


class ReportSettings(Settings):
    """What the report draws beside the usual.

    Attributes:
        against: Branches, also defined ones, that the score is drawn against, whether the model sees them or
            not; left out, the two most important inputs.
    """

    against: Names = ()


class PublishSettings(Settings):
    """Where the package goes when training is done.

    Attributes:
        name: Name in the repository; left out, the job's.
        repository: Folder; left out, what the command or ``MLAAS_REPOSITORY`` says, or ``./models``.
        aliases: Further names of the version, such as ``candidate``; they move to it.
        if_better_than: Publish only what is significantly better on the held-out events than this version
            (``3``) or alias (``production``) of the name; or than nothing, when there is none yet.
        unless_worse_than: Publish only what is not significantly worse than this version or alias.
    """

    name: str | None = None
    repository: str | None = None
    aliases: Names = ()
    if_better_than: str | int | None = None
    unless_worse_than: str | int | None = None


class ModelSettings(Settings):
    """The model, and what it is built with.

    Attributes:
        name: ``mlp``, ``masked_linear``, ``deepsets``, ``cnn`` or ``trees``; a file ``my_models.py`` with
            ``model(input_dim)``; or ``package.module:function``. Left out, the framework's usual one.
    """

    # its other keys are the model's own
    model_config = ConfigDict(frozen=True, extra="allow")

    name: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What else it is built with."""
        return dict(self.__pydantic_extra__ or {})
