from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core import FeatureSpec, MlaasError
from mlaas_ray.core.errors import EmptyDataError, ExportError, FileUnreadableError, JobError, ModelError
from mlaas_ray.training import EpochReport, TrainedModel, TrainSettings, fit
from mlaas_ray.training.fit import check_workers, cpu_share, unwrap
from tests.training.conftest import toy_table

Make = Callable[..., tuple[Any, Any]]

# Ends its process once, in the forward pass of its 100th step: epoch 3 of 47 steps each.
DIES_ONCE = """
import os
from pathlib import Path
from torch import nn

class Layers(nn.Sequential):
    steps = 0

    def forward(self, x):
        Layers.steps += self.training
        died = Path({marker!r})
        if Layers.steps == 100 and not died.exists():
            died.touch()
            os._exit(1)
        return super().forward(x)

def model(n):
    return Layers(nn.Linear(n, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1), nn.Sigmoid())
"""

# Answers NaN in its 50th step: the third of the second epoch.
DIVERGES = """
from torch import nn

class Layers(nn.Sequential):
    steps = 0

    def forward(self, x):
        Layers.steps += self.training
        return super().forward(x) * (float("nan") if Layers.steps == 50 else 1.0)

def model(n):
    return Layers(nn.Linear(n, 1), nn.Sigmoid())
"""


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"batch_size": 64, "epochs": 4, "learning_rate": 3e-3, **changes})


def losses(trained: TrainedModel) -> list[tuple[float, float]]:
    return [(entry["loss"], entry["validation_loss"]) for entry in trained.metrics["history"]]


@pytest.fixture(scope="module")
def one_worker(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path_factory: pytest.TempPathFactory
) -> TrainedModel:
    return fit(
        *toy_pair(),
        toy_features,
        name="one",
        settings=settings(),
        seed=5,
        storage=tmp_path_factory.mktemp("one"),
    )


def test_the_trained_model_lies_on_storage_with_all_that_a_package_wants(one_worker: TrainedModel) -> None:
    files = {path.name for path in one_worker.folder.iterdir() if not path.name.startswith(".")}
    assert files == {"model.onnx", "model.pt2", "sample.npz", "evaluation.npz", "state", "last"}
    assert one_worker.model_format == "onnx"
    assert one_worker.signature.width == 5
    assert one_worker.events == 4 * 3000
    assert one_worker.events_per_s == pytest.approx(one_worker.events / one_worker.seconds)
    assert one_worker.metrics["validation"]["events"] == 601
    assert one_worker.metrics["training"]["events"] == 3000
    assert one_worker.metrics["validation"]["auc"] > 0.78
    assert one_worker.metrics["export_difference"].keys() == {"model.onnx", "model.pt2"}
    assert max(one_worker.metrics["export_difference"].values()) <= 1e-5
    assert [entry["epoch"] for entry in one_worker.metrics["history"]] == [1, 2, 3, 4]
    assert set(one_worker.metrics["importance"]) == {"v0", "v1", "v2", "v3", "v4"}
    # v2 separates best, by one deviation; v0 not at all
    assert one_worker.metrics["importance"]["v2"][1] > 0.05 > abs(one_worker.metrics["importance"]["v0"][1])


def test_another_program_gets_the_sample_s_answers_from_the_file(one_worker: TrainedModel) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(one_worker.folder / "model.onnx"))
    with np.load(one_worker.folder / "sample.npz") as sample:
        x, prediction = sample["x"], sample["prediction"]
    assert len(x) == 256
    assert np.isnan(x).any()
    assert session.run(["outputs"], {"inputs": x})[0] == pytest.approx(prediction, abs=1e-6)


def test_the_same_seed_gives_the_same_losses_to_the_last_digit(
    one_worker: TrainedModel, toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    reports: list[EpochReport] = []
    handler = signal.getsignal(signal.SIGINT)
    again = fit(
        *toy_pair(),
        toy_features,
        name="again",
        settings=settings(),
        seed=5,
        storage=tmp_path,
        on_epoch=reports.append,
    )
    assert losses(again) == losses(one_worker)
    assert again.folder.is_relative_to(tmp_path)
    assert [(report.epoch, report.epochs) for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(report.loss, report.validation_loss) for report in reports] == losses(again)
    assert reports[-1].scores["auc"] == again.metrics["history"][-1]["scores"]["auc"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_two_workers_learn_what_one_learns(
    one_worker: TrainedModel, toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    two = fit(*toy_pair(), toy_features, name="two", settings=settings(workers=2), seed=5, storage=tmp_path)
    assert two.events == one_worker.events
    for part in ("validation", "training"):
        assert two.metrics[part]["events"] == one_worker.metrics[part]["events"]
    assert np.array(losses(two)[1:]) == pytest.approx(np.array(losses(one_worker)[1:]), abs=0.02)
    assert two.metrics["validation"]["auc"] == pytest.approx(
        one_worker.metrics["validation"]["auc"], abs=0.02
    )
    # the sample is the same, whichever worker held its events
    with np.load(two.folder / "sample.npz") as a, np.load(one_worker.folder / "sample.npz") as b:
        assert a["entry"].tolist() == b["entry"].tolist()


def test_keras_trains_too_even_with_a_worker_more_than_there_are_blocks(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    train, validation = toy_pair(blocks=1)
    trained = fit(
        train,
        validation,
        toy_features,
        name="keras",
        framework="keras",
        settings=settings(workers=2),
        storage=tmp_path,
    )
    assert trained.model_format == "savedmodel"
    assert (trained.folder / "model" / "saved_model.pb").is_file()
    assert trained.events == 4 * 3000
    assert trained.metrics["validation"]["events"] == 601
    assert trained.metrics["validation"]["auc"] > 0.78
    assert "tensorflow" not in sys.modules


@pytest.mark.soak
def test_a_worker_killed_within_an_epoch_goes_on_from_its_last_step_as_if_nothing_had_been(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    histories = []
    for died in ("before", "meanwhile"):
        marker = tmp_path / died
        if died == "before":
            marker.touch()
        file = tmp_path / f"{died}.py"
        file.write_text(DIES_ONCE.format(marker=str(marker)))
        trained = fit(
            *toy_pair(),
            toy_features,
            name=died,
            model=str(file),
            # the 100th step is the sixth of the third epoch, one after a checkpoint
            settings=settings(max_failures=1, epochs=3, checkpoint={"every_steps": 5}),
            storage=tmp_path / "runs",
        )
        assert marker.exists()
        assert trained.events == 3 * 3000
        histories.append(losses(trained))
    assert histories[0] == histories[1]


@pytest.mark.soak
def test_a_worker_killed_without_a_failure_budget_is_a_model_error(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    file = tmp_path / "m.py"
    file.write_text(DIES_ONCE.format(marker=str(tmp_path / "marker")))
    with pytest.raises(ModelError, match="training failed with"):
        fit(*toy_pair(), toy_features, name="dies", model=str(file), settings=settings(), storage=tmp_path)


class Damaged:
    """A source whose second block cannot be read."""

    def prepare(self) -> None: ...

    def blocks(self, epoch: int) -> int:
        return 2

    def tables(self, epoch: int, blocks: Sequence[int]) -> Iterator[Any]:
        for block in blocks:
            if block == 1:
                raise FileUnreadableError("/data/a.root is cut short", "Fetch it again")
            yield toy_table(100, 1)


def test_what_reading_raises_arrives_as_itself(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    validation = toy_pair()[1]
    with pytest.raises(FileUnreadableError) as caught:
        fit(Damaged(), validation, toy_features, name="bad", settings=settings(), storage=tmp_path)
    assert str(caught.value) == "/data/a.root is cut short. Fetch it again."


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    file = tmp_path / "m.py"
    file.write_text(DIVERGES)
    with pytest.raises(ModelError) as caught:
        fit(
            *toy_pair(),
            toy_features,
            name="diverges",
            model=str(file),
            settings=settings(checkpoint={"every_steps": 10}),
            storage=tmp_path,
        )
    said = str(caught.value)
    assert "not a number in epoch 2, step 3" in said
    last = Path(said.partition("checkpoint is ")[2].partition(". ")[0])
    assert (last / "state.json").is_file()
    assert last.is_relative_to(tmp_path)


@pytest.mark.slow
def test_no_validation_events_is_an_error(toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path) -> None:
    train, validation = toy_pair()
    with pytest.raises(EmptyDataError, match="no validation events"):
        fit(train, validation.limit(0), toy_features, name="none", settings=settings(), storage=tmp_path)


@pytest.mark.parametrize(
    ("nodes", "workers", "for_reading", "share"),
    [
        ([8.0], 4, True, 1.0),
        ([2.0], 2, True, 0.5),
        ([1.0], 1, True, 0.5),
        ([4.0], 8, True, 0.37),
        ([2.0], 1, False, 2.0),
        ([2.0], 2, False, 1.0),
        ([64.0], 2, False, 8.0),
        ([4.0, 2.0], 2, False, 2.0),
    ],
)
def test_workers_share_the_smallest_node_and_leave_a_cpu_for_tasks_that_read(
    nodes: list[float], workers: int, for_reading: bool, share: float
) -> None:
    assert cpu_share(nodes, workers, for_reading=for_reading) == share


def test_any_other_error_is_named_on_one_line() -> None:
    from ray.train import WorkerGroupError

    error = WorkerGroupError("long\ntraceback", {1: ValueError("first line\nsecond line")})
    found = unwrap(error)
    assert isinstance(found, ModelError)
    assert found.message == "training failed with ValueError: first line second line"


def test_ours_is_found_among_others() -> None:
    from ray.train import WorkerGroupError

    ours = ModelError("the loss is not a number in epoch 1, step 3", "Lower it")
    error = WorkerGroupError("long", {0: RuntimeError("connection closed by peer"), 1: ours})
    found: MlaasError = unwrap(error)
    assert found is ours


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"worker": 1}]
)
def test_settings_check_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainSettings(**wrong)


# Branches on values once it has taken five steps: more than its trial takes.
GROWS_STRANGE = """
from torch import nn

class Layers(nn.Sequential):
    steps = 0

    def forward(self, x):
        Layers.steps += self.training  # of all copies
        if Layers.steps > 5 and x.abs().max() > 1e6:
            x = x.clamp(-1, 1)
        return super().forward(x)

def model(n):
    return Layers(nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
"""


@pytest.mark.slow
def test_a_trained_network_that_cannot_be_exported_is_kept_and_exported_when_it_can(
    toy_features: FeatureSpec, toy_pair: Make, tmp_path: Path
) -> None:
    import torch

    file = tmp_path / "m.py"
    file.write_text(GROWS_STRANGE)
    again: dict[str, Any] = {
        "name": "strange", "model": str(file), "settings": settings(epochs=2), "seed": 5,
        "storage": tmp_path / "runs", "resume": True,
    }  # fmt: skip
    reports: list[EpochReport] = []
    with pytest.raises(ExportError) as caught:
        fit(*toy_pair(), toy_features, **again, on_epoch=reports.append)
    assert "m.py, line 9: the network branches on the events' values" in caught.value.message
    kept = Path(caught.value.message.partition("the trained network is kept in ")[2])
    weights = torch.load(kept / "torch.pt", weights_only=True)["averaged"]
    assert any(name.endswith("body.0.weight") for name in weights)

    file.write_text(GROWS_STRANGE.replace("1e6:", "1e6 and False:"))
    later: list[EpochReport] = []
    trained = fit(*toy_pair(), toy_features, **again, on_epoch=later.append)
    assert later == []
    assert losses(trained) == [(report.loss, report.validation_loss) for report in reports]
    state = torch.load(trained.folder / "state" / "torch.pt", weights_only=True)["network"]
    assert all(torch.equal(state[name], values) for name, values in weights.items())
    assert max(trained.metrics["export_difference"].values()) < 1e-5


@pytest.mark.usefixtures("ray_local")  # of four CPUs
@pytest.mark.parametrize(
    ("wanted", "for_reading", "message"),
    [
        ({"workers": 5, "cpus_per_worker": 1}, False, "there is room for 4 of 5 workers of 1 CPU each"),
        ({"workers": 2, "cpus_per_worker": 3}, False, "there is room for 1 of 2 workers of 3 CPUs each"),
        ({"workers": [5, 9], "cpus_per_worker": 1}, False, "there is room for 4 of 5 workers"),
        ({"gpus_per_worker": 99}, False, "there is room for 0 of 1 workers of 99 GPUs each: .* has 4 CPUs"),
        ({"workers": 4, "cpus_per_worker": 1}, True, "4 workers of 1 CPU each leave no CPU for the tasks"),
    ],
)
def test_workers_for_which_there_will_never_be_room_are_refused_at_once(
    wanted: dict[str, Any], for_reading: bool, message: str
) -> None:
    with pytest.raises(JobError, match=message):
        check_workers(TrainSettings.of(wanted, "test"), for_reading=for_reading)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("wanted", [{}, {"workers": 4, "cpus_per_worker": 1}, {"workers": [2, 8]}])
def test_workers_for_which_there_is_room_are_not(wanted: dict[str, Any]) -> None:
    check_workers(TrainSettings.of(wanted, "test"))
    check_workers(TrainSettings.of(wanted | {"cpus_per_worker": 0.5}, "test"), for_reading=True)
