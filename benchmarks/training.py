"""What training costs: a job's training against the plainest loop in the same framework, arrays in memory.

In one run, in turn, each in processes of its own:

- ours: ``mlaas_ray.workflows.train`` on ROOT files with one worker: reading, mixing, scores, checkpoints;
- bare: the same network, batches and events, normalised beforehand and held as one array; only its steps are
  timed, and nothing is read, mixed in windows, judged or kept meanwhile.

Both see every event in every epoch, in an order drawn anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", TF_CPP_MIN_LOG_LEVEL="3")

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

HIDDEN = (512, 512, 512)
LEARNING_RATE = 1e-3


def ours(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train a job."""
    import logging

    import ray

    from mlaas_ray.workflows import Job, train

    # the benchmark's own cluster, so that the workers' CPU seconds are those of its children
    ray.init(
        address="local",
        num_cpus=psutil.cpu_count(),
        object_store_memory=500_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    job = Job.of(_job(options, folder), "the benchmark").checked(folder)
    package = train(job, progress=False)
    spent, history = package.metrics["time"], package.metrics["history"]
    return {
        "events_per_s": package.metrics["events_per_s"],
        # without the first epoch, in which the last processes start
        "later_events_per_s": statistics.median(e["events_per_s"] for e in history[1:] or history),
        "wait_fraction": spent["waiting"] / spent["training"],
        "loss": history[-1]["loss"],
    }


def bare(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train a loop on arrays."""
    with np.load(folder / "arrays.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    loop = {"torch": _torch, "keras": _keras, "xgboost": _xgboost}[options.framework]
    seconds, loss = loop(x, y, options)
    rates = [len(x) / each for each in seconds]
    return {
        "events_per_s": len(x) * len(seconds) / sum(seconds),
        "later_events_per_s": statistics.median(rates[1:] or rates),
        "loss": loss,
    }


def _torch(x: Any, y: Any, options: argparse.Namespace) -> tuple[list[float], float]:
    import torch
    from torch import nn

    torch.set_num_threads(options.threads)
    layers: list[Any] = []
    width = x.shape[1]
    for nodes in HIDDEN:
        layers += [nn.Linear(width, nodes), nn.GELU()]
        width = nodes
    network = nn.Sequential(*layers, nn.Linear(width, 1), nn.Sigmoid()).to(options.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    inputs, targets = torch.from_numpy(x).to(options.device), torch.from_numpy(y)[:, None].to(options.device)
    seconds, total = [], 0.0
    for _ in range(options.epochs):
        begun, total = time.perf_counter(), 0.0
        order = torch.randperm(len(x), device=options.device)
        for start in range(0, len(x), options.batch_size):
            rows = order[start : start + options.batch_size]
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy(network(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        seconds.append(time.perf_counter() - begun)
    return seconds, total / len(x)


def _keras(x: Any, y: Any, options: argparse.Namespace) -> tuple[list[float], float]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)

    network = keras.Sequential([keras.layers.Dense(nodes, activation="gelu") for nodes in HIDDEN])
    network.add(keras.layers.Dense(1, activation="sigmoid"))
    network.compile(optimizer=keras.optimizers.AdamW(LEARNING_RATE), loss="binary_crossentropy")
    seconds, loss = [], 0.0
    for _ in range(options.epochs):
        begun = time.perf_counter()
        history = network.fit(x, y, batch_size=options.batch_size, epochs=1, verbose=0)
        seconds.append(time.perf_counter() - begun)
        loss = history.history["loss"][-1]
    return seconds, loss


def _xgboost(x: Any, y: Any, options: argparse.Namespace) -> tuple[list[float], float]:
    import xgboost

    parameters = {
        "objective": "binary:logistic",
        "eta": 0.1,
        "tree_method": "hist",
        "nthread": options.threads,
        "device": options.device,
    }
    data = xgboost.QuantileDMatrix(x, y)
    booster, seconds = None, []
    for _ in range(options.epochs):
        begun = time.perf_counter()
        booster = xgboost.train(parameters, data, num_boost_round=30, xgb_model=booster)
        seconds.append(time.perf_counter() - begun)
    p = np.clip(booster.predict(data), 1e-7, 1 - 1e-7)
    return seconds, float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def arrays(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Write the training events that ours sees, normalised, as one array."""
    import ray

    from mlaas_ray.streaming import first_pass, planned_events
    from mlaas_ray.training.batches import batches
    from mlaas_ray.workflows import Job

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    job = Job.of(_job(options, folder), "the benchmark").checked(folder)
    found = first_pass(job.samples({}), job.wanted, progress=False)
    events = planned_events(found, part=job.split.parts[0])
    parts = [part for table in events.tables(0, range(events.blocks(0))) for part in batches(table)]
    x = np.concatenate([np.asarray(part.x) for part in parts])
    if options.framework != "xgboost":  # which takes values as they are, NaN too
        shift, scale = _normalisation(found.features)
        x = np.nan_to_num((x - shift) * scale, copy=False)
    np.savez(folder / "arrays.npz", x=x, y=np.concatenate([np.asarray(part.y) for part in parts]))
    return {"events": float(len(x)), "columns": float(x.shape[1])}


def _normalisation(features: Any) -> tuple[Any, Any]:
    columns = [f.statistics for f in features.features for _ in f.columns]
    low = np.array([one.min for one in columns], np.float32)
    span = np.array([one.max - one.min for one in columns], np.float32)
    return low, 1 / np.where(span > 0, span, 1).astype(np.float32)


def _job(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    own = {} if options.framework == "xgboost" else {"name": "mlp", "hidden": list(HIDDEN), "dropout": 0.0}
    return {
        "name": "benchmark",
        "datasets": {
            "signal": {"files": options.signal, "label": 1},
            "background": {"files": options.background, "label": 0},
        },
        "inputs": {"exclude": ["run", "event", "luminosityBlock"]},
        "split": {"validation": 0.1},
        "model": own,
        "framework": options.framework,
        "train": {
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": 0.1 if options.framework == "xgboost" else LEARNING_RATE,
            "schedule": "constant",
            "shuffle_bytes": options.shuffle_bytes,
            "cpus_per_worker": options.threads,
            "gpus_per_worker": int(options.device == "cuda"),
        },
        "storage": str(folder / "runs"),
    }


def _simulated(folder: Path) -> tuple[list[str], list[str]]:
    from mlaas_ray.workflows.toy import write_sample

    made = [str(write_sample(folder / f"{n}.root", n, 50_000, seed=1)) for n in ("signal", "background")]
    return made[:1], made[1:]


def once(way: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run one way in a new process; add the CPU seconds of all its processes."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    for name in ("framework", "epochs", "batch_size", "shuffle_bytes", "threads", "device"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--signal", *options.signal, "--background", *options.background]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run both ways in turn, and return medians and their ratios."""
    result: dict[str, Any] = once("arrays", options, folder)
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for number in range(options.repeats):
        for way, own in runs.items():
            own.append(once(way, options, folder))
            print(f"{number + 1}/{options.repeats} {way}: {own[-1]}", file=sys.stderr)
    for way, own in runs.items():
        result[way] = {key: statistics.median(run[key] for run in own) for key in own[0]}
    pairs = list(zip(runs["ours"], runs["bare"], strict=True))
    for key, name in (("events_per_s", "ours_over_bare"), ("later_events_per_s", "later_ours_over_bare")):
        result[name] = statistics.median(a[key] / b[key] for a, b in pairs)
    result["wait_fraction"] = result["ours"]["wait_fraction"]
    return result


def show(result: dict[str, Any]) -> None:
    """Print the medians as a table."""
    print(f"{result['events']:,.0f} training events, {result['columns']:,.0f} columns")
    table = Table("", "events/s", "later epochs", "loss at the end", "wall s", "CPU s of it all")
    for way in ("ours", "bare"):
        one = result[way]
        table.add_row(
            way,
            f"{one['events_per_s']:,.0f}",
            f"{one['later_events_per_s']:,.0f}",
            f"{one['loss']:.4f}",
            f"{one['wall_s']:.1f}",
            f"{one['cpu_s']:.1f}",
        )
    Console().print(table)
    for name in ("ours_over_bare", "later_ours_over_bare", "wait_fraction"):
        print(f"{name}: {result[name]:.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signal", nargs="*", default=[], help="ROOT files; default: simulated")
    parser.add_argument("--background", nargs="*", default=[])
    parser.add_argument("--framework", choices=("torch", "keras", "xgboost"), default="torch")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--shuffle-bytes", type=int, default=1024**3)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(), help="of either; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: one GPU")
    parser.add_argument("--repeats", type=int, default=3, help="medians of so many")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=("ours", "bare", "arrays"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        from streaming import TreeClock

        clock, begun = TreeClock(), time.time()
        result = globals()[options.way](options, options.folder)
        print(json.dumps({**result, "wall_s": time.time() - begun, "cpu_s": clock.seconds()}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.signal:
            options.signal, options.background = _simulated(folder)
        options.signal, options.background = (
            [str(Path(file).absolute()) for file in files] for files in (options.signal, options.background)
        )
        result = compare(options, folder)
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
