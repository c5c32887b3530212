"""The JSON Schema of job files, with the descriptions that the settings' docstrings give."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

from mlaas_ray.core.inputs import ChannelSettings, InputSettings, ObjectSettings, ViewSettings
from mlaas_ray.streaming.settings import BadFiles, Cache, ReadingSettings
from mlaas_ray.training.settings import CheckpointSettings, EarlyStopping, ScheduleSettings, TrainSettings
from mlaas_ray.workflows import sections
from mlaas_ray.workflows.job import Job

_MODELS: tuple[type[BaseModel], ...] = (
    Job,
    *(value for value in vars(sections).values() if inspect.isclass(value) and issubclass(value, BaseModel)),
    ReadingSettings,
    BadFiles,
    Cache,
    InputSettings,
    ObjectSettings,
    ViewSettings,
    ChannelSettings,
    TrainSettings,
    ScheduleSettings,
    EarlyStopping,
    CheckpointSettings,
)
# Lists of sections, of each of which one word may stand for the whole.
_NAMED = ("views", "channels")
# Sections that one word may stand for.
_WORDS = {
    "weights": {"type": "string"},
    "task": {"type": "string", "enum": ["binary", "multiclass", "regression"]},
    "model": {"type": "string"},
    "bad_files": {"type": "string", "enum": ["fail", "skip"]},
    "schedule": {"type": "string", "enum": ["cosine", "linear", "constant", "step", "plateau"]},
    "early_stopping": {"type": "string"},
    "max_events": {"const": "all"},
}


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a job file."""
    schema = Job.model_json_schema()
    definitions = schema.get("$defs", {})
    for model in _MODELS:
        part = schema if model is Job else definitions.get(model.__name__)
        if part is not None:
            _describe(part, model)
    for part in (schema, *definitions.values()):
        for name, field in part.get("properties", {}).items():
            _widen(name, field)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "mlaas_ray training job",
    }


def _describe(part: dict[str, Any], model: type[BaseModel]) -> None:
    text = inspect.getdoc(model) or ""
    summary, _, attributes = text.partition("\nAttributes:\n")
    part["description"] = _plain(summary)
    for name, meaning in _attributes(attributes).items():
        if name in part.get("properties", {}):
            part["properties"][name]["description"] = meaning


def _attributes(text: str) -> dict[str, str]:
    """Return the meaning of each attribute of a Google docstring."""
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {8,}.*)*)", text, re.MULTILINE)
    return {name: _plain(meaning) for name, meaning in found}


def _plain(text: str) -> str:
    """Return a docstring's text on one line, with Markdown's quotes."""
    return " ".join(text.replace("``", "`").split())


def _widen(name: str, field: dict[str, Any]) -> None:
    """Allow the short forms that a job file may use."""
    options = field.get("anyOf", [field])
    listed = next((option for option in options if option.get("type") == "array" and "items" in option), None)
    if listed is not None and name in _NAMED:
        listed["items"] = {"anyOf": [listed["items"], {"type": "string"}]}
    short = _WORDS.get(name)
    if short is None and listed is not None and (name == "views" or listed["items"].get("type") == "string"):
        short = listed["items"]
    if short is None:
        return
    kept = {
        key: field.pop(key) for key in ("$ref", "anyOf", "type", "items", "allOf", "minimum") if key in field
    }
    field["anyOf"] = [*kept.get("anyOf", [kept]), short]
