"""Job: what a training job file may say, checked before a byte is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from mlaas_ray.core.errors import JobError, LabelError
from mlaas_ray.core.inputs import Inputs, InputSettings, Names
from mlaas_ray.core.location import locate
from mlaas_ray.core.package import check_name
from mlaas_ray.core.prepare import check_syntax
from mlaas_ray.core.settings import Settings
from mlaas_ray.streaming import ReadingSettings, Sample
from mlaas_ray.training import TrainSettings


class DatasetSettings(Settings):
    """One dataset: files of one class.

    Attributes:
        files: Paths, globs, folders, text files of them, URLs, or ``/store/…`` names.
        das: Name of a dataset in CMS's catalogue, in place of files.
        tree: Name of the tree; left out, the only one of each file, or ``Events`` among several.
        label: 0 for background, 1 for signal.
    """

    files: Names = ()
    das: str | None = None
    tree: str | None = None
    label: int

    @model_validator(mode="after")
    def _check(self) -> DatasetSettings:
        if bool(self.files) == bool(self.das):
            raise ValueError("give either files or das")
        return self

    @property
    def names(self) -> list[str]:
        """What to read, as the streaming layer takes it."""
        return [f"das:{self.das}"] if self.das else list(self.files)


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
        # 0.7 + 0.3 may fall short of 1 by rounding, and the hash's last interval must reach it.
        stop = train + self.validation
        return (0.0, train), (train, 1.0 if stop > 1 - 1e-9 else stop)


class PublishSettings(Settings):
    """Where the package goes when training is done.

    Attributes:
        name: Name in the repository; left out, the job's.
        repository: Folder; left out, what the command or ``MLAAS_REPOSITORY`` says, or ``./models``.
    """

    name: str | None = None
    repository: str | None = None


class Job(Settings):
    """A training job.

    Attributes:
        name: Name of the model.
        seed: Of the split, the order and the weights at the start.
        datasets: By name.
        mixing: Parts of the datasets in every block of events: ``natural`` for what there is of each,
            ``equal``, or numbers by name.
        reading: How files are read, and what may go wrong meanwhile.
        define: New branches by name: expressions over the file's, and over those defined before.
        select: Expression: only events for which it is true are read.
        inputs: What the model sees.
        split: What it is judged by.
        model: ``mlp``, a file ``my_models.py`` with ``model(input_dim)``, or ``package.module:function``.
        framework: ``torch`` or ``keras``.
        train: How it learns.
        storage: Folder or URL of runs: checkpoints and packages.
        publish: Where the package goes; left out, it is only written.
    """

    name: str = "model"
    seed: int = Field(default=0, ge=0)
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    mixing: Literal["natural", "equal"] | dict[str, float] = "natural"
    reading: ReadingSettings = ReadingSettings()
    define: dict[str, str] = Field(default_factory=dict)
    select: str | None = None
    inputs: InputSettings = InputSettings()
    split: SplitSettings = SplitSettings()
    model: str = "mlp"
    framework: Literal["torch", "keras"] = "torch"
    train: TrainSettings = TrainSettings()
    storage: str = "runs"
    publish: PublishSettings | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Job:
        for name in (self.name, self.publish.name if self.publish else None):
            if name is not None:
                check_name(name)
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Job:
        """Read a YAML (or JSON) job file.

        Paths in it are looked for from the current folder, and then from the job file's own.

        Raises:
            JobError: When there is no such file, or something in it is wrong.
            LabelError: When the labels are of one class only, or not 0 and 1.
        """
        file = Path(path)
        what = f"the job file {file}"
        try:
            content = yaml.safe_load(file.read_text())
        except OSError as error:
            raise JobError(f"cannot read {what}: {error.strerror}", "Check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise JobError(f"{what} is not YAML: {' '.join(str(error).split())}", "Correct it") from None
        job = cls.of(content, what)
        job.check_labels()
        check_syntax(job.define, job.select, job.inputs.objects)
        return job._resolved(file.absolute().parent)

    def check_labels(self) -> None:
        """Refuse labels that no binary classifier can be trained on.

        Raises:
            LabelError: When there is one class only, or a label that is not 0 or 1.
        """
        labels = {name: dataset.label for name, dataset in self.datasets.items()}
        strange = {name: label for name, label in labels.items() if label not in (0, 1)}
        if strange:
            name, label = next(iter(strange.items()))
            raise LabelError(
                f"dataset {name!r} has the label {label}", "Use 0 for background and 1 for signal"
            )
        if len(set(labels.values())) < 2:
            only = next(iter(labels.values()))
            raise LabelError(
                f"every dataset ({', '.join(labels)}) has the label {only}: there is nothing to tell apart",
                f"Add a dataset with label {1 - only}",
            )

    @property
    def samples(self) -> list[Sample]:
        """The datasets, as the streaming layer takes them."""
        return [Sample(d.names, d.tree, float(d.label), name) for name, d in self.datasets.items()]

    @property
    def shares(self) -> dict[str, float] | None:
        """Parts of the datasets in every block, by name; None for what there is of each."""
        if self.mixing == "natural":
            return None
        return dict.fromkeys(self.datasets, 1.0) if self.mixing == "equal" else dict(self.mixing)

    @property
    def wanted(self) -> Inputs:
        """What the model is to see, as the streaming layer takes it."""
        return Inputs(**dict(self.inputs), define=self.define, select=self.select)

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of their labels, made of the datasets' names."""
        return ["+".join(name for name, d in self.datasets.items() if d.label == label) for label in (0, 1)]

    def _resolved(self, folder: Path) -> Job:
        """Find relative paths that are not there from the current folder beside the job file."""
        datasets = {
            name: dataset.model_copy(update={"files": tuple(_beside(file, folder) for file in dataset.files)})
            for name, dataset in self.datasets.items()
        }
        model = _beside(self.model, folder) if self.model.endswith(".py") else self.model
        return self.model_copy(update={"datasets": datasets, "model": model})


def _beside(name: str, folder: Path) -> str:
    location = locate(name)
    path = Path(location.path)
    if not location.is_local or path.is_absolute() or path.exists():
        return name
    beside = folder / path
    if beside.exists() or (location.is_pattern and not any(Path().glob(name)) and any(folder.glob(name))):
        return str(beside)
    return name
