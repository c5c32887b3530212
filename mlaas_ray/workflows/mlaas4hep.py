"""MLaaS4HEP's recipe: its files, labels, params and preprocessing as a job of ours.

What its ``workflow`` did with them, and what is done in its place, is in docs/training/mlaas4hep.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from mlaas_ray.core.errors import JobError, nearest
from mlaas_ray.streaming.formats import format_of
from mlaas_ray.streaming.sources import beside, file_names, text_of
from mlaas_ray.workflows.job import Job

IDENTIFIER = ("run", "event", "luminosityBlock")
_REDIRECTOR = "root://cms-xrd-global.cern.ch"

_PARAMS = {
    "nevts", "shuffle", "chunk_size", "epochs", "batch_size", "identifier", "branch", "selected_branches",
    "exclude_branches", "hist", "redirector", "verbose", "nan", "split",
}  # fmt: skip
_COMPARED = re.compile(r"==|!=|<=|>=|<|>")


def recipe_job(
    files: str,
    labels: str,
    model: str,
    params: str | None = None,
    preproc: str | None = None,
    *,
    framework: Literal["keras", "torch"] | None = None,
    storage: str = "runs",
    allow_duplicates: bool = False,
) -> Job:
    """Return the job that MLaaS4HEP's arguments describe.

    Args:
        files: A text file with one path a line (``#`` for comments), or paths with commas between.
        labels: A text file with one class number a line, in the order of the files; or numbers with commas
            between; or the name of a branch.
        model: Python file with ``model(input_dim)``.
        params: JSON file of parameters.
        preproc: JSON file with new branches and cuts.
        framework: What the model is made with; None to see from its imports.
        storage: Folder or URL of runs.
        allow_duplicates: Whether a file may be named twice.

    Raises:
        JobError: Naming what is wrong.
        LabelError: When the labels are of one class only, or leave one out.
    """
    # a list's names are relative to it, or to the current folder
    near = (Path(files).parent, Path()) if Path(files).is_file() else (Path(),)
    paths = [beside(path, near) for path in _lines(files, "files")]
    given = _json(params, "params") if params else {}
    strange = sorted(set(given) - _PARAMS)
    if strange:
        raise JobError(f"unknown key {strange[0]!r} in {params}", nearest(strange[0], _PARAMS))
    datasets = _datasets(paths, labels, str(given.get("branch", "Events")))
    changes = (
        _prepared(_json(preproc, "preproc")) if preproc else {"define": {}, "select": None, "exclude": []}
    )
    identifier = _branches(given.get("identifier")) or list(IDENTIFIER)
    inputs: dict[str, Any] = {
        "exclude": [*identifier, *_branches(given.get("exclude_branches")), *changes["exclude"]],
        "normalise": "minmax",
    }
    selected = _branches(given.get("selected_branches"))
    if selected:
        inputs["include"] = [*selected, *changes["define"]]
    reading: dict[str, Any] = {"allow_duplicates": True} if allow_duplicates else {}
    redirector = given.get("redirector", _REDIRECTOR)
    if redirector:
        reading["redirectors"] = [redirector]
    events = given.get("nevts", -1)
    if not isinstance(events, int):
        raise JobError(f"nevts in {params} is no number of events: {events!r}", "Use -1 for all")
    if events > 0:
        reading["max_events"] = -(-events // len(datasets))
    content = {
        "name": _name(model),
        "datasets": datasets,
        "reading": reading,
        "define": changes["define"],
        "select": changes["select"],
        "inputs": inputs,
        # 20 % were set aside and never looked at, and 20 % of the rest judged by
        "split": {"train": 0.64, "validation": 0.16, "test": 0.2},
        "model": model,
        "framework": framework or _framework(model),
        # so many epochs, whatever the validation events say
        "train": {
            "epochs": given.get("epochs", 10),
            "batch_size": given.get("batch_size", 50),
            "early_stopping": False,
        },
        "storage": storage,
    }
    return Job.of(content, "the recipe").checked(Path.cwd())


def _datasets(paths: list[str], labels: str, tree: str) -> dict[str, Any]:
    """Return one dataset for each class, or one whose labels are in the files."""
    roots = [
        "://" in path or path.startswith("/store/") or "ROOT" in map(format_of, file_names(path))
        for path in paths
    ]
    rest = {"tree": tree} if all(roots) else {}
    listed = Path(labels).is_file() or labels.endswith(".txt")
    if not listed and not re.fullmatch(r"[\d\s,+-]+", labels):
        return {"events": {"files": paths, "label": {"branch": labels}, **rest}}
    numbers = _lines(labels, "labels")
    if len(numbers) != len(paths):
        raise JobError(
            f"there are {len(paths)} files and {len(numbers)} labels",
            "Give one label for each file, in order",
        )
    datasets: dict[str, Any] = {}
    for path, number in zip(paths, numbers, strict=True):
        if not re.fullmatch(r"[+-]?\d+", number):
            raise JobError(f"the label {number!r} is no class number", "Number the classes from 0 on")
        own = datasets.setdefault(f"class_{int(number)}", {"files": [], "label": int(number), **rest})
        own["files"].append(path)
    return datasets


def _prepared(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return definitions, selection and branches to leave out, of a preproc file."""
    define: dict[str, str] = {}
    cuts: list[str] = []
    exclude: list[str] = []
    for name, rule in content.get("new_branch", {}).items():
        define[name] = re.sub(r"\b(?:numpy|np)\.", "", str(rule["def"]))
        cuts += _cuts(name, rule, jagged=rule.get("type") == "jagged")
        exclude += _branches(rule.get("keys_to_remove"))
        exclude += [name] if _true(rule.get("remove")) else []
    for kind in ("flat_cut", "jagged_cut"):
        for name, rule in content.get(kind, {}).items():
            cuts += _cuts(name, rule, jagged=kind == "jagged_cut")
            exclude += [name] if _true(rule.get("remove")) else []
    return {"define": define, "select": " & ".join(f"({cut})" for cut in cuts) or None, "exclude": exclude}


def _cuts(name: str, rule: Mapping[str, Any], *, jagged: bool) -> Iterable[str]:
    """Give the cuts of one branch: those on objects hold for any of an event's, or for all of them."""
    for key, cut in rule.items():
        if not key.startswith("cut"):
            continue
        text, how = (cut[0], cut[1] if len(cut) > 1 else "all") if isinstance(cut, list) else (cut, "all")
        if not _COMPARED.search(text):
            raise JobError(f"preproc: the cut {text!r} on {name!r} compares nothing", "Write 'NAME<6.3'")
        yield f"{how}({text})" if jagged else text


def _true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _lines(text: str, what: str) -> list[str]:
    """Return the lines of a file, or what stands between commas."""
    path = Path(text)
    if path.is_file():
        lines = [line.strip() for line in text_of(path.read_bytes()).splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
    elif text.endswith(".txt"):
        raise JobError(f"no file of {what}: {path.absolute()}", "Check the path")
    else:
        found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise JobError(f"there are no {what} in {text!r}", "Write one a line")
    return found


def _branches(given: Any) -> list[str]:
    """Return names of branches that are a list, a text with commas, or a file of them; none for nothing."""
    if not given:
        return []
    return [str(name) for name in given] if isinstance(given, list) else _lines(str(given), "branches")


def _json(path: str, what: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise JobError(f"cannot read the {what} file {path}: {error.strerror}", "Check the path") from None
    except ValueError as error:
        raise JobError(f"the {what} file {path} is not JSON: {error}", "Correct it") from None
    if not isinstance(content, dict):
        raise JobError(f"the {what} file {path} holds no keys and values", "Write a JSON object")
    return content


def _framework(model: str) -> str:
    """Tell what a model is made with from what its file imports."""
    try:
        text = Path(model).read_text(errors="replace")
    except OSError as error:
        raise JobError(f"cannot read the model file {model}: {error.strerror}", "Check the path") from None
    return "torch" if re.search(r"^\s*(import|from)\s+torch\b", text, re.MULTILINE) else "keras"


def _name(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", Path(model).stem).strip("-.") or "model"
