"""Overrides: changes to a job's content from the command line, as in ``--set train.epochs=3``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from mlaas_ray.core.errors import JobError


def changed(content: Any, changes: Sequence[str]) -> Any:
    """Return a job's content with some keys changed.

    Args:
        content: As YAML gave it.
        changes: ``key.key=value``, the value written as in YAML.

    Raises:
        JobError: When a change is not of that form, or goes through what holds no keys.
    """
    content = copy.deepcopy(content)
    for change in changes:
        path, equals, text = change.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise JobError(f"--set {change!r} changes nothing", "Write it as in --set train.epochs=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise JobError(f"--set {change!r}: the value is not YAML: {error}", "Put it in quotes") from None
        place = content
        for key in keys[:-1]:
            if not isinstance(place, dict):
                break
            if isinstance(place.get(key), str) and key in _WORDS:
                place[key] = {_WORDS[key]: place[key]}
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
        if not isinstance(place, dict):
            raise JobError(
                f"--set {change!r}: {'.'.join(keys[:-1]) or 'the job'} holds no keys",
                "Name a key of a section",
            )
        place[keys[-1]] = value
    return content


# What a word alone stands for.
_WORDS = {
    "weights": "expression",
    "task": "kind",
    "model": "name",
    "bad_files": "policy",
    "schedule": "kind",
    "early_stopping": "monitor",
}
