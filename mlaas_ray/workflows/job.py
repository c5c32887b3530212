"""Job: what a training job file may say, checked before a byte is read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from mlaas_ray.core.errors import JobError, LabelError, nearest
from mlaas_ray.core.expressions import Expression
from mlaas_ray.core.inputs import Inputs, InputSettings
from mlaas_ray.core.package import check_name
from mlaas_ray.core.prepare import check_syntax
from mlaas_ray.core.settings import Settings, word
from mlaas_ray.core.task import TaskKind
from mlaas_ray.repository import ModelVersion, check_alias
from mlaas_ray.streaming import ReadingSettings, Sample
from mlaas_ray.streaming.sources import beside
from mlaas_ray.training import TrainSettings
from mlaas_ray.training.frameworks import find_framework, find_model, load_framework
from mlaas_ray.workflows.overrides import changed
from mlaas_ray.workflows.sections import (
    DatasetSettings,
    LabelSettings,
    ModelSettings,
    PublishSettings,
    ReportSettings,
    SplitSettings,
    SumSettings,
    TaskSettings,
    WeightSettings,
)

# 1/fb in 1/pb: cross sections are in pb, and their product is a number of events.
_PB_PER_FB = 1000.0


class Job(Settings):
    """A training job.

    Attributes:
        name: Name of the model.
        seed: Of the split, the order and the weights at the start.
        datasets: By name.
        lumi: Integrated luminosity in 1/fb, for ``weights``.
        mixing: Parts of the datasets in every block of events: ``natural`` for what there is of each,
            ``equal``, or numbers by name.
        reading: How files are read, and what may go wrong meanwhile.
        define: New branches by name: expressions over the file's, and over those defined before.
        select: Expression: only events for which it is true are read.
        inputs: What the model sees.
        weights: How much events count; an expression alone will do.
        task: What the model is to learn; its kind alone will do.
        split: What it is judged by.
        model: Its name, and what it is built with.
        framework: ``torch``, ``keras``, ``xgboost``, or a file or function of one's own.
        train: How it learns.
        report: What the report draws beside the usual.
        storage: Folder or URL of runs: checkpoints and packages.
        publish: Where the package goes; left out, it is only written.
    """

    name: str = "model"
    seed: int = Field(default=0, ge=0)
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    lumi: float | None = Field(default=None, gt=0)
    mixing: Literal["natural", "equal"] | dict[str, float] = "natural"
    reading: ReadingSettings = ReadingSettings()
    define: dict[str, str] = Field(default_factory=dict)
    select: str | None = None
    inputs: InputSettings = InputSettings()
    weights: Annotated[WeightSettings, word("expression")] = WeightSettings()
    task: Annotated[TaskSettings, word("kind")] = TaskSettings()
    split: SplitSettings = SplitSettings()
    model: Annotated[ModelSettings, word("name")] = ModelSettings()
    framework: str = "torch"
    train: TrainSettings = TrainSettings()
    report: ReportSettings = ReportSettings()
    storage: str = "runs"
    publish: PublishSettings | None = None

    @model_validator(mode="after")
    def _check_names(self) -> Job:
        check_name(self.name)
        wish = self.publish or PublishSettings()
        if wish.name is not None:
            check_name(wish.name)
        for alias in wish.aliases:
            check_alias(alias)
        for rival in (wish.if_better_than, wish.unless_worse_than):
            if rival is not None:
                ModelVersion.parse(f"{self.name}:{rival}")
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str], changes: Sequence[str] = ()) -> Job:
        """Read a YAML (or JSON) job file.

        Paths in it are looked for from the current folder, and then from the job file's own.

        Args:
            path: The file.
            changes: What to change of it, as in ``train.epochs=3``.

        Raises:
            JobError: When there is no such file, or something in it is wrong.
            LabelError: When the labels are of one class only, or do not fit the task.
        """
        file = Path(path)
        what = f"the job file {file}"
        try:
            content = yaml.safe_load(file.read_text())
        except OSError as error:
            raise JobError(f"cannot read {what}: {error.strerror}", "Check the path") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise JobError(f"{what} is not YAML: {' '.join(str(error).split())}", "Correct it") from None
        return cls.of(changed(content, changes), what).checked(file.absolute().parent)

    def checked(self, folder: Path) -> Job:
        """Check what can be checked without a file, and find relative paths.

        Args:
            folder: Where paths are looked for that are not there from the current folder.

        Raises:
            JobError: When something is wrong.
            LabelError: When the labels are of one class only, or do not fit the task.
            ModelError: When there is no such model.
        """
        check_syntax(self.define, self.select, self.inputs.objects)
        self.check_labels()
        self._check_weights()
        strange = sorted(set(self.shares or ()) - set(self.datasets))
        if strange:
            raise JobError(
                f"mixing names {strange[0]!r}, which is no dataset", nearest(strange[0], self.datasets)
            )
        job = self._resolved(folder)
        job._check_framework()
        return job

    def check_labels(self) -> None:
        """Refuse labels that nothing can be learnt from.

        Raises:
            JobError: When the labels do not fit the task.
            LabelError: When there is one class only, or a label that is no class's number.
        """
        targets = {name: len(self._label_texts(name)) or 1 for name in self.datasets}
        if len(set(targets.values())) > 1:
            raise JobError("the datasets have labels of different numbers of targets", "Give all the same")
        for name in self.datasets:
            for text in self._label_texts(name):
                Expression.parse(text, f"datasets.{name}.label")
        if self.kind == "regression":
            return
        if max(targets.values()) > 1:
            raise JobError(f"several targets are no {self.kind} task", "Say task: regression")
        numbers = {name: d.label for name, d in self.datasets.items() if isinstance(d.label, float)}
        count = self.class_count
        self._check_classes()
        for name, label in numbers.items():
            if label != int(label) or not 0 <= label < count:
                raise LabelError(
                    f"dataset {name!r} has the label {label:g}",
                    f"Classes are numbered from 0 to {count - 1}"
                    + (": 0 for background and 1 for signal" if count == 2 else ""),
                )
        if len(numbers) < len(self.datasets):
            return  # the others' are in the files
        absent = sorted(set(range(count)) - {int(label) for label in numbers.values()})
        if absent and len(set(numbers.values())) == 1:
            only = next(iter(numbers.values()))
            raise LabelError(
                f"every dataset ({', '.join(numbers)}) has the label {only:g}: "
                "there is nothing to tell apart",
                f"Add a dataset with label {absent[0]}",
            )
        if absent:
            raise LabelError(f"no dataset has the label {absent[0]}", "Number the classes from 0 on")

    def _check_classes(self) -> None:
        """Refuse names of classes, or a kind of task, that do not fit their number.

        Raises:
            JobError: Saying how many there are.
        """
        if len(self.task.classes) == 1:
            raise JobError(f"task.classes names one class, {self.task.classes[0]!r}", "Name all of them")
        if self.kind == "binary" and self.class_count > 2:
            raise JobError(f"{self.class_count} classes are no binary task", "Say task: multiclass")
        if self.kind == "multiclass" and self.class_count < 3:
            raise JobError(
                "two classes are no multiclass task", "Say task: binary, or name all in task.classes"
            )

    @property
    def kind(self) -> TaskKind:
        """What kind of task this is."""
        if self.task.kind is not None:
            return self.task.kind
        if self.task.targets or any(len(self._label_texts(name)) > 1 for name in self.datasets):
            return "regression"
        return "multiclass" if self.class_count > 2 else "binary"

    @property
    def class_count(self) -> int:
        """How many classes there are, as far as the job tells; 2 at least."""
        if self.task.classes:
            return max(2, len(self.task.classes))
        labels = [d.label for d in self.datasets.values() if isinstance(d.label, float)]
        return max(2, *(int(label) + 1 for label in labels), 2)

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of their labels; without others, made of the datasets' names."""
        if self.task.classes:
            return list(self.task.classes)
        by_label: dict[int, list[str]] = {}
        for name, dataset in self.datasets.items():
            if isinstance(dataset.label, float):
                by_label.setdefault(int(dataset.label), []).append(name)
        return ["+".join(by_label.get(label, [str(label)])) for label in range(self.class_count)]

    @property
    def targets(self) -> list[str]:
        """Names of the targets."""
        if self.task.targets:
            return list(self.task.targets)
        label = next(iter(self.datasets.values())).label
        if isinstance(label, float):
            return ["target"]
        return list(label.branch or (f"target_{number}" for number in range(len(label.expression))))

    def samples(self, sums: Mapping[str, float]) -> list[Sample]:
        """Return the datasets, as the streaming layer takes them.

        Args:
            sums: By dataset, the sum of the generator's weights, where it is wanted.
        """
        return [
            Sample(
                d.names,
                d.tree,
                self._label_texts(name) or float(d.label),  # type: ignore[arg-type]
                name,
                weight=self.weights.expression,
                constants=self._constants(name, sums.get(name)),
                origin=d.origin,
            )
            for name, d in self.datasets.items()
        ]

    @property
    def wanted_sums(self) -> dict[str, float | SumSettings]:
        """Where the sum of the generator's weights of each dataset comes from, if it is needed."""
        if "sum_weights" not in self._weight_names:
            return {}
        return {name: d.sum_weights for name, d in self.datasets.items() if d.sum_weights is not None}

    @property
    def shares(self) -> dict[str, float] | None:
        """Parts of the datasets in every block, by name; None for what there is of each."""
        if self.mixing == "natural":
            return None
        return dict.fromkeys(self.datasets, 1.0) if self.mixing == "equal" else dict(self.mixing)

    @property
    def wanted(self) -> Inputs:
        """What the model is to see, as the streaming layer takes it: nothing that tells the answer.

        What labels and weights are computed from is seen only when somebody asks for it by its name: a target
        such as the ratio of a true and a measured momentum is learnt from the measured one.
        """
        include = set(self.inputs.include or ())
        texts = {text for name in self.datasets for text in self._label_texts(name)}
        used = {text: Expression.parse(text, "label").names for text in texts}
        labels = {names[0] for text, names in used.items() if text in (names[0], f'branch("{names[0]}")')}
        told = sorted(labels & include)
        if told:
            raise JobError(f"inputs.include names {told[0]!r}, which is the label", "Take it out")
        behind = self._behind(name for names in used.values() for name in names)
        hidden = sorted((behind | set(self._weight_names)) - include)
        inputs = self.inputs.model_copy(update={"exclude": (*self.inputs.exclude, *hidden)})
        return Inputs(**dict(inputs), define=self.define, select=self.select)

    def _behind(self, names: Iterable[str]) -> set[str]:
        """Return names, and what those of them that are defined are made from."""
        found = set(names)
        for name, text in reversed(self.define.items()):  # each uses earlier ones only
            if name in found:
                found |= set(Expression.parse(text, f"define.{name}").names)
        return found

    def _label_texts(self, name: str) -> tuple[str, ...]:
        label = self.datasets[name].label
        return label.texts if isinstance(label, LabelSettings) else ()

    @property
    def _weight_names(self) -> tuple[str, ...]:
        text = self.weights.expression
        return Expression.parse(text, "weights").names if text is not None else ()

    def _constants(self, name: str, total: float | None) -> dict[str, float]:
        dataset = self.datasets[name]
        given = {
            "xsec": dataset.xsec,
            "lumi": None if self.lumi is None else self.lumi * _PB_PER_FB,
            "sum_weights": total if total is not None or dataset.sum_weights is None else 1.0,
        }
        return {key: value for key, value in given.items() if value is not None}

    def _check_weights(self) -> None:
        """Refuse a weight expression that lacks a number of some dataset.

        Raises:
            JobError: Naming it.
        """
        for name, dataset in self.datasets.items():
            for key, value in (
                ("xsec", dataset.xsec),
                ("sum_weights", dataset.sum_weights),
                ("lumi", self.lumi),
            ):
                if key in self._weight_names and value is None and key not in self.define:
                    where = key if key == "lumi" else f"datasets.{name}.{key}"
                    raise JobError(f"weights needs {key}, and there is no {where}", "Add it")

    def _check_framework(self) -> None:
        """Refuse a framework or a model that there is not; code of one's own is run later, where it trains.

        Raises:
            JobError: For a framework that is none, or one of ours that cannot do the task.
            ModelError: For a model that is none.
        """
        source = find_framework(self.framework)
        if not source.builtin:
            return
        framework = load_framework(source)
        find_model(self.model.name, framework)
        if self.kind not in framework.tasks:
            raise JobError(
                f"the framework {framework.name!r} cannot do {self.kind}",
                nearest(self.kind, framework.tasks),
            )

    def _resolved(self, folder: Path) -> Job:
        """Find relative paths that are not there from the current folder beside the job file."""
        places = (Path(), folder)
        datasets = {
            name: dataset.model_copy(update={"files": tuple(beside(file, places) for file in dataset.files)})
            for name, dataset in self.datasets.items()
        }
        model, framework = self.model, self.framework
        if model.name and model.name.endswith(".py"):
            model = model.model_copy(update={"name": beside(model.name, places)})
        if framework.endswith(".py"):
            framework = beside(framework, places)
        return self.model_copy(update={"datasets": datasets, "model": model, "framework": framework})
