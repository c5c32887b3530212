"""XGBoost: boosted trees grown by all workers together, exported as XGBoost's own file and as ONNX."""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.package import MODEL_PATHS, ModelFormat
from mlaas_ray.core.task import Task
from mlaas_ray.training.batches import Batch, Floats
from mlaas_ray.training.framework import INPUT, OUTPUT, Network, Setup, check_parameters
from mlaas_ray.training.group import Group
from mlaas_ray.training.settings import ScheduleSettings
from mlaas_ray.training.steps import Epoch
from mlaas_ray.training.stream import OrderedEvents

NATIVE = "model.ubj"
TREES_PER_EPOCH = 30
PREDICT_ROWS = 65536

# A job's parameters: the arguments of XGBoost's estimators, but for those that are settings of ours, and some
# names that only its own functions take.
_MORE = {
    "trees_per_epoch", "lambda", "alpha", "min_split_loss", "max_cached_hist_node", "huber_slope",
    "rate_drop", "one_drop", "skip_drop", "sample_type", "normalize_type",
}  # fmt: skip
_OURS = {
    "self", "kwargs", "learning_rate", "n_estimators", "n_jobs", "random_state", "objective", "callbacks",
    "early_stopping_rounds", "eval_metric", "feature_types", "importance_type", "missing", "verbosity",
}  # fmt: skip
_OBJECTIVES = {"binary": "binary:logistic", "multiclass": "multi:softprob"}
_LOSSES = {"mse": "reg:squarederror", "mae": "reg:absoluteerror", "huber": "reg:pseudohubererror"}


class XGBoost:
    """The framework; see :class:`mlaas_ray.training.framework.Framework`.

    An epoch is ``parameters.trees_per_epoch`` trees; other parameters go to XGBoost as they are.
    """

    name = "xgboost"
    models = ("trees",)
    tasks = ("binary", "multiclass", "regression")
    defaults = {  # noqa: RUF012
        "epochs": 10,
        "learning_rate": 0.1,
        "schedule": ScheduleSettings(kind="constant"),
    }
    model_format: ModelFormat = "onnx"
    collective_on_gpu = "gloo"
    by_steps = False

    def __init__(self) -> None:
        self._threads = 1
        self._seed = 0

    def prepare(self, threads: int, seed: int, precision: str) -> None:
        """Note threads and seed."""
        try:
            import xgboost
        except ImportError:
            raise ModelError(
                "the framework 'xgboost' is not installed", "pip install 'mlaas-ray[xgboost]'"
            ) from None
        xgboost.set_config(verbosity=0)
        self._threads, self._seed = threads, seed

    def network(self, setup: Setup) -> Network:
        """Make an empty forest."""
        if not setup.model.builtin:
            raise ModelError(f"xgboost trains no model of one's own ({setup.model.name})", "Leave model out")
        if setup.options:
            raise ModelError(
                f"the model 'trees' has no option {min(setup.options)!r}", "Write it into train.parameters"
            )
        import xgboost

        known = set(inspect.signature(xgboost.XGBModel).parameters) - _OURS
        check_parameters(setup, self.name, known | _MORE)
        booster = setup.settings.parameters.get("booster", "gbtree")
        if booster != "gbtree":
            raise ModelError(f"train.parameters: booster {booster!r} cannot be exported", "Use gbtree")
        return XGBoostNetwork(setup, self._threads, self._seed)

    def answer(self, folder: Path, file: str, x: Floats) -> npt.NDArray[Any]:
        """Load an exported file afresh and return its answers."""
        if file != NATIVE:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(
                str(folder / file), options, providers=["CPUExecutionProvider"]
            )
            return np.asarray(session.run([OUTPUT], {INPUT: x})[0], dtype=np.float32)
        import xgboost

        booster = xgboost.Booster(model_file=str(folder / file))
        return _answers(_task_of(booster), [booster], x)


class XGBoostNetwork(Network):
    """A forest that grows; see :class:`mlaas_ray.training.framework.Network`."""

    trial = False

    def __init__(self, setup: Setup, threads: int, seed: int) -> None:
        own = dict(setup.settings.parameters)
        self._trees = int(own.pop("trees_per_epoch", TREES_PER_EPOCH))
        self._task = setup.task
        self._group = setup.group
        self._width = setup.width
        self._seed = seed
        self._parameters = {
            "objective": _OBJECTIVES.get(setup.task.kind) or _LOSSES[setup.task.loss],
            "eta": setup.settings.learning_rate,
            "nthread": threads,
            "tree_method": "hist",
            "disable_default_eval_metric": True,
            "device": "cuda" if setup.settings.gpus_per_worker else "cpu",
            **({"num_class": setup.task.classes} if setup.task.kind == "multiclass" else {}),
            **own,
        }
        # several targets: a forest each
        self._boosters: list[Any] = [None] * (len(setup.task.names) if setup.task.kind == "regression" else 1)
        self._data: list[Any] = []

    def learn(self, epoch: Epoch) -> None:
        """Grow the trees of an epoch."""
        import xgboost

        with _together(self._group):
            begun = time.perf_counter()
            if not self._data:
                events = epoch.stream.everything()
                self._data = [self._matrix(epoch, events, n) for n in range(len(self._boosters))]
            read = time.perf_counter()
            epoch.stream.waited += read - begun
            for target, data in enumerate(self._data):
                try:
                    self._boosters[target] = xgboost.train(
                        # another seed each time: with the one it has, a forest in memory goes on drawing,
                        # and one from a file draws the same rows and columns again
                        {**self._parameters, "eta": epoch.rate(0), "seed": self._seed + epoch.number},
                        data,
                        num_boost_round=self._trees,
                        xgb_model=self._boosters[target],
                    )
                except xgboost.core.XGBoostError as error:
                    raise ModelError(
                        f"xgboost cannot train: {str(error).splitlines()[0]}", "Look at train.parameters"
                    ) from None
            epoch.computed += time.perf_counter() - read
        rows = self._data[0].num_row()
        epoch.events += int(self._group.gather([rows]).sum())
        epoch.steps += self._trees
        if rows:
            parts = [booster.predict(data) for booster, data in zip(self._boosters, self._data, strict=True)]
            labels = [data.get_label() for data in self._data]
            y = self._in_units(np.stack(labels, axis=1)) if self._task.kind == "regression" else labels[0]
            answers = _shaped(self._task, parts)
            epoch.count(answers, [(y.reshape(rows, *self._task.target_shape), self._data[0].get_weight())])

    def predict(self, x: Floats) -> Floats:
        """Return the answers to raw values."""
        if self._boosters[0] is None:
            raise RuntimeError("there are no trees yet")
        return _answers(self._task, self._boosters, x)

    def save(self, folder: Path) -> None:
        """Write the trees."""
        for number, booster in enumerate(self._boosters):
            booster.save_model(str(folder / f"trees-{number}.ubj"))

    def restore(self, folder: Path) -> None:
        """Read what :meth:`save` wrote."""
        import xgboost

        self._boosters = [
            xgboost.Booster(model_file=str(folder / f"trees-{number}.ubj"))
            for number in range(len(self._boosters))
        ]

    def export(self, folder: Path) -> list[str]:
        """Write ``model.onnx``, and with one forest XGBoost's own ``model.ubj``."""
        for booster in self._boosters:
            booster.set_attr(mlaas_task=self._task.model_dump_json())
        written = [MODEL_PATHS["onnx"]]
        (folder / written[0]).write_bytes(_onnx(self._task, self._boosters, self._width))
        if len(self._boosters) == 1:
            self._boosters[0].save_model(str(folder / NATIVE))
            written.append(NATIVE)
        return written

    def _matrix(self, epoch: Epoch, events: OrderedEvents, target: int) -> Any:
        """Sort this rank's values into bins, in four passes over its events (on GPUs two).

        XGBoost counts in one pass what it fills with another's values: passes must be alike in every batch.
        """
        import xgboost

        network = self

        class Events(xgboost.DataIter):
            def __init__(self) -> None:
                super().__init__()
                self.batches = network._weighted(epoch, events)

            def reset(self) -> None:
                self.batches = network._weighted(epoch, events)

            def next(self, take: Callable[..., Any]) -> bool:
                batch = next(self.batches, None)
                if batch is None:
                    return False
                take(data=_finite(batch.x), label=network._label(batch.y, target), weight=batch.weight)
                return True

        return xgboost.QuantileDMatrix(Events(), nthread=self._parameters["nthread"])

    def _weighted(self, epoch: Epoch, events: OrderedEvents) -> Iterator[Batch]:
        empty = True
        for batch in events:
            weighted = epoch.weighted(batch)
            if len(weighted) and weighted.weight.min() < 0:
                raise ModelError(
                    "xgboost takes no negative weights", "Say weights.negative: absolute, or zero"
                )
            empty = False
            yield weighted
        if empty:  # a rank without events takes part nevertheless
            none = np.zeros((0, self._width), np.float32)
            yield Batch(none, np.zeros((0, *self._task.target_shape), np.float32), np.zeros(0, np.float32))

    def _label(self, y: Floats, target: int) -> npt.NDArray[Any]:
        if self._task.kind != "regression":
            return y
        own = y.reshape(len(y), -1)[:, target].astype(np.float64)
        return (own - self._task.offset[target]) / self._task.scale[target]

    def _in_units(self, targets: npt.NDArray[Any]) -> Floats:
        return np.asarray(targets * np.asarray(self._task.scale) + np.asarray(self._task.offset)).astype(
            np.float32
        )


def _task_of(booster: Any) -> Task:
    return Task.model_validate(json.loads(booster.attr("mlaas_task")))


def _answers(task: Task, boosters: list[Any], x: Floats) -> Floats:
    """Return the answers of forests to raw values."""
    parts = [
        np.concatenate(
            [
                booster.inplace_predict(_finite(x[start : start + PREDICT_ROWS]))
                for start in range(0, max(1, len(x)), PREDICT_ROWS)
            ]
        )
        for booster in boosters
    ]
    return _shaped(task, parts)


def _shaped(task: Task, parts: list[Any]) -> Floats:
    """Bring what forests predict into the shape and units that the task wants."""
    if task.kind != "regression":
        return np.asarray(parts[0], dtype=np.float32).reshape(-1, task.outputs)
    targets = np.stack(parts, axis=1)
    return np.asarray(
        targets * np.array(task.scale, np.float32) + np.array(task.offset, np.float32), np.float32
    )


def _finite(x: Floats) -> Floats:
    """Return values with NaN for what is infinite, which XGBoost refuses."""
    infinite = np.isinf(x)
    return np.asarray(np.where(infinite, np.nan, x), dtype=np.float32) if infinite.any() else x


@contextlib.contextmanager
def _together(group: Group) -> Iterator[None]:
    """Let XGBoost sum over the ranks, for a while."""
    if group.size == 1:
        yield
        return
    from xgboost import collective
    from xgboost.tracker import RabitTracker

    tracker = None
    arguments: dict[str, Any] = {}
    if group.rank == 0:
        import ray

        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        tracker = RabitTracker(host_ip=address, n_workers=group.size)
        tracker.start()
        arguments = tracker.worker_args()
    arguments = group.from_first_object(arguments)
    with collective.CommunicatorContext(**arguments, dmlc_task_id=f"{group.rank:06d}"):
        yield
    if tracker is not None:
        tracker.wait_for()


def _onnx(task: Task, boosters: list[Any], width: int) -> bytes:
    """Convert forests to one ONNX model: raw values in, answers out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxmltools.convert import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    largest = numpy_helper.from_array(np.array(np.finfo(np.float32).max), "largest")
    nothing = numpy_helper.from_array(np.array(np.nan, np.float32), "nothing")
    nodes = [
        helper.make_node("Abs", [INPUT], ["size"]),
        helper.make_node("LessOrEqual", ["size", "largest"], ["valid"]),
        helper.make_node("Where", ["valid", INPUT, "nothing"], ["values"]),
    ]
    constants = [largest, nothing]
    imports: dict[str, int] = {}
    answers = []
    for number, booster in enumerate(boosters):
        made = convert_xgboost(
            booster, initial_types=[("values", FloatTensorType([None, width]))], target_opset=15
        )
        made = onnx.compose.add_prefix(made, f"forest{number}_", rename_inputs=False)
        imports |= {one.domain: one.version for one in made.opset_import}
        nodes += made.graph.node
        constants += made.graph.initializer
        answers.append(made.graph.output[-1].name)
    if task.kind == "binary":  # the converter gives both classes' probabilities
        constants.append(numpy_helper.from_array(np.array([1], np.int64), "signal"))
        nodes.append(helper.make_node("Gather", [answers[0], "signal"], [OUTPUT], axis=1))
    elif task.kind == "multiclass":
        nodes.append(helper.make_node("Identity", answers, [OUTPUT]))
    else:
        constants.append(numpy_helper.from_array(np.array(task.scale, np.float32), "scale"))
        constants.append(numpy_helper.from_array(np.array(task.offset, np.float32), "offset"))
        nodes.append(helper.make_node("Concat", answers, ["learnt"], axis=1))
        nodes.append(helper.make_node("Mul", ["learnt", "scale"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["scaled", "offset"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "trees",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["events", width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["events", task.outputs])],
        constants,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": 15, **imports}.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    for key, value in {"task": task.kind, "names": json.dumps(list(task.names))}.items():
        helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, key: value})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
