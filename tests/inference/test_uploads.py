import json
import shutil

import pytest

from mlaas_ray.core.errors import InvalidNameError, ModelError, PackageError
from mlaas_ray.core.package import write_package
from mlaas_ray.inference.inspection import inspect_model
from mlaas_ray.inference.uploads import model_file_name, publish_bundle, publish_form
from mlaas_ray.repository import Repository
from tests.inference.test_archives import member, write_tar
from tests.serving import SPEC, WIDTH, signature, write_onnx

LIMIT = 1 << 24


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


@pytest.fixture
def content(tmp_path, onnx_file):
    made = tmp_path / "content"
    made.mkdir()
    shutil.copy(onnx_file, made / "model.onnx")
    return made


def left_behind(repository):
    return list(repository.root.iterdir()) if repository.root.exists() else []


def test_a_form_becomes_a_package_with_its_params_labels_and_features(repository, content):
    params = {"name": "toy", "labels": "/home/me/names.txt", "description": "mine"}
    (content / "params.json").write_text(json.dumps(params))
    (content / "labels.txt").write_text("background\nsignal\n\n")
    (content / "features.json").write_text(SPEC.to_json())
    version = publish_form(repository, "toy", content, inspect_model)
    package = repository.get(version.name, version.version)
    package.check()
    assert package.labels == ["background", "signal"]
    assert package.features == SPEC
    assert package.signature.width == WIDTH
    assert json.loads((package.path / "params.json").read_text()) == params


@pytest.mark.parametrize(
    ("outputs", "labels", "fits"),
    [(1, 1, True), (1, 2, True), (1, 3, False), (3, 3, True), (3, 2, False), (3, 4, False), (3, 1, False)],
)
def test_labels_must_be_as_many_as_the_outputs(repository, content, outputs, labels, fits, tmp_path):
    def inspect(path, model_format):
        found = signature()
        output = found.outputs[0].model_copy(update={"shape": (None, outputs)})
        return found.model_copy(update={"outputs": (output,)})

    (content / "labels.txt").write_text("".join(f"class {number}\n" for number in range(labels)))
    if fits:
        version = publish_form(repository, "toy", content, inspect)
        assert len(repository.get("toy", version.version).labels) == labels
        return
    with pytest.raises(PackageError, match=f"there are {labels} labels, but the model has {outputs} outputs"):
        publish_form(repository, "toy", content, inspect)
    assert not left_behind(repository)


def test_a_package_with_other_labels_than_outputs_is_refused(repository, tmp_path, onnx_package):
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(onnx_package.model_path, made / "model.onnx")
    write_package(
        made,
        name="toy",
        framework="torch",
        model_format="onnx",
        signature=signature(),
        labels=["a", "b", "c"],
    )
    members = [member(f"toy/{path.name}", path.read_bytes()) for path in made.iterdir()]
    with pytest.raises(PackageError, match="3 labels, but the model has 1 output"):
        publish_bundle(repository, write_tar(tmp_path / "b", *members), LIMIT, inspect_model)
    assert not left_behind(repository)


def test_a_form_without_name_takes_that_of_its_params(repository, content):
    (content / "params.json").write_text('{"name": "other"}')
    assert publish_form(repository, "", content, inspect_model).name == "other"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("params.json", "{", "params.json is not JSON"),
        ("params.json", "[1]", "not a JSON object"),
        ("params.json", '{"name": 3}', "name is not a string"),
        ("params.json", '{"img_channels": "3"}', "img_channels"),
        ("params.json", '{"name": "another"}', "name=toy, its params another"),
        ("features.json", "{}", "features.json"),
        ("features.json", "no", "features.json"),
        ("labels.txt", '["a", ', "no JSON list"),
    ],
)
def test_a_bad_part_is_named_and_leaves_nothing(repository, content, file, text, said):
    (content / file).write_text(text)
    with pytest.raises(PackageError, match=said):
        publish_form(repository, "toy", content, inspect_model)
    assert not left_behind(repository)


def test_features_of_another_width_are_refused(repository, content):
    (content / "features.json").write_text(SPEC.to_json())
    write_onnx(content / "model.onnx", width=WIDTH + 1)
    with pytest.raises(ModelError, match="has 5 columns, the model takes 6"):
        publish_form(repository, "toy", content, inspect_model)
    assert not left_behind(repository)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-x", "a b", "x" * 129])
def test_a_name_that_is_no_folder_is_refused(repository, content, name):
    with pytest.raises(InvalidNameError):
        publish_form(repository, name, content, inspect_model)
    assert not left_behind(repository)


def test_a_form_without_any_name_is_refused(repository, content):
    with pytest.raises(PackageError, match="names no model"):
        publish_form(repository, "", content, inspect_model)


def test_a_bundle_of_an_onnx_file_is_published_under_its_folders_name(repository, tmp_path, onnx_file):
    bundle = write_tar(
        tmp_path / "b",
        member("my.model-1/net.onnx", onnx_file.read_bytes()),
        member("my.model-1/labels.json", b'["a", "b"]'),
        compress=True,
    )
    version = publish_bundle(repository, bundle, LIMIT, inspect_model)
    assert str(version) == "my.model-1:1"
    assert repository.get("my.model-1").labels == ["a", "b"]
    assert publish_bundle(repository, bundle, LIMIT, inspect_model).version == 2


def test_a_bundle_of_a_package_is_published_as_it_is(repository, tmp_path, onnx_package):
    files = [path for path in onnx_package.path.rglob("*") if path.is_file()]
    bundle = write_tar(tmp_path / "b", *(member(f"toy/{path.name}", path.read_bytes()) for path in files))
    publish_bundle(repository, bundle, LIMIT, inspect_model)
    assert repository.get("toy").digest == onnx_package.digest


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"toy/readme.txt": b"x"}, "no model"),
        ({"toy/graph.pb": b"x"}, "frozen TensorFlow graph"),
        ({"toy/a.onnx": b"x", "toy/b.onnx": b"x"}, "several models"),
        ({"toy/a.onnx": b"x", "toy/1/saved_model.pb": b"x"}, "several models"),
        ({"toy/package.json": b"{}"}, "package"),
        ({"toy/a.onnx": b"junk"}, "not an ONNX file"),
        ({".toy/a.onnx": b"junk"}, "cannot be a model's name"),
    ],
)
def test_a_bundle_of_another_shape_is_refused_and_leaves_nothing(repository, tmp_path, files, said):
    bundle = write_tar(tmp_path / "b", *(member(name, data) for name, data in files.items()))
    with pytest.raises(ValueError, match=said):
        publish_bundle(repository, bundle, LIMIT, inspect_model)
    assert not left_behind(repository)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "models") == ["b"]


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret", "missing.bin"])
def test_an_onnx_file_that_reads_weights_from_elsewhere_is_refused(repository, content, location):
    import onnx

    (content.parent / "secret").write_bytes(bytes(4 * WIDTH))
    model = onnx.load(str(content / "model.onnx"))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    (content / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="reads weights from"):
        publish_form(repository, "toy", content, inspect_model)
    assert not left_behind(repository)


def test_weights_beside_the_onnx_file_come_along(repository, tmp_path, onnx_file):
    import onnx

    split = tmp_path / "split"
    split.mkdir()
    onnx.save(
        onnx.load(str(onnx_file)),
        str(split / "net.onnx"),
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=0,
    )
    bundle = write_tar(
        tmp_path / "b", *(member(f"toy/{path.name}", path.read_bytes()) for path in split.iterdir())
    )
    publish_bundle(repository, bundle, LIMIT, inspect_model)
    assert (repository.get("toy").path / "net.onnx.data").is_file()


def test_a_frozen_graph_is_told_from_onnx():
    assert model_file_name(b"\x08\x07") == "model.onnx"
    with pytest.raises(PackageError, match="frozen TensorFlow graph"):
        model_file_name(b"\x0a\x10")
    with pytest.raises(PackageError, match="not ONNX"):
        model_file_name(b"")
