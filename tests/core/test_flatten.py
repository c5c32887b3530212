from __future__ import annotations

from collections.abc import Callable
from typing import Any

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaas_ray.core.errors import EventError, FeatureError
from mlaas_ray.core.features import Feature, FeatureSpec
from mlaas_ray.core.flatten import flatten, flatten_events

NAN = np.nan

# Four events: two jets and three, more than are kept; one and none; no object at all; the usual.
EVENTS: list[dict[str, Any]] = [
    {"MET_pt": 31.5, "nJet": 2, "Jet_pt": [52.0, 33.0], "Jet_eta": [0.5, -1.5], "Muon_pt": [5.0, 4.0, 3.0]},
    {"MET_pt": 8.0, "nJet": 1, "Jet_pt": [40.0], "Jet_eta": [2.5], "Muon_pt": []},
    {"MET_pt": 0.0, "nJet": 0, "Jet_pt": [], "Jet_eta": [], "Muon_pt": []},
    {"MET_pt": 99.0, "nJet": 2, "Jet_pt": [70.0, 60.0], "Jet_eta": [0.0, 1.0], "Muon_pt": [20.0]},
]
ROWS = np.array(
    [
        # MET_pt nJet  Jet_eta     Jet_pt      Muon_pt
        [31.5, 2, 0.5, -1.5, 52.0, 33.0, 5.0, 4.0],
        [8.0, 1, 2.5, NAN, 40.0, NAN, NAN, NAN],
        [0.0, 0, NAN, NAN, NAN, NAN, NAN, NAN],
        [99.0, 2, 0.0, 1.0, 70.0, 60.0, 20.0, NAN],
    ],
    dtype=np.float32,
)


def columns(events: list[dict[str, Any]]) -> dict[str, ak.Array]:
    """Turn events into the arrays a reader would give."""
    return {name: ak.Array([event[name] for event in events]) for name in events[0]}


@pytest.fixture
def spec() -> FeatureSpec:
    jagged = [Feature(name=name, kind="jagged", length=2) for name in ("Jet_pt", "Jet_eta", "Muon_pt")]
    return FeatureSpec.of([*jagged, *(Feature(name=name, kind="flat") for name in ("MET_pt", "nJet"))])


def jagged_spec(length: int) -> FeatureSpec:
    return FeatureSpec.of([Feature(name="x", kind="jagged", length=length)])


class TestArrays:
    def test_four_events_become_the_rows_one_writes_by_hand(self, spec: FeatureSpec) -> None:
        rows = flatten(columns(EVENTS), spec)
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        np.testing.assert_array_equal(rows, ROWS)

    def test_the_order_of_the_arrays_does_not_matter_nor_do_further_ones(self, spec: FeatureSpec) -> None:
        arrays = dict(reversed(columns(EVENTS).items())) | {"unused": ak.Array(["a", "b", "c", "d"])}
        np.testing.assert_array_equal(flatten(arrays, spec), ROWS)

    def test_a_slice_in_the_middle_of_a_file_gives_its_rows(self, spec: FeatureSpec) -> None:
        arrays = {name: array[1:3] for name, array in columns(EVENTS).items()}
        np.testing.assert_array_equal(flatten(arrays, spec), ROWS[1:3])

    @pytest.mark.parametrize(
        "pick", [[3, 0, 2], [True, False, False, True], [1, 1, 1], slice(None, None, -1)], ids=str
    )
    def test_selected_and_reordered_events_give_their_rows(self, spec: FeatureSpec, pick: Any) -> None:
        arrays = {name: array[pick] for name, array in columns(EVENTS).items()}
        np.testing.assert_array_equal(flatten(arrays, spec), ROWS[pick])

    def test_no_events_give_no_rows(self, spec: FeatureSpec) -> None:
        arrays = {name: array[:0] for name, array in columns(EVENTS).items()}
        assert flatten(arrays, spec).shape == (0, spec.width)

    def test_a_branch_that_is_empty_in_every_event_is_all_missing(self) -> None:
        empty = ak.Array(ak.contents.ListOffsetArray(ak.index.Index64([0, 0, 0]), ak.contents.NumpyArray([])))
        rows = flatten({"x": empty}, jagged_spec(3))
        assert np.isnan(rows).all()
        assert rows.shape == (2, 3)

    def test_events_written_without_any_value_have_no_type_and_are_all_missing(self) -> None:
        assert np.isnan(flatten({"x": ak.Array([[], []])}, jagged_spec(2))).all()

    def test_a_length_beyond_the_largest_multiplicity_is_filled_up(self) -> None:
        rows = flatten({"x": ak.Array([[1.0, 2.0], [3.0]])}, jagged_spec(4))
        np.testing.assert_array_equal(rows, [[1, 2, NAN, NAN], [3, NAN, NAN, NAN]])

    def test_a_jagged_branch_of_no_columns_is_left_out(self) -> None:
        spec = FeatureSpec.of([Feature(name="x", kind="jagged", length=0), Feature(name="y", kind="flat")])
        rows = flatten({"x": ak.Array([[1.0], []]), "y": np.array([1.0, 2.0])}, spec)
        np.testing.assert_array_equal(rows, [[1], [2]])

    @pytest.mark.parametrize(
        "dtype", ["bool", "int8", "uint8", "int64", "uint64", "float32", "float64", ">f4", ">i2"]
    )
    def test_every_numeric_type_is_converted(self, dtype: str) -> None:
        counts, content = [2, 0, 1], np.array([1, 0, 1]).astype(dtype)
        native = content.astype(content.dtype.newbyteorder("="))
        spec = FeatureSpec.of([Feature(name="x", kind="jagged", length=2), Feature(name="y", kind="flat")])
        rows = flatten({"x": ak.unflatten(native, counts), "y": content}, spec)
        np.testing.assert_array_equal(rows, [[1, 1, 0], [0, NAN, NAN], [1, 1, NAN]])

    def test_the_largest_integers_are_rounded_not_wrapped(self) -> None:
        values = np.array([2**64 - 1, 2**63], dtype=np.uint64)
        rows = flatten({"x": ak.unflatten(values, [1, 1])}, jagged_spec(1))
        np.testing.assert_array_equal(rows[:, 0], np.array([2.0**64, 2.0**63], dtype=np.float32))

    def test_values_beyond_float32_become_infinite_without_a_warning(self) -> None:
        spec = FeatureSpec.of([Feature(name="x", kind="jagged", length=1), Feature(name="y", kind="flat")])
        rows = flatten({"x": ak.Array([[-1e300], []]), "y": np.array([1e300, 1.0])}, spec)
        np.testing.assert_array_equal(rows, [[np.inf, -np.inf], [1, NAN]])
        np.testing.assert_array_equal(flatten_events([{"x": [-1e300], "y": 1e300}], spec), rows[:1])

    def test_values_that_may_be_missing_are_missing(self) -> None:
        spec = FeatureSpec.of([Feature(name="x", kind="jagged", length=2), Feature(name="y", kind="flat")])
        rows = flatten({"x": ak.Array([[1, None], [None]]), "y": ak.Array([None, 5])}, spec)
        np.testing.assert_array_equal(rows, [[NAN, 1, NAN], [5, NAN, NAN]])

    def test_a_missing_list_is_an_empty_one(self) -> None:
        rows = flatten({"x": ak.Array([[1.0, 2.0], None, [3.0]])}, jagged_spec(2))
        np.testing.assert_array_equal(rows, [[1, 2], [NAN, NAN], [3, NAN]])

    def test_nan_and_infinity_in_a_file_stay_what_they_are(self) -> None:
        rows = flatten({"x": ak.Array([[NAN, np.inf], [-np.inf]])}, jagged_spec(2))
        np.testing.assert_array_equal(rows, [[NAN, np.inf], [-np.inf, NAN]])

    @pytest.mark.parametrize(
        "regular",
        [np.arange(6.0).reshape(3, 2), ak.from_numpy(np.arange(6.0).reshape(3, 2), regulararray=True)],
        ids=["numpy", "awkward"],
    )
    def test_lists_of_one_size_are_lists(self, regular: Any) -> None:
        np.testing.assert_array_equal(flatten({"x": regular}, jagged_spec(3))[:, :2], regular)
        np.testing.assert_array_equal(flatten({"x": regular[1:]}, jagged_spec(1))[:, 0], [2, 4])

    def test_lists_that_point_anywhere_are_followed(self) -> None:
        layout = ak.contents.ListArray(
            ak.index.Index64([3, 0, 2]), ak.index.Index64([5, 0, 3]), ak.contents.NumpyArray(np.arange(9.0))
        )
        rows = flatten({"x": ak.Array(layout)}, jagged_spec(2))
        np.testing.assert_array_equal(rows, [[3, 4], [NAN, NAN], [2, NAN]])

    def test_content_beyond_the_last_offset_is_not_read(self) -> None:
        layout = ak.contents.ListOffsetArray(
            ak.index.Index64([0, 1, 2]), ak.contents.NumpyArray(np.arange(9.0))
        )
        np.testing.assert_array_equal(flatten({"x": ak.Array(layout)}, jagged_spec(1)), [[0], [1]])

    def test_collections_of_equal_total_but_other_counts_are_kept_apart(self) -> None:
        spec = FeatureSpec.of([Feature(name=name, kind="jagged", length=2) for name in "abc"])
        arrays = {"a": ak.Array([[1], [2, 3]]), "b": ak.Array([[4, 5], [6]]), "c": ak.Array([[7, 8], [9]])}
        expected = [[1, NAN, 4, 5, 7, 8], [2, 3, 6, NAN, 9, NAN]]
        np.testing.assert_array_equal(flatten(arrays, spec), expected)


class TestReuse:
    def test_rows_are_filled_in_place_and_nothing_of_before_shines_through(self, spec: FeatureSpec) -> None:
        out = np.full((4, spec.width), 7.0, dtype=np.float32)
        assert flatten(columns(EVENTS), spec, out) is out
        np.testing.assert_array_equal(out, ROWS)

    def test_part_of_a_larger_buffer_can_be_filled(self, spec: FeatureSpec) -> None:
        buffer = np.full((10, spec.width), 7.0, dtype=np.float32)
        flatten(columns(EVENTS), spec, buffer[3:7])
        np.testing.assert_array_equal(buffer[3:7], ROWS)
        assert (buffer[:3] == 7).all()
        assert (buffer[7:] == 7).all()

    @pytest.mark.parametrize(
        "out",
        [
            np.empty((3, 8), np.float32),
            np.empty((4, 9), np.float32),
            np.empty((4, 8), np.float64),
            np.empty((8, 4), np.float32).T,
            np.empty((4, 16), np.float32)[:, ::2],
        ],
        ids=["events", "features", "dtype", "transposed", "strided"],
    )
    def test_rows_that_cannot_be_filled_are_refused(self, spec: FeatureSpec, out: np.ndarray) -> None:
        with pytest.raises(FeatureError, match=r"float32 of shape \(4, 8\)"):
            flatten(columns(EVENTS), spec, out)


class TestWrongArrays:
    def test_a_missing_branch_is_named_with_the_nearest(self, spec: FeatureSpec) -> None:
        arrays = columns(EVENTS)
        arrays["MET_Pt"] = arrays.pop("MET_pt")
        with pytest.raises(FeatureError, match=r"no values for 'MET_pt'.*Did you mean 'MET_Pt'"):
            flatten(arrays, spec)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("MET_pt", ak.Array([[1.0], [], [2.0], []])),
            ("MET_pt", np.ones((4, 2))),
            ("MET_pt", np.array(["a", "b", "c", "d"])),
            ("MET_pt", np.array([1j, 1j, 1j, 1j])),
            ("MET_pt", ak.Array(["a", "b", "c", "d"])),
            ("Muon_pt", ak.Array([1.0, 2.0, 3.0, 4.0])),
            ("Muon_pt", np.ones(4)),
            ("Muon_pt", ak.Array([[[1.0]], [], [], []])),
            ("Muon_pt", ak.Array([["a"], [], [], []])),
            ("Muon_pt", ak.Array(["a", "b", "c", "d"])),
            ("Muon_pt", ak.Array([[{"pt": 1.0}], [], [], []])),
            ("MET_pt", ak.Array([{"pt": 1.0}] * 4)),
            ("MET_pt", np.ones(3)),
            ("Muon_pt", ak.Array([[1.0], [2.0]])),
        ],
        ids=[
            "jagged for flat",
            "matrix for flat",
            "strings for flat",
            "complex for flat",
            "awkward strings for flat",
            "flat for jagged",
            "numpy for jagged",
            "doubly jagged",
            "lists of strings",
            "strings for jagged",
            "lists of records",
            "records",
            "fewer flat events",
            "fewer jagged events",
        ],
    )
    def test_a_branch_that_does_not_fit_is_named(self, spec: FeatureSpec, name: str, values: Any) -> None:
        with pytest.raises(FeatureError, match=f"'{name}'"):
            flatten(columns(EVENTS) | {name: values}, spec)


class TestEvents:
    def test_events_of_a_program_give_the_rows_of_the_arrays(self, spec: FeatureSpec) -> None:
        np.testing.assert_array_equal(flatten_events(EVENTS, spec), ROWS)

    def test_no_events_give_no_rows(self, spec: FeatureSpec) -> None:
        assert flatten_events([], spec).shape == (0, spec.width)

    def test_numpy_values_and_tuples_are_fine(self, spec: FeatureSpec) -> None:
        events = [
            {
                name: np.asarray(value) if isinstance(value, list) else np.float32(value)
                for name, value in event.items()
            }
            for event in EVENTS
        ]
        np.testing.assert_array_equal(flatten_events(events, spec), ROWS)
        assert flatten_events([{"Jet_pt": (1, 2)}], spec)[0, 4] == 1

    def test_what_is_left_out_or_null_is_missing(self, spec: FeatureSpec) -> None:
        rows = flatten_events([{}, {"MET_pt": None, "Jet_pt": None}, {"Jet_pt": [None, 2.0]}], spec)
        assert np.isnan(rows[:2]).all()
        np.testing.assert_array_equal(rows[2, 4:6], [NAN, 2])

    def test_a_fixed_branch_has_all_its_values_or_none(self) -> None:
        spec = FeatureSpec.of([Feature(name="cov", kind="fixed", length=3)])
        rows = flatten_events([{"cov": [1, None, 3]}, {}, {"cov": None}], spec)
        np.testing.assert_array_equal(rows, [[1, NAN, 3], [NAN] * 3, [NAN] * 3])
        for short in ([1, 2], [1, 2, 3, 4]):
            with pytest.raises(EventError, match=f"'cov' has 3 values an event, but {len(short)} were sent"):
                flatten_events([{"cov": short}], spec)

    def test_integers_of_any_size_are_numbers(self, spec: FeatureSpec) -> None:
        rows = flatten_events([{"MET_pt": 2**70}, {"MET_pt": -(10**400)}], spec)
        np.testing.assert_array_equal(rows[:, 0], np.array([2.0**70, -np.inf], np.float32))

    def test_an_unknown_branch_is_refused_with_the_nearest(self, spec: FeatureSpec) -> None:
        with pytest.raises(EventError, match=r"knows no branch 'Jet_pT'.*Did you mean 'Jet_pt'"):
            flatten_events([EVENTS[0], {"Jet_pT": [1.0]}], spec)

    @pytest.mark.parametrize(
        ("event", "reason"),
        [
            ({"MET_pt": [1.0]}, "'MET_pt' has one value an event, but a list was sent"),
            ({"MET_pt": "31"}, "'MET_pt': '31' is not a number"),
            ({"MET_pt": {"pt": 1}}, "'MET_pt'.*is not a number"),
            ({"MET_pt": np.array([1.0, 2.0])}, "'MET_pt'"),
            ({"Jet_pt": 52.0}, r"'Jet_pt' is jagged, but 52.0 is no list.*Send \"Jet_pt\": \[52.0\]"),
            ({"Jet_pt": "52"}, "'Jet_pt' is jagged, but '52' is no list"),
            ({"Jet_pt": b"52"}, "'Jet_pt'"),
            ({"Jet_pt": [[52.0]]}, "'Jet_pt'"),
            ({"Jet_pt": ["52"]}, "'Jet_pt': '52' is not a number"),
            ({"Jet_pt": np.array(1.0)}, "'Jet_pt'"),
        ],
        ids=lambda case: str(case)[:40],
    )
    def test_a_value_that_does_not_fit_is_named(
        self, spec: FeatureSpec, event: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(EventError, match=reason):
            flatten_events([event], spec)


def pad_with_awkward(array: ak.Array, length: int) -> np.ndarray:
    """Flatten a jagged array the slow and well-known way."""
    padded = ak.fill_none(ak.pad_none(array, length, axis=1, clip=True), np.nan)
    return ak.to_numpy(ak.values_astype(padded, np.float64)).astype(np.float32)


FLOATS = st.floats(width=32) | st.integers(-(2**40), 2**40)
LISTS = st.lists(st.lists(FLOATS, max_size=6), min_size=1, max_size=12)


class TestAgainstAwkward:
    @given(lists=LISTS, length=st.integers(1, 8), start=st.integers(0, 5))
    def test_any_lists_are_padded_as_awkward_pads_them(
        self, lists: list[list[float]], length: int, start: int
    ) -> None:
        array = ak.values_astype(ak.Array(lists), np.float64)[start:]
        expected = pad_with_awkward(array, length)
        np.testing.assert_array_equal(flatten({"x": array}, jagged_spec(length)), expected)
        np.testing.assert_array_equal(
            flatten_events([{"x": values} for values in lists[start:]], jagged_spec(length)), expected
        )


REAL_FILES = {
    "sigbkg/single_top.root": "events",
    "sigbkg/ww.root": "events",
    "nanoaod/nano_dy.root": "Events",
    "nanoaod/nanoAOD_2015_CMS_Open_Data_ttbar.root": "Events",
    "nanoaod/scouting_nano.root": "Events",
    "nanoaod/missing_luminosityBlock.root": "Events",
    "nanoaod/DYJetsToLL--UL17_v6-v2_109_Skim.root": "Events",
}


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_events_are_padded_as_awkward_pads_them(
    name: str, real_data: Any, numeric: Callable[..., Any]
) -> None:
    arrays, features = numeric(real_data / name, REAL_FILES[name])
    spec = FeatureSpec.of(features)
    rows = flatten(arrays, spec)
    assert len(rows) > 0
    for feature in spec.features:
        start = spec.starts[feature.name]
        if feature.kind == "flat":
            expected = np.asarray(arrays[feature.name], dtype=np.float32)[:, None]
        else:
            expected = pad_with_awkward(arrays[feature.name], feature.length)
        np.testing.assert_array_equal(rows[:, start : start + len(feature.columns)], expected, feature.name)
    events = [{f.name: arrays[f.name][i].tolist() for f in features} for i in range(0, len(rows), 97)]
    np.testing.assert_array_equal(flatten_events(events, spec), rows[::97])


@pytest.fixture
def numeric() -> Callable[..., Any]:
    """Read the flat and jagged numeric branches of a file, and features that fit them; some cut off."""
    import uproot

    def read(path: Any, tree: str) -> tuple[dict[str, Any], list[Feature]]:
        with uproot.open(path) as file:
            branches = file[tree].arrays(entry_stop=3000, how=dict)
        arrays, features = {}, []
        for name, array in branches.items():
            if array.ndim > 2 or ak.type(array).content is None or "string" in str(array.type):
                continue
            most = int(ak.max(ak.num(array), initial=0)) if array.ndim == 2 else 1
            kind = "jagged" if array.ndim == 2 else "flat"
            arrays[name] = array
            length = min(most, 5) if kind == "jagged" else 1
            features.append(Feature(name=name, kind=kind, length=length, multiplicity=most))
        return arrays, features

    return read
