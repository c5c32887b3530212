from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mlaas_ray.training import EpochReport
from mlaas_ray.workflows.logs import logged
from mlaas_ray.workflows.run_folder import RunFolder


def report(epoch: int, loss: float = 0.5) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        epochs=3,
        loss=loss,
        validation_loss=loss + 0.25,
        scores={"auc": 0.75, "accuracy": 0.5},
        learning_rate=0.125,
        events_per_s=1000.0,
        seconds=2.0,
        waited=0.25,
        left_s=4.0,
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read curves as TensorBoard does: steps and values by name, of all files of a folder."""
    from tensorboardX.proto import event_pb2

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            # length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(content[place : place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            place += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.read("history.jsonl") or "").splitlines()]


def test_an_epoch_is_a_line_for_people_programs_and_tensorboard(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with logged(run) as logs:
        logs.add(report(1))
        # at once, not at the end: somebody may be looking
        assert len(rows(run)) == 1
        logs.add(report(2, loss=0.25))
    first, second = rows(run)
    assert first["loss"] == 0.5
    assert (second["epoch"], second["loss"], second["validation_auc"]) == (2, 0.25, 0.75)
    table = list(csv.DictReader((run.read("history.csv") or "").splitlines()))
    assert [{key: float(value) for key, value in row.items()} for row in table] == rows(run)
    curves = scalars(tmp_path / "tensorboard")
    assert curves["loss/training"] == [(1, 0.5), (2, 0.25)]
    assert curves["loss/validation"] == [(1, 0.75), (2, 0.5)]
    assert curves["scores/validation_auc"] == [(1, 0.75), (2, 0.75)]
    assert curves["run/events_per_s"] == [(1, 1000.0), (2, 1000.0)]


def test_a_run_that_goes_on_adds_to_what_there_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with logged(run) as logs:
        logs.add(report(1))
        logs.add(report(2))
    with logged(run) as logs:
        # the second epoch was not saved: it is trained, and told, again
        logs.add(report(2, loss=0.125))
        logs.add(report(3))
    assert [(row["epoch"], row["loss"]) for row in rows(run)] == [(1, 0.5), (2, 0.125), (3, 0.5)]
    assert len((run.read("history.csv") or "").splitlines()) == 4
    assert scalars(tmp_path / "tensorboard")["loss/training"][-1] == (3, 0.5)


def test_what_is_known_is_kept_when_the_block_fails(tmp_path: Path) -> None:
    def interrupted() -> None:
        with logged(RunFolder(tmp_path)) as logs:
            logs.add(report(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(rows(RunFolder(tmp_path))) == 1
    assert len(scalars(tmp_path / "tensorboard")["loss/training"]) == 1


def test_logs_of_a_run_in_an_object_store_go_there(tmp_path: Path) -> None:
    # of this process, which is all that is needed here
    run = RunFolder(f"memory://{tmp_path.name}/toy")
    with logged(run) as logs:
        logs.add(report(1))
        assert len(rows(run)) == 1
    assert (run.read("history.csv") or "").startswith("epoch,")
    store = fsspec.filesystem("memory")
    store.get(f"/{tmp_path.name}/toy/tensorboard", str(tmp_path / "board"), recursive=True)
    assert scalars(tmp_path / "board")["loss/training"] == [(1, 0.5)]


def test_a_run_that_told_nothing_writes_no_history(tmp_path: Path) -> None:
    with logged(RunFolder(tmp_path)):
        pass
    assert not (tmp_path / "history.csv").exists()
    assert not (tmp_path / "history.jsonl").exists()


def test_epochs_that_nobody_heard_of_are_written_in_the_end(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    history = [
        {k: v for k, v in asdict(report(n)).items() if k not in ("epochs", "left_s")} for n in (1, 2, 3)
    ]
    with logged(run) as logs:
        logs.add(report(1))
        logs.add(report(3))
        logs.complete(history)
    assert [(row["epoch"], row["epochs"], row["validation_auc"]) for row in rows(run)] == [
        (1, 3, 0.75),
        (2, 3, 0.75),
        (3, 3, 0.75),
    ]
    table = list(csv.DictReader((run.read("history.csv") or "").splitlines()))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
