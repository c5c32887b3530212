"""A network of one's own (docs/training/models.md): one hidden layer that sees which values are missing."""

from __future__ import annotations

import torch


class Network(torch.nn.Module):
    """Takes normalised values and their mask, ``(events, columns)``; gives probabilities ``(events, 1)``."""

    def __init__(self, columns: int, hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2 * columns, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 1),
            torch.nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Answer for some events."""
        answer: torch.Tensor = self.layers(torch.cat([x, mask], dim=1))
        return answer


def model(input_dim: int, hidden: int = 32) -> torch.nn.Module:
    """Return the network for so many columns; ``hidden`` is a key of the job's ``model``."""
    return Network(input_dim, hidden)
