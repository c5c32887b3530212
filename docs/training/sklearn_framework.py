"""scikit-learn's logistic regression, batch by batch; in a job: ``framework: sklearn_framework.py``."""

from pathlib import Path
from typing import Any

import numpy as np

from mlaas_ray.training.framework import Network, Setup
from mlaas_ray.training.frameworks.torch import Torch, complete, write_onnx


class Sklearn:
    """What the training loop asks of a framework."""

    name, models, tasks = "sklearn", ("sgd",), ("binary",)
    model_format, collective_on_gpu = "onnx", "gloo"
    defaults = {"epochs": 10, "learning_rate": 0.05}

    def prepare(self, threads: int, seed: int, precision: str) -> None: ...

    def network(self, setup: Setup) -> Network:
        return Sgd(setup)

    def answer(self, folder: Path, file: str, x: Any) -> Any:
        return Torch().answer(folder, file, x)  # with ONNX Runtime


class Sgd(Network):
    """One linear classifier; workers give each other the mean of their coefficients after every step."""

    def __init__(self, setup: Setup) -> None:
        from sklearn.linear_model import SGDClassifier

        self.setup, self.group = setup, setup.group
        self.model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.1, shuffle=False)
        self.model.partial_fit(np.zeros((2, setup.width)), [0, 1], classes=[0, 1])
        self.model.intercept_[:] = 0

    def step(self, batch: Any, events: int) -> Any:
        answers = self.predict(batch.x)
        if len(batch):
            x = self.setup.features.normalised(batch.x)
            self.model.partial_fit(x.astype(float), batch.y, sample_weight=batch.weight)
        own = np.append(self.model.coef_, self.model.intercept_) * len(batch) / events
        mean = self.group.sum(own.astype(np.float32)).astype(float)
        self.model.coef_, self.model.intercept_ = mean[None, :-1], mean[-1:]
        return answers

    def collect(self, steps: list[Any]) -> Any:
        return np.concatenate(steps)

    def predict(self, x: Any) -> Any:
        score = self.setup.features.normalised(x) @ self.model.coef_[0] + self.model.intercept_[0]
        return (1 / (1 + np.exp(-score)))[:, None].astype(np.float32)

    def set_rate(self, learning_rate: float) -> None:
        self.model.eta0 = learning_rate

    def save(self, folder: Path) -> None:
        np.savez(folder / "sgd.npz", coef=self.model.coef_, intercept=self.model.intercept_)

    def restore(self, folder: Path) -> None:
        with np.load(folder / "sgd.npz") as state:
            self.model.coef_, self.model.intercept_ = state["coef"], state["intercept"]

    def export(self, folder: Path) -> list[str]:
        import torch

        linear = torch.nn.Linear(self.setup.width, 1)
        linear.weight.data = torch.tensor(self.model.coef_, dtype=torch.float32)
        linear.bias.data = torch.tensor(self.model.intercept_, dtype=torch.float32)
        whole = complete(self.setup, torch.nn.Sequential(linear, torch.nn.Sigmoid()), masked=False)
        return [write_onnx(whole, self.setup, folder)]


framework = Sklearn
