"""Readers that die: a worker, and a whole node of a cluster, in the middle of a reading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A cluster of its own wants a process of its own.
SCRIPT = """
import json, os, sys, time
import psutil, ray
from ray.cluster_utils import Cluster
from mlaas_ray.streaming import Sample, first_pass, new_record, read_events

victim, told, files = sys.argv[1], sys.argv[2], sys.argv[3:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200_000_000})
second = cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
ray.init(address=cluster.address, log_to_driver=False)


def readers():
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if "ReadRoot" in " ".join(process.info["cmdline"] or []) and ours(process):
            found.append(process)
    return found


def ours(process):
    return any(parent.pid == os.getpid() for parent in process.parents())


found = first_pass([Sample(files)])
record = new_record(found)
seen, killed = {}, 0
for number, batch in enumerate(
    read_events(found, shuffle=True, record=record).iter_batches(batch_size=None, batch_format="numpy")
):
    for event in zip(batch["file"].tolist(), batch["entry"].tolist()):
        seen[event] = seen.get(event, 0) + 1
    if number in (1, 3) and victim == "worker":
        deadline = time.monotonic() + 20
        while not (alive := readers()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in alive[:1]:
            process.kill()
            killed += 1
    if number == 1 and victim == "node":
        cluster.remove_node(second, allow_graceful=False)
        killed += 1
    time.sleep(0.05)
with open(told, "w") as file:  # Ray prints of deaths on standard output
    json.dump({"events": len(seen), "most": max(seen.values()), "killed": killed,
               "total": record.document()["total"]}, file)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.soak
@pytest.mark.parametrize("victim", ["worker", "node"])
def test_every_entry_comes_once_although_a_reader_dies(write_tree, tmp_path: Path, victim: str) -> None:
    paths = [write_tree(f"{seed}.root", events=60_000, clusters=30, seed=seed) for seed in range(4)]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), victim, str(tmp_path / "told.json"), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["killed"] > 0
    assert (told["events"], told["most"]) == (240_000, 1)
    assert told["total"]["read"] == told["total"]["planned"] == 240_000
