"""How good models are when a job says nothing: our defaults against plain scripts, on the same events.

For each data set and seed, the job is trained as ``mlaas train`` does it: 64 % of the events to learn
from, 16 % to judge epochs by. Its exported file answers for the other 20 %. Plain scripts get the same
events as arrays:

- torch: standardised, 0 where there is no value; layers of 128 and 64 nodes with ReLU; Adam at 1e-3,
  batches of 256, 30 epochs, of which the one with the lowest validation loss counts;
- xgboost: ``hist`` with its own defaults but a rate of 0.1, at most 300 trees, stopped after 30 without
  gain.

Scores are of the events that nobody has seen: AUC, the mean over classes against the others, or R2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", TF_CPP_MIN_LOG_LEVEL="3")

import numpy as np
from rich.console import Console
from rich.table import Table

SPLIT = {"train": 0.64, "validation": 0.16, "test": 0.2}
RADION = [
    "muon[12]_p[tz]", "muon[12]_eta", "muon[12]_phi", "muon[12]_isoVar", "muon[12]_d[xz]*", "b[12]jet_*",
    "met_*", "HT", "MT2", "dR_b*", "MINdR_bl", "dR_l*", "dphi_l*", "dR_minbl", "mass_b*", "pt_b*", "eta_b*",
    "mass_l*", "pt_l*", "eta_l*", "mass_trans", "numOfVertices",
]  # fmt: skip


def jobs(folder: Path, data: Path | None) -> dict[str, dict[str, Any]]:
    """Return the parts of the jobs that differ: simulated events, and those in a folder of real files."""
    from mlaas_ray.workflows.toy import write_sample

    files = {n: str(write_sample(folder / f"{n}.root", n, 8000, seed=1)) for n in ("signal", "background")}
    signal, background = files["signal"], files["background"]
    made: dict[str, dict[str, Any]] = {
        "simulated": {
            "datasets": {
                "signal": {"files": signal, "label": 1},
                "background": {"files": background, "label": 0},
            },
            "inputs": {"exclude": ["run", "event"]},
        },
        "simulated MET": {
            "datasets": {"signal": {"files": signal, "label": {"branch": "MET_pt"}}},
            "task": "regression",
            "inputs": {"include": ["Jet_*", "Muon_*"]},
        },
    }
    if data is None:
        return made
    sets = data / "sigbkg"
    names = ("single_top", "ww", "wz", "zz")
    truth = {"exclude": ["MC*", "EventWeight"]}
    higgs = str(sets / "mlhep2016_higgs_public_train_10000.root")
    radion = [str(sets / f"MVA_Radion_M-{mass}.root") for mass in (260, 300)]
    tmva = str(sets / "tmva_class_example.root")
    zmumu = str(data / "corner" / "uproot-Zmumu.root")
    made |= {
        "single top": {
            "datasets": {n: {"files": str(sets / f"{n}.root"), "label": int(n == names[0])} for n in names},
            "task": "binary",
            "inputs": truth,
        },
        "four classes": {
            "datasets": {n: {"files": str(sets / f"{n}.root"), "label": i} for i, n in enumerate(names)},
            "inputs": truth,
        },
        "UCI HIGGS": {
            "datasets": {"higgs": {"files": higgs, "label": {"branch": "target"}}},
            "inputs": {"exclude": ["event_id"]},
        },
        "radion mass": {
            "datasets": {f"m{i}": {"files": file, "label": i} for i, file in enumerate(radion)},
            "inputs": {"include": RADION},
        },
        "TMVA": {
            "datasets": {
                "signal": {"files": tmva, "tree": "TreeS", "label": 1},
                "background": {"files": tmva, "tree": "TreeB", "label": 0},
            },
            "inputs": {"include": ["var*"]},
        },
        "HIGGS m_wwbb": {
            "datasets": {"higgs": {"files": higgs, "label": {"branch": "m_wwbb"}}},
            "task": "regression",
            "inputs": {"include": ["lepton*", "mem*", "jet*"]},
        },
        "radion MET": {
            "datasets": {"radion": {"files": radion, "label": {"branch": "genmet_pt"}}},
            "task": "regression",
            "inputs": {"include": RADION},
        },
        "Z mass": {
            "datasets": {"z": {"files": zmumu, "label": {"branch": "M"}}},
            "task": "regression",
            "inputs": {"include": ["pt*", "eta*", "phi*"]},
        },
    }
    return made


def score(kind: str, answers: Any, y: Any) -> float:
    """Return AUC or R2, as scikit-learn computes them."""
    from sklearn.metrics import r2_score, roc_auc_score

    if kind == "regression":
        return float(r2_score(y, answers.reshape(y.shape)))
    if answers.shape[1] == 1:
        return float(roc_auc_score(y, answers[:, 0]))
    return float(roc_auc_score(y, answers / answers.sum(axis=1, keepdims=True), multi_class="ovr"))


def events(job: Any, found: Any) -> list[tuple[Any, Any]]:
    """Return ``x`` and ``y`` of the parts for training, validation and test, as arrays."""
    from mlaas_ray.streaming import planned_events
    from mlaas_ray.training.batches import batches

    classes = 0 if job.kind == "regression" else job.class_count
    parts = []
    for part in (*job.split.parts, job.split.held_out):
        planned = planned_events(found, part=part, seed=job.seed, reading=job.reading, classes=classes)
        read = [b for t in planned.tables(0, range(planned.blocks(0))) for b in batches(t)]
        parts.append((np.concatenate([b.x for b in read]), np.concatenate([b.y for b in read])))
    return parts


def ours(job: Any, found: Any, parts: list[tuple[Any, Any]]) -> Any:
    """Train the job, without a report; return what its exported file answers for the test part."""
    import onnxruntime

    from mlaas_ray.streaming import planned_events, take_census
    from mlaas_ray.training import fit
    from mlaas_ray.workflows.learning import task_of

    classes = 0 if job.kind == "regression" else job.class_count
    options = {"seed": job.seed, "reading": job.reading, "classes": classes}
    learn, judge = job.split.parts
    trained = fit(
        planned_events(found, part=learn, shuffle=True, **options),
        planned_events(found, part=judge, **options),
        found.features,
        name=job.name,
        task=task_of(job, take_census(found, reading=job.reading, classes=classes, progress=False)),
        framework=job.framework,
        settings=job.train,
        expected=len(parts[0][1]),
        seed=job.seed,
        storage=job.storage,
    )
    session = onnxruntime.InferenceSession(
        str(trained.folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    return session.run(["outputs"], {"inputs": parts[2][0]})[0]


def plain_torch(kind: str, parts: list[tuple[Any, Any]], seed: int) -> Any:
    """Train a network as one writes it down in ten minutes; return its answers for the test part."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    known = np.where(np.isfinite(parts[0][0]), parts[0][0], np.nan)
    with np.errstate(all="ignore"):
        mean, deviation = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    xs = [
        np.nan_to_num((x - mean) / np.where(deviation > 0, deviation, 1), posinf=0, neginf=0)
        for x, _ in parts
    ]
    y = parts[0][1].reshape(-1)
    centre, scale = (y.mean(), y.std()) if kind == "regression" else (0.0, 1.0)
    x, vx, tx = (torch.from_numpy(each.astype(np.float32)) for each in xs)
    t, vt = (torch.from_numpy((p[1].reshape(-1) - centre) / scale) for p in parts[:2])
    outputs = int(y.max()) + 1 if kind == "multiclass" else 1
    network = nn.Sequential(
        nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs)
    )

    def loss(answer: Any, target: Any) -> Any:
        if kind == "multiclass":
            return nn.functional.cross_entropy(answer, target.long())
        if kind == "binary":
            return nn.functional.binary_cross_entropy_with_logits(answer[:, 0], target)
        return nn.functional.mse_loss(answer[:, 0], target)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    best, answers = np.inf, None
    for _ in range(30):
        for rows in torch.randperm(len(x)).split(256):
            optimizer.zero_grad()
            loss(network(x[rows]), t[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            judged = float(loss(network(vx), vt))
            if judged < best:
                answer = network(tx)
                final = {"binary": torch.sigmoid, "multiclass": lambda a: a.softmax(dim=1)}
                best, answers = judged, final.get(kind, lambda a: a * scale + centre)(answer).numpy()
    return answers


def plain_xgboost(kind: str, parts: list[tuple[Any, Any]], seed: int) -> Any:
    """Train trees with XGBoost's own defaults; return their answers for the test part."""
    import xgboost

    (x, y), (vx, vy), (tx, _) = [(np.where(np.isfinite(x), x, np.nan), y.reshape(-1)) for x, y in parts]
    objectives = {
        "binary": "binary:logistic",
        "multiclass": "multi:softprob",
        "regression": "reg:squarederror",
    }
    own = {"num_class": int(y.max()) + 1} if kind == "multiclass" else {}
    data = xgboost.QuantileDMatrix(x, y)
    booster = xgboost.train(
        {"objective": objectives[kind], "eta": 0.1, "seed": seed, "tree_method": "hist", **own},
        data,
        300,
        evals=[(xgboost.QuantileDMatrix(vx, vy, ref=data), "validation")],
        early_stopping_rounds=30,
        verbose_eval=False,
    )
    answers = booster.predict(xgboost.DMatrix(tx), iteration_range=(0, booster.best_iteration + 1))
    return answers.reshape(len(tx), -1)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the scores by data set and by what was trained, one for each seed."""
    from mlaas_ray.streaming import first_pass
    from mlaas_ray.workflows import Job

    results: dict[str, dict[str, list[float]]] = {}
    for name, rest in jobs(folder, options.data).items():
        if options.only and not any(word in name for word in options.only):
            continue
        own = results[name] = {}
        for seed in range(options.seeds):
            begun = time.perf_counter()
            found, parts = None, []
            for framework in options.frameworks:
                trees = {"train": {"epochs": 10, "learning_rate": 0.1, "early_stopping": {"patience": 1}}}
                job = Job.of(
                    {
                        "name": "quality",
                        "seed": seed,
                        "split": SPLIT,
                        "storage": str(folder / "runs"),
                        "framework": framework,
                        **rest,
                        **(trees if framework == "xgboost" else {}),
                    },
                    "the benchmark",
                ).checked(folder)
                found = found or first_pass(job.samples({}), job.wanted, progress=False)
                parts = parts or events(job, found)
                kind, y = job.kind, parts[2][1]
                plain = {"torch": plain_torch, "xgboost": plain_xgboost}[framework]
                for who, answers in (
                    (f"ours {framework}", ours(job, found, parts)),
                    (f"plain {framework}", plain(kind, parts, seed)),
                ):
                    own.setdefault(who, []).append(score(kind, answers, y))
            last = {who: round(scores[-1], 4) for who, scores in own.items()}
            print(f"{name}, seed {seed}: {last} in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return results


def show(results: dict[str, dict[str, list[float]]]) -> None:
    """Print the medians as a table."""
    ways = list(next(iter(results.values())))
    table = Table("", *ways, title="Held-out AUC or R2, medians over the seeds (least to most)")
    for name, own in results.items():
        cells = [f"{statistics.median(v):.4f} ({min(v):.3f}-{max(v):.3f})" for v in own.values()]
        table.add_row(name, *cells)
    Console(width=120).print(table)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder of real files (docs/training/quality.md); or simulated only"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--frameworks", nargs="+", choices=("torch", "xgboost"), default=["torch", "xgboost"])
    parser.add_argument("--only", nargs="*", help="data sets with these words in their names")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import logging

    import ray

    ray.init(
        address="local",
        object_store_memory=500_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory() as name:
        results = compare(options, Path(name))
    print(json.dumps(results)) if options.json else show(results)


if __name__ == "__main__":
    main()
