"""Settings that check themselves: an unknown key is refused with its path and the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from mlaas_ray.core.errors import JobError, nearest


class Settings(BaseModel):
    """A frozen group of settings; groups nest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, values: Any, what: str) -> Self:
        """Check values that came from outside, such as a YAML file's.

        Args:
            values: A mapping.
            what: What they are, for messages: ``the job file job.yaml``.

        Raises:
            JobError: For the first thing that is wrong, with its path.
        """
        if not isinstance(values, Mapping):
            raise JobError(
                f"{what} holds no keys and values, but {type(values).__name__}", "Write 'key: value' lines"
            )
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise _explain(error, cls, what) from None


def word(key: str) -> BeforeValidator:
    """Let one word stand for settings of which it is that key, as an annotation of a field."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _explain(error: ValidationError, root: type[BaseModel], what: str) -> JobError:
    # Of several complaints the unknown key is the likeliest cause of the others.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    # pydantic also puts the branch of a union it tried into the path: no key of the user's
    path = [part for part in first["loc"] if not (isinstance(part, str) and _is_internal(part))]
    where = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        return JobError(f"unknown key {where!r} in {what}", _meant(root, path))
    if first["type"] == "missing":
        return JobError(f"{what} lacks the key {where!r}", "Add it")
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping) else f" (it is {first['input']!r})"
    return JobError(f"{what}: {where + ': ' if where else ''}{message}{given}", "Correct it")


def _meant(root: type[BaseModel], path: list[Any]) -> str:
    """Return advice for an unknown key: the same one of another section before one that looks alike."""
    name, known = str(path[-1]), _fields(root, path[:-1])
    everywhere = paths(root)
    if name not in known:
        same = [key for key in everywhere if key.rpartition(".")[2] == name]
        close = difflib.get_close_matches(name, known, cutoff=0.6)
        if same and not close:
            return "Did you mean " + " or ".join(map(repr, same[:3])) + "?"
        if not close:
            last = {key.rpartition(".")[2]: key for key in reversed(everywhere)}
            alike = difflib.get_close_matches(name, last, n=1, cutoff=0.75)
            if alike:
                return f"Did you mean {last[alike[0]]!r}?"
    return nearest(name, known)


def paths(model: type[BaseModel], *, within: tuple[type[BaseModel], ...] = ()) -> list[str]:
    """Return the keys of settings and of the groups in them, such as ``train.epochs``.

    What is called by a name of the user's, such as a dataset, is ``NAME``; what is in a list follows ``[]``.
    """
    found = []
    for key, field in model.model_fields.items():
        name = field.alias or key
        found.append(name)
        for group in _models(field.annotation):
            if group not in within:
                inner = (
                    f"{name}{_step(field.annotation)}.{rest}"
                    for rest in paths(group, within=(*within, model))
                )
                found += inner
    return list(dict.fromkeys(found))


def _step(annotation: Any) -> str:
    """Return what leads into a mapping's or a list's items."""
    origin = getattr(annotation, "__origin__", None)
    if origin in (dict, list, tuple):
        return ".NAME" if origin is dict else "[]"
    return "".join(_step(argument) for argument in getattr(annotation, "__args__", ()))


def _is_internal(part: str) -> bool:
    return any(mark in part for mark in "[(") or part in {"str", "int", "float", "bool"}


def _fields(model: type[BaseModel], path: list[Any]) -> list[str]:
    """Return the keys known at a path, by walking the annotations."""
    current: Any = model
    for part in path:
        models = _models(current)
        current = (
            models[0].model_fields[part].annotation if models and part in models[0].model_fields else current
        )
    models = _models(current)
    return [field.alias or name for name, field in models[0].model_fields.items()] if models else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes that an annotation such as ``dict[str, Dataset]`` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models(argument)]
