"""A training loop of one's own on ROOT files: Ray Data reads them, Ray Train's workers learn.

python docs/streaming/own_loop.py signal.root background.root
"""

import sys
import tempfile

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

from mlaas_ray.core.inputs import Inputs
from mlaas_ray.streaming import Sample, first_pass, read_events


def train_loop(config: dict) -> list[float]:
    """Train on this worker's share of the events; each epoch is a pass over the files."""
    layers = [torch.nn.Linear(config["width"], 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)]
    network = prepare_model(torch.nn.Sequential(*layers))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    loss_of = torch.nn.BCEWithLogitsLoss()
    events = ray.train.get_dataset_shard("train")
    losses = []
    for _ in range(config["epochs"]):
        total = count = 0
        for batch in events.iter_torch_batches(batch_size=256):
            x = torch.nan_to_num(torch.log1p(batch["x"].abs()))  # NaN: an event has no such jet
            loss = loss_of(network(x)[:, 0], batch["y"])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total, count = total + loss.item() * len(x), count + len(x)
        losses.append(total / count)
        ray.train.report({"loss": losses[-1], "events": count})
    return losses


def train(signal: str, background: str, workers: int = 2, epochs: int = 3) -> list[float]:
    """Train, and return what each epoch's loss was for the first worker."""
    samples = [Sample(signal, label=1, name="signal"), Sample(background, label=0, name="background")]
    found = first_pass(samples, Inputs(include=["MET_*", "Jet_*"]))
    # every block holds events of both, and each epoch has an order of its own
    events = read_events(found, shuffle=True)
    with tempfile.TemporaryDirectory() as storage:
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"width": found.features.width, "epochs": epochs},
            datasets={"train": events},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(storage_path=storage),
        )
        return trainer.fit().return_value


if __name__ == "__main__":
    print(train(*sys.argv[1:3]))
