"""Our own networks: the same options and, with equal weights, the same answers in PyTorch and Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlaas_ray.core import Feature, FeatureSpec, GridSpec, Statistics
from mlaas_ray.core.errors import ModelError
from mlaas_ray.core.grid import Axis, Channel, View
from mlaas_ray.core.task import Task
from mlaas_ray.training.framework import Setup
from mlaas_ray.training.frameworks import find_model, load_framework
from mlaas_ray.training.frameworks.models import (
    MODELS,
    Image,
    halvings,
    images_of,
    lacking,
    objects_of,
    options_of,
    waved,
)
from mlaas_ray.training.group import Group
from mlaas_ray.training.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")

LAYERED = ["torch", "keras"]

# columns: MET, cov (2), Jet_id (3), Jet_pt (3), Muon_pt (2)
VECTOR = FeatureSpec.of(
    [
        Feature(name="MET", kind="flat"),
        Feature(name="cov", kind="fixed", length=2),
        Feature(name="Jet_pt", kind="jagged", length=3),
        Feature(name="Jet_id", kind="jagged", length=3),
        Feature(name="Muon_pt", kind="jagged", length=2),
    ]
)
JETS = np.array([[3, 6], [4, 7], [5, 8]])
MUONS = np.array([[9], [10]])


def grid() -> GridSpec:
    """One scalar, then a view of two images of 9 x 6 cells and one of one image of 3 x 4."""

    def axis(name: str, bins: int) -> Axis:
        return Axis(name=name, bins=bins, low=-2.0, high=2.0)

    channels = (
        Channel(name="all", x="Jet_eta", y="Jet_phi"),
        Channel(name="pt", x="Jet_eta", y="Jet_phi", weight="Jet_pt"),
    )
    views = (
        View(name="wide", x=axis("eta", 6), y=axis("phi", 9), channels=channels),
        View(name="few", x=axis("eta", 4), y=axis("phi", 3), channels=channels[:1]),
    )
    jets = [Feature(name=f"Jet_{name}", kind="jagged", length=2) for name in ("eta", "phi", "pt")]
    return GridSpec.of([Feature(name="MET", kind="flat"), *jets], scalars=("MET",), views=views)


def setup_of(framework: str, model: str, options: dict[str, Any], task: Task | None = None) -> Setup:
    chosen = load_framework(framework)
    features = grid() if model == "cnn" else VECTOR
    settings = TrainSettings().filled(chosen.defaults)
    return Setup(find_model(model, chosen), options, features, task or Task(), settings, Group())


def rows(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normalised values, 0 where there is none, and the mask, both ``(events, features)``."""
    random = np.random.default_rng(seed)
    mask = (random.random((count, width)) < 0.7).astype(np.float32)
    return random.normal(0, 1, (count, width)).astype(np.float32) * mask, mask


MODELS_AND_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"hidden": (7, 5)}),
    ("mlp", {"hidden": ()}),
    ("masked_linear", {"hidden": (7, 5)}),
    ("masked_linear", {"hidden": ()}),
    ("deepsets", {"objects": (6, 4), "hidden": (5,)}),
    ("deepsets", {"objects": (6,), "hidden": (), "pool": "mean"}),
    ("deepsets", {"objects": (), "hidden": (5,), "pool": "max"}),
    ("deepsets", {"objects": (6, 4), "hidden": (5,), "pool": "max"}),
    ("cnn", {"channels": (4, 3), "hidden": (5,)}),
    ("cnn", {"channels": (3,), "kernel": 5, "hidden": ()}),
]
TASKS = {
    "binary": Task(),
    "multiclass": Task(kind="multiclass", names=("a", "b", "c")),
    "regression": Task(kind="regression", names=("m", "n")),
}
# one task is enough for the smallest networks
CASES = [
    (model, options, task)
    for model, options in MODELS_AND_OPTIONS
    for task in (TASKS if options["hidden"] else ["binary"])
]


def torch_layers(module: Any) -> list[Any]:
    """Return the layers with weights, in the order in which a row meets them."""
    import torch

    return [one for one in module.modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)]


def built_in_torch(setup: Any, x: Any, mask: Any) -> Any:
    """Build a network; return its weights as Keras has them, their number, and its answers."""
    import torch

    framework = setup_framework(setup)
    framework.prepare(threads=1, seed=5, precision="float32")
    module = framework.ours(setup)
    weights = []
    for layer in torch_layers(module):
        with torch.no_grad():  # so that biases count
            for parameter in layer.parameters():
                parameter.uniform_(-0.7, 0.7)
        kernel = layer.weight.detach().numpy()
        bias = None if layer.bias is None else layer.bias.detach().numpy()
        # Keras has inputs before outputs, and channels last
        weights.append((kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0), bias))
    count = sum(parameter.numel() for parameter in module.parameters())
    return weights, count, framework.run(module, x, mask)


def setup_framework(setup: Any) -> Any:
    from mlaas_ray.training.frameworks.keras import Keras
    from mlaas_ray.training.frameworks.torch import Torch

    return Torch() if setup.settings.parameters.get("framework") == "torch" else Keras()


def keras_layers(module: Any) -> list[Any]:
    """Return the layers with weights, in the order in which a row meets them."""
    found = []

    def walk(one: Any) -> None:
        if isinstance(one, list | tuple):
            for part in one:
                walk(part)
        elif hasattr(one, "presence"):
            walk([one.values, one.presence])
        elif hasattr(one, "kernel"):
            found.append(one)

    for name in ("first", "networks", "rest"):
        walk(getattr(module, name, ()))
    return found


def run_in_keras(setup: Any, x: Any, mask: Any, weights: Any) -> Any:
    """Build a network, give it weights, and return its answers."""
    framework = setup_framework(setup)
    framework.prepare(threads=1, seed=5, precision="float32")
    module = framework.ours(setup)
    framework.run(module, x, mask)  # which makes the weights
    for layer, (kernel, bias) in zip(keras_layers(module), weights, strict=True):
        assert layer.kernel.shape == kernel.shape
        layer.set_weights([kernel] if bias is None else [kernel, bias])
    count = sum(int(np.prod(weight.shape)) for weight in module.trainable_weights)
    return count, framework.run(module, x, mask)


def of(framework: str, setup: Setup) -> Setup:
    """Note for which framework it is, for a process elsewhere."""
    settings = setup.settings.model_copy(update={"parameters": {"framework": framework}})
    return Setup(setup.model, setup.options, setup.features, setup.task, settings, setup.group)


def flattened_elsewhere(kernel: np.ndarray, images: list[tuple[int, int, int]], scalars: int) -> np.ndarray:
    """Sort the inputs of the layer after convolutions: PyTorch has channels first, Keras last."""
    order, start = list(range(scalars)), scalars
    for shape in images:
        size = int(np.prod(shape))
        order += np.arange(start, start + size).reshape(shape).transpose(1, 2, 0).ravel().tolist()
        start += size
    assert sorted(order) == list(range(len(kernel)))
    return kernel[order]


@pytest.mark.parametrize(("model", "options", "task"), CASES, ids=lambda case: str(case)[:60])
def test_equal_weights_give_equal_answers_in_both_frameworks(
    in_a_process: Callable[..., Any], model: str, options: dict[str, Any], task: str
) -> None:
    one, other = (of(name, setup_of(name, model, options, TASKS[task])) for name in LAYERED)
    x, mask = rows(40, one.width)
    weights, count, answers = in_a_process("torch", built_in_torch, one, x, mask)
    if model == "cnn":
        filters = options["channels"][-1]
        # 9 x 6 cells are halved once, to 4 x 3; 3 x 4 never
        images = [(filters, 4, 3), (filters, 3, 4)]
        first = 2 * len(options["channels"])
        kernel, bias = weights[first]
        weights[first] = flattened_elsewhere(kernel, images, 1), bias
    found, again = in_a_process("keras", run_in_keras, other, x, mask, weights)
    # every weight is one that is trained
    assert found == count == sum(k.size + (0 if b is None else b.size) for k, b in weights)
    assert answers.shape == again.shape == (40, TASKS[task].outputs)
    assert np.ptp(answers, axis=0).min() > 1e-2
    assert again == pytest.approx(answers, rel=1e-4, abs=1e-5)


def answers_of(setup: Any, *pairs: Any) -> Any:
    """Build a network and return its answers to some rows and masks."""
    framework = setup_framework(setup)
    framework.prepare(threads=1, seed=5, precision="float32")
    module = framework.ours(setup)
    return [np.asarray(framework.run(module, x, mask)) for x, mask in pairs]


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
@pytest.mark.parametrize("framework", LAYERED)
def test_the_order_of_objects_does_not_matter_and_those_that_are_not_there_are_not_seen(
    in_a_process: Callable[..., Any], framework: str, pool: str
) -> None:
    task = Task(kind="regression", names=("m",))
    setup = of(
        framework, setup_of(framework, "deepsets", {"pool": pool, "objects": (16,), "dropout": 0.0}, task)
    )
    x, mask = rows(30, VECTOR.width)
    mask[:, JETS] = mask[:, JETS[:, :1]]  # an object has all of its values or none
    x = x * mask

    def ordered(order: list[int], muons: list[int]) -> tuple[np.ndarray, np.ndarray]:
        columns = np.arange(VECTOR.width)
        columns[JETS] = JETS[order]
        columns[MUONS] = MUONS[muons]
        return x[:, columns], mask[:, columns]

    crossed = np.arange(VECTOR.width)
    crossed[JETS[:, 0]] = JETS[[1, 2, 0], 0]  # the variables of one jet given to another
    hidden = np.where(mask > 0, x, 99.0).astype(np.float32)
    hidden[:, [0, 1, 2]] = x[:, [0, 1, 2]]
    same, turned, muons, mixed, unseen, fewer = in_a_process(
        framework,
        answers_of,
        setup,
        (x, mask),
        ordered([2, 0, 1], [0, 1]),
        ordered([1, 0, 2], [1, 0]),
        (x[:, crossed], mask[:, crossed]),
        (hidden, mask),
        (x * np.isin(np.arange(VECTOR.width), JETS[0], invert=True), mask),
    )
    assert turned == pytest.approx(same, abs=1e-5)
    assert muons == pytest.approx(same, abs=1e-5)
    assert np.abs(mixed - same).max() > 1e-2
    assert unseen == pytest.approx(same, abs=1e-5)
    assert np.abs(fewer - same).max() > 1e-2


def pooled_by_hand(setup: Any, x: Any, mask: Any) -> Any:
    """Return a network's answers, and how it comes to them by plain numpy."""
    from scipy.special import erf

    framework = setup_framework(setup)
    framework.prepare(threads=1, seed=5, precision="float32")
    module = framework.ours(setup)
    weights = [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in torch_layers(module)]

    def dense(values: Any, layer: int) -> Any:
        kernel, bias = weights[layer]
        return values @ kernel.T + bias

    def gelu(values: Any) -> Any:
        return values * 0.5 * (1 + erf(values / np.sqrt(2)))

    found = [x[:, :3]]
    for number, columns in enumerate((JETS, MUONS)):
        objects = []
        for own in columns:
            seen = gelu(dense(np.concatenate([x[:, own], mask[:, own]], axis=1), number))
            objects.append(np.where(mask[:, own].max(axis=1, keepdims=True) > 0, seen, np.nan))
        stacked = np.stack(objects)
        exists = np.isfinite(stacked).any(axis=0)
        if setup.options["pool"] == "sum":
            pooled = np.nansum(stacked, axis=0)
        elif setup.options["pool"] == "mean":
            pooled = np.nansum(stacked, axis=0) / np.maximum(np.isfinite(stacked).sum(axis=0), 1)
        else:
            pooled = np.where(exists, np.nanmax(np.where(exists, stacked, 0), axis=0), 0)
        found.append(pooled)
    return framework.run(module, x, mask), dense(np.concatenate(found, axis=1), 2)


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
def test_objects_are_pooled_as_is_said(in_a_process: Callable[..., Any], pool: str) -> None:
    task = Task(kind="regression", names=("m",))
    setup = of("torch", setup_of("torch", "deepsets", {"pool": pool, "objects": (8,), "hidden": ()}, task))
    x, mask = rows(50, VECTOR.width)
    x[:3, JETS] = mask[:3, JETS] = 0.0  # events without a jet
    answers, by_hand = in_a_process("torch", pooled_by_hand, setup, x, mask)
    assert answers == pytest.approx(by_hand, abs=1e-5)


def waves_by_hand(setup: Any, x: Any, mask: Any) -> Any:
    """Return a network's answers, and how it comes to them by plain numpy."""
    framework = setup_framework(setup)
    framework.prepare(threads=1, seed=5, precision="float32")
    module = framework.ours(setup)
    framework.run(module, x, mask)  # which makes Keras' weights
    if setup.settings.parameters["framework"] == "torch":
        body, (layer,) = module.body, torch_layers(module)
        weights = (body.frequencies, body.phases, body.mixtures, layer.weight.T, layer.bias)
        weights = tuple(weight.detach().numpy() for weight in weights)
        count = sum(parameter.numel() for parameter in module.parameters())
    else:
        (layer,) = keras_layers(module)
        weights = tuple(np.asarray(weight) for weight in (*module.waves.weights, *layer.get_weights()))
        count = sum(int(np.prod(weight.shape)) for weight in module.trainable_weights)
    assert count == sum(weight.size for weight in weights)
    frequencies, phases, mixtures, kernel, bias = weights
    mixed = np.einsum("ncf,cfm->ncm", np.cos(x[:, :, None] * frequencies + phases), mixtures)
    seen = np.concatenate([x, mixed.reshape(len(x), -1), mask[:, 3:]], axis=1)  # 3: what every event has
    return framework.run(module, x, mask), seen @ kernel + bias


@pytest.mark.parametrize("framework", LAYERED)
def test_columns_are_also_seen_through_cosines_and_what_may_lack_through_its_mask(
    in_a_process: Callable[..., Any], framework: str
) -> None:
    task = Task(kind="regression", names=("m", "n"))
    setup = of(framework, setup_of(framework, "periodic", {"hidden": (), "frequencies": 5}, task))
    x, mask = rows(50, VECTOR.width)
    answers, by_hand = in_a_process(framework, waves_by_hand, setup, x, mask)
    assert answers == pytest.approx(by_hand, abs=1e-4)
    assert np.ptp(by_hand, axis=0).min() > 0.1


def test_cells_of_images_are_not_seen_through_cosines() -> None:
    assert (waved(VECTOR), waved(grid())) == (VECTOR.width, 1)
    np.testing.assert_array_equal(lacking(VECTOR), np.arange(3, 11))
    assert len(lacking(grid())) == 0
    seen = Statistics.of([1.0, np.nan])
    flat = FeatureSpec.of([Feature(name="a", kind="flat", statistics=seen), Feature(name="b", kind="flat")])
    np.testing.assert_array_equal(lacking(flat), [0])


def jagged(framework: str, x: Any, mask: Any, options: Any, kernels: Any) -> Any:
    """Run a JaggedArrayLinear of three inputs and two nodes with weights of ours."""
    from mlaas_ray.training.layers import jagged_array_linear

    values, presence, bias = kernels
    layer = jagged_array_linear(framework, 3, 2, **options)
    if framework == "torch":
        import torch

        with torch.no_grad():
            layer.values.weight.copy_(torch.from_numpy(values.T))
            if layer.values.bias is not None:
                layer.values.bias.copy_(torch.from_numpy(bias))
            if layer.presence is not None:
                layer.presence.weight.copy_(torch.from_numpy(presence.T))
            return layer(torch.from_numpy(x), torch.from_numpy(mask)).numpy()
    layer.values.set_weights([values, bias] if options.get("bias", True) else [values])
    if layer.presence is not None:
        layer.presence.set_weights([presence])
    return layer(x, mask).numpy()


@pytest.mark.parametrize(
    "options", [{}, {"presence": True}, {"bias": False}, {"bias": False, "presence": True}]
)
@pytest.mark.parametrize("framework", LAYERED)
def test_a_jagged_array_layer_takes_values_and_mask(
    in_a_process: Callable[..., Any], framework: str, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(3)
    kernels = [random.normal(0, 1, shape).astype(np.float32) for shape in ((3, 2), (3, 2), (2,))]
    x = random.normal(0, 1, (6, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0]], np.float32)
    x[mask == 0] = np.nan  # what is not there may be anything
    answers = in_a_process(framework, jagged, framework, x, mask, options, kernels)
    values, presence, bias = kernels
    expected = np.nan_to_num(x) @ values
    expected = expected + (mask @ presence if options.get("presence") else 0)
    expected = expected + (bias if options.get("bias", True) else 0)
    assert answers == pytest.approx(expected, abs=1e-5)


def test_a_row_is_taken_apart_into_its_objects() -> None:
    parts = objects_of(VECTOR)
    assert parts.flat.tolist() == [0, 1, 2]
    assert [one.name for one in parts.collections] == ["Jet", "Muon"]
    # objects, then their variables in the order of the columns
    assert parts.collections[0].columns.tolist() == JETS.tolist()
    assert parts.collections[1].columns.tolist() == MUONS.tolist()


def test_branches_of_other_lengths_make_objects_of_their_own() -> None:
    spec = FeatureSpec.of(
        [
            Feature(name="Jet_a", kind="jagged", length=2),
            Feature(name="Jet_b", kind="jagged", length=1),
            Feature(name="Jet_c", kind="jagged", length=2),
            Feature(name="Jet_none", kind="jagged", length=0),
        ]
    )
    parts = objects_of(spec)
    assert [one.columns.tolist() for one in parts.collections] == [[[0, 3], [1, 4]], [[2]]]
    assert len(parts.flat) == 0


def test_a_row_is_taken_apart_into_its_images() -> None:
    spec = grid()
    parts = images_of(spec)
    assert parts.scalars == 1
    assert parts.views == (Image(1, (2, 9, 6)), Image(1 + 108, (1, 3, 4)))
    assert parts.views[-1].stop == spec.width
    x = np.arange(spec.width, dtype=np.float32)[None]
    for view, images in zip(parts.views, spec.fold(x).values(), strict=True):
        assert (x[:, view.start : view.stop].reshape(-1, *view.shape) == images).all()


@pytest.mark.parametrize("framework", LAYERED)
@pytest.mark.parametrize(
    ("model", "features", "said"),
    [
        (
            "cnn",
            VECTOR,
            "the model cnn needs images, and the inputs are vectors. Say inputs.representation: grid",
        ),
        ("deepsets", grid(), "the model deepsets needs jagged branches, and there are none. Use mlp"),
        (
            "deepsets",
            FeatureSpec.of([Feature(name="MET", kind="flat")]),
            "the model deepsets needs jagged branches",
        ),
    ],
    ids=["cnn", "deepsets of a grid", "deepsets of flat values"],
)
def test_a_model_that_does_not_suit_the_inputs_is_refused(
    in_a_process: Callable[..., Any], framework: str, model: str, features: FeatureSpec, said: str
) -> None:
    setup = of(framework, setup_of(framework, model, {}))
    wrong = Setup(setup.model, {}, features, setup.task, setup.settings, setup.group)
    assert said in in_a_process(framework, refusal, wrong)


def refusal(setup: Any) -> str:
    from mlaas_ray.core.errors import ModelError

    try:
        setup_framework(setup).ours(setup)
    except ModelError as error:
        return str(error)
    return "nothing was refused"


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("mlp", {"hiden": [5]}, "unknown key 'hiden' in model mlp. Did you mean 'hidden'"),
        (
            "masked_linear",
            {"drop_out": 0.2},
            "unknown key 'drop_out' in model masked_linear. Did you mean 'dropout'",
        ),
        ("deepsets", {"pooling": "sum"}, "unknown key 'pooling' in model deepsets. Did you mean 'pool'"),
        ("deepsets", {"pool": "median"}, "model deepsets: pool: "),
        ("cnn", {"kernels": 3}, "unknown key 'kernels' in model cnn. Did you mean 'kernel'"),
        ("cnn", {"kernel": 0}, "model cnn: kernel: "),
        ("cnn", {"kernel": 4}, "model cnn: kernel: "),
        ("mlp", {"dropout": 1.0}, "model mlp: dropout: "),
        ("mlp", {"hidden": [8, 0]}, "model mlp: hidden"),
        ("cnn", {"channels": [-1]}, "model cnn: channels"),
        ("deepsets", {"objects": "many"}, "model deepsets: objects: "),
    ],
)
def test_an_option_that_is_none_is_refused_with_the_nearest(
    model: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        options_of(setup_of("torch", model, options))
    assert said in str(caught.value)


@pytest.mark.parametrize("model", MODELS)
def test_without_options_a_model_has_usual_ones(model: str) -> None:
    assert options_of(setup_of("torch", model, {})) == MODELS[model]()


@pytest.mark.parametrize(
    ("size", "layers", "count"),
    [(1, 3, 0), (3, 3, 0), (4, 3, 1), (7, 3, 1), (8, 3, 2), (64, 3, 3), (64, 0, 0)],
)
def test_an_image_is_halved_while_it_has_four_cells(size: int, layers: int, count: int) -> None:
    assert halvings(size, layers) == count
