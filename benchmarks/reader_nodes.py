"""Reading by Ray Data for a trainer: one reader node, then two; a small object store; the driver's memory.

Each node is a raylet of its own on this machine, with one CPU; the head's is the trainer's, who only counts.
So two readers need two cores beside what the trainer and Ray's own processes take for twice the events.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_TRAIN_ENABLE_STATE_TRACKING="0")


def read(files: list[str], readers: int, store: int, events: int) -> dict[str, Any]:
    """Read events on a cluster of its own, and return how fast, and what memory the driver had."""
    import psutil
    import ray
    import streaming
    from ray.cluster_utils import Cluster

    from mlaas_ray.streaming import Sample, cluster_events, first_pass

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    for _ in range(readers):
        cluster.add_node(num_cpus=1, object_store_memory=store)
    ray.init(address=cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory(dir=Path(files[0]).parent) as folder:
        many = streaming.repeated(files, events, Path(folder))
        found = first_pass([Sample(many, "Events")], reading=streaming._reading(), progress=False)
        given = cluster_events(found, shuffle=True, name="train")
        told: list[tuple[float, int, int]] = []

        def tell(count: int) -> None:
            told.append((time.time(), count, psutil.Process().memory_info().rss))

        streaming._trained({"begin": given.begin}, {"CPU": 1}, {"train": given.dataset}, tell)
    ray.shutdown()
    cluster.shutdown()
    counted = sum(count for _, count, _ in told)
    # from a tenth on, when all readers are under way, to the last
    begun = next(i for i in range(len(told)) if sum(count for _, count, _ in told[: i + 1]) > counted / 10)
    steady = sum(count for _, count, _ in told[begun + 1 :])
    return {
        "events": counted,
        "events_per_s": steady / (told[-1][0] - told[begun][0]),
        "driver_mb_at_a_tenth": told[begun][2] / 1e6,
        "driver_mb_at_the_end": told[-1][2] / 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="ROOT files with a tree Events, read over and over")
    parser.add_argument("--events", type=int, default=2_000_000, help="to read in all")
    parser.add_argument("--readers", type=int, help="nodes that read; left out, one and then two")
    parser.add_argument("--store", type=int, default=1_000_000_000, help="bytes of each node's object store")
    options = parser.parse_args()
    if options.readers:
        files = [str(Path(file).absolute()) for file in options.files]
        print(json.dumps(read(files, options.readers, options.store, options.events)))
        return
    speeds = []
    for readers in (1, 2):
        command = [sys.executable, __file__, *options.files, "--readers", str(readers)]
        command += ["--events", str(options.events), "--store", str(options.store)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        speeds.append(result["events_per_s"])
        print(f"{readers} reader nodes: {result}")
    print(f"two_over_one: {speeds[1] / speeds[0]:.2f}")


if __name__ == "__main__":
    main()
