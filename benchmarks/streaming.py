"""What streaming costs: events of ROOT files to rows in Ray's blocks, and inside a training worker.

Five ways to the same rows, each in processes of its own, in one run:

- plain: one process, own decoding and one compiled loop, no Ray (benchmarks/loops.py);
- awkward: what one writes today: uproot, then ak.pad_none, ak.fill_none and numpy for every branch;
- dataset: read_root's tasks read, and this process takes the blocks out of the object store;
- cluster: the same tasks read for a training worker, which takes the blocks of its shard;
- workers: a training worker reads its own blocks.

Each is asked for the CPU seconds of its whole process tree: all of them, and those while it runs, from the
first rows to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_TRAIN_ENABLE_STATE_TRACKING="0")

import psutil
from rich.console import Console
from rich.table import Table

WAYS = ("plain", "awkward", "dataset", "cluster", "workers")
OBJECT_STORE = 2_000_000_000


class TreeClock:
    """CPU seconds of this process and all it starts, also of those that have ended.

    Processes are looked at twice a second, so the last moments of one that ends are not counted.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._own = psutil.Process()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self.peak = 0

    def seconds(self) -> float:
        """Return what was used so far."""
        self._look()
        return sum(self._seen.values())

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(0.5)

    def _look(self) -> None:
        with self._lock:
            memory = 0
            for process in [self._own, *self._own.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                    self._seen[process.pid, process.create_time()] = times.user + times.system
                    memory += process.memory_info().rss - getattr(process.memory_info(), "shared", 0)
                except psutil.Error:
                    continue
            self.peak = max(self.peak, memory + _shared())


def _shared() -> int:
    """Return bytes of shared memory in use: the object store's."""
    usage = os.statvfs("/dev/shm")
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


Told = Callable[[int], None]


def measure(way: Callable[[Told], None]) -> dict[str, float]:
    """Run a way through; it tells the number of events of each batch of rows."""
    clock = TreeClock()
    # what Python and the imports took is part of the whole
    begun = psutil.Process().create_time()
    counts: list[int] = []
    running = (0.0, 0.0)

    def tell(count: int) -> None:
        nonlocal running
        counts.append(count)
        if len(counts) == 1:
            running = (time.time(), clock.seconds())

    way(tell)
    ended, cpu = time.time(), clock.seconds()
    events, steady = sum(counts), sum(counts[1:])
    return {
        "events": events,
        "cpu_s": cpu,
        "wall_s": ended - begun,
        "cpu_s_per_mev": cpu / events * 1e6,
        "events_per_s": events / (ended - begun),
        "running_cpu_s_per_mev": (cpu - running[1]) / steady * 1e6,
        "running_events_per_s": steady / (ended - running[0]),
        "peak_bytes": clock.peak,
    }


def plain(files: list[str], features: Any, cpus: int, tell: Told) -> None:
    """Run the plain loop."""
    import loops

    loops.plain(files, features, lambda rows: tell(len(rows)))


def awkward(files: list[str], features: Any, cpus: int, tell: Told) -> None:
    """Run the usual loop."""
    import loops

    loops.awkward(files, features, lambda rows: tell(len(rows)))


def dataset(files: list[str], features: Any, cpus: int, tell: Told) -> None:
    """Take blocks out of the object store."""
    import ray

    from mlaas_ray.streaming import read_root

    _start(cpus)
    ray.data.DataContext.get_current().enable_progress_bars = False
    events = read_root(files, "Events", features=features, shuffle=True, reading=_reading())
    for batch in events.iter_batches(batch_size=None, batch_format="pyarrow"):
        tell(batch.num_rows)


def workers(files: list[str], features: Any, cpus: int, tell: Told) -> None:
    """Read in the worker of a TorchTrainer."""
    from mlaas_ray.streaming import Sample, first_pass, planned_events

    _start(cpus)
    found = first_pass([Sample(files, "Events")], features=features, reading=_reading())
    _trained({"events": planned_events(found, shuffle=True)}, {"CPU": cpus}, {}, tell)


def cluster(files: list[str], features: Any, cpus: int, tell: Told) -> None:
    """Read by Ray Data's tasks, for the worker of a TorchTrainer, which has a CPU of its own to Ray."""
    from mlaas_ray.streaming import Sample, cluster_events, first_pass

    _start(cpus + 1)
    found = first_pass([Sample(files, "Events")], features=features, reading=_reading())
    events = cluster_events(found, shuffle=True, name="train")
    _trained({"begin": events.begin}, {"CPU": 1}, {"train": events.dataset}, tell)


def _trained(
    config: dict[str, Any], resources: dict[str, float], datasets: dict[str, Any], tell: Told
) -> None:
    """Run a worker, which writes down its counts as they come."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from mlaas_ray.training.shards import WholeShards

    with tempfile.TemporaryDirectory() as storage:
        told = Path(storage, "told")
        trainer = TorchTrainer(
            _consume,
            train_loop_config={**config, "told": str(told)},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker=resources),
            run_config=RunConfig(storage_path=storage),
            datasets=datasets,
            dataset_config=WholeShards(),
        )
        thread = threading.Thread(target=trainer.fit)
        thread.start()
        position = 0
        while thread.is_alive() or (told.exists() and told.stat().st_size > position):
            text = told.read_text()[position:] if told.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            position += len(whole)
            for line in whole.splitlines():
                tell(int(line))
            time.sleep(0.1)


def _reading() -> Any:
    """Let the files be links to a few, see :func:`repeated`."""
    from mlaas_ray.streaming import ReadingSettings

    return ReadingSettings(allow_duplicates=True)


def _consume(config: dict[str, Any]) -> None:
    if "begin" in config:
        from mlaas_ray.training.events import Shards
        from mlaas_ray.training.group import Group
        from mlaas_ray.training.shards import tables

        given = tables(Shards("train", config["begin"]), Group())
    else:
        events = config["events"]
        given = events.tables(0, range(events.blocks(0)))
    with open(config["told"], "w", buffering=1) as told:
        for table in given:
            told.write(f"{table.num_rows}\n")


def _start(cpus: int) -> None:
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def repeated(files: list[str], events: int, folder: Path) -> list[str]:
    """Return so many links to the files in turn that they hold the events asked for."""
    import uproot

    each = sum(uproot.open(file)["Events"].num_entries for file in files)
    links = []
    for number in range(-(-events // each)):
        for file in files:
            link = folder / f"{number:05d}-{Path(file).name}"
            os.link(file, link)
            links.append(str(link))
    return links


def _spec(files: list[str], folder: Path) -> Path:
    """Make the first pass, which all ways are given."""
    path = folder / "features.json"
    script = (
        "import sys, ray; from mlaas_ray.streaming import Sample, first_pass; "
        "from mlaas_ray.core.inputs import Inputs; "
        "ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False); "
        "found = first_pass([Sample(sys.argv[2:], 'Events')], "
        "Inputs(exclude=('run', 'event', 'luminosityBlock'))); "
        "open(sys.argv[1], 'w').write(found.features.to_json())"
    )
    subprocess.run([sys.executable, "-c", script, str(path), *files], check=True, stderr=subprocess.DEVNULL)
    return path


def _simulated(folder: Path) -> list[str]:
    """Write a file, for who gives none."""
    import decoding

    return [str(next(iter(decoding.write_files(folder))))]


def once(way: str, files: list[str], features: Path, cpus: int) -> dict[str, float]:
    """Measure one way in a new process."""
    listing = features.parent / "files.json"
    listing.write_text(json.dumps(files))
    command = [sys.executable, __file__, "--way", way, "--features", str(features), "--cpus", str(cpus)]
    done = subprocess.run(
        [*command, str(listing)], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(files: list[str], events: int, usual: int, repeats: int) -> dict[str, Any]:
    """Measure all ways in turn, and return medians and their ratios."""
    # Beside the files: links do not cross file systems.
    with tempfile.TemporaryDirectory(dir=Path(files[0]).parent) as name:
        folder = Path(name)
        features = _spec(files, folder)
        many = repeated(files, events, folder)
        few = many[: max(len(files), -(-len(many) * usual // events))]
        runs: dict[str, list[dict[str, float]]] = {}
        # in turn, so that a disturbance of the machine meets all of them
        for number in range(repeats):
            for way, given, cpus in (
                ("plain", many, 1),
                ("awkward", few, 1),
                ("dataset", many, 2),
                ("cluster", many, 2),
                ("cluster_1_cpu", many, 1),
                ("workers", many, 2),
            ):
                result = once(way.removesuffix("_1_cpu"), given, features, cpus)
                runs.setdefault(way, []).append(result)
                print(f"{number + 1}/{repeats} {way}: {result}", file=sys.stderr)
    result: dict[str, Any] = {
        way: {key: statistics.median(run[key] for run in own) for key in own[0]} for way, own in runs.items()
    }
    for kind, key in (("", "cpu_s_per_mev"), ("running_", "running_cpu_s_per_mev")):
        cost = {way: result[way][key] for way in runs}
        for way in ("dataset", "cluster", "workers"):
            result[f"{kind}{way}_over_plain"] = cost[way] / cost["plain"]
        result[f"{kind}awkward_over_workers"] = cost["awkward"] / cost["workers"]
    return result


def show(result: dict[str, Any]) -> None:
    """Print the medians as a table."""
    table = Table("", "CPU-s/Mev", "events/s", "running: CPU-s/Mev", "events/s", "peak GB")
    for way, numbers in result.items():
        if isinstance(numbers, dict):
            table.add_row(
                way,
                f"{numbers['cpu_s_per_mev']:.2f}",
                f"{numbers['events_per_s']:,.0f}",
                f"{numbers['running_cpu_s_per_mev']:.2f}",
                f"{numbers['running_events_per_s']:,.0f}",
                f"{numbers['peak_bytes'] / 1e9:.2f}",
            )
    Console().print(table)
    for name, value in result.items():
        if not isinstance(value, dict):
            print(f"{name}: {value:.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="ROOT files with a tree Events, read over and over")
    parser.add_argument("--events", type=int, help="to read in all; default: 3 million of given files")
    parser.add_argument("--awkward-events", type=int, default=200_000, help="for the slow way, per repeat")
    parser.add_argument("--repeats", type=int, help="medians of so many; default: 5 with given files")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--features", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cpus", type=int, default=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        from mlaas_ray.core import FeatureSpec

        features = FeatureSpec.from_json(options.features.read_text())
        files = json.loads(Path(options.files[0]).read_text())
        way = globals()[options.way]
        print(json.dumps(measure(lambda tell: way(files, features, options.cpus, tell))))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = options.files or _simulated(Path(folder))
        result = compare(
            [str(Path(file).absolute()) for file in files],
            options.events or (3_000_000 if options.files else 300_000),
            options.awkward_events,
            options.repeats or (5 if options.files else 1),
        )
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
