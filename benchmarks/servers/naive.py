"""What one writes first: FastAPI, a pydantic body, one TensorFlow call a request, uvicorn as it comes.

``python naive.py --model PACKAGE --port N`` prints a line when it answers TFaaS's ``/json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tensorflow as tf
import uvicorn
from announcing import Announcing
from fastapi import FastAPI
from pydantic import BaseModel


class Query(BaseModel):
    """TFaaS's request."""

    model: str
    keys: list[str]
    values: list[float]


def build_app(package: Path) -> FastAPI:
    """Return the application: one route for one SavedModel."""
    model = tf.saved_model.load(str(package / "model"))
    predict = model.signatures["serving_default"]
    (name,) = predict.structured_input_signature[1]
    (output,) = predict.structured_outputs
    columns = [feature["name"] for feature in json.loads((package / "features.json").read_text())["features"]]

    app = FastAPI()
    app.state.model = model  # kept: it owns the variables

    @app.post("/json")
    async def answer(query: Query) -> list[float]:
        event = dict(zip(query.keys, query.values, strict=True))
        row = tf.constant([[event[column] for column in columns]], tf.float32)
        return predict(**{name: row})[output].numpy()[0].tolist()

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    # what uvicorn.run does
    Announcing(uvicorn.Config(build_app(options.model), port=options.port)).run()


if __name__ == "__main__":
    main()
