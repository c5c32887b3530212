from __future__ import annotations

import json

import numpy as np
import pytest

from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.features import Feature, FeatureSpec, Statistics

SEEN = Statistics.of([2.0, 4.0, 10.0])


def spec(**options: object) -> FeatureSpec:
    """A spec whose features are given in an order that is not theirs."""
    return FeatureSpec.of(
        [
            Feature(name="Muon_pt", kind="jagged", length=2, multiplicity=5, statistics=SEEN),
            Feature(name="run", kind="flat"),
            Feature(name="Jet_pt", kind="jagged", length=3, multiplicity=3, statistics=SEEN),
            Feature(name="MET_pt", kind="flat", statistics=SEEN),
        ],
        **options,  # type: ignore[arg-type]
    )


class TestOrder:
    def test_flat_columns_come_first_then_jagged_each_sorted_by_name(self) -> None:
        assert spec().columns == (
            "MET_pt",
            "run",
            "Jet_pt_0",
            "Jet_pt_1",
            "Jet_pt_2",
            "Muon_pt_0",
            "Muon_pt_1",
        )

    def test_positions_agree_with_the_columns(self) -> None:
        made = spec()
        assert made.width == 7
        assert made.starts == {"MET_pt": 0, "run": 1, "Jet_pt": 2, "Muon_pt": 5}
        assert [made.columns[made.index[column]] for column in made.columns] == list(made.columns)
        for name, start in made.starts.items():
            assert made.columns[start].startswith(name)

    def test_a_spec_in_another_order_is_refused(self) -> None:
        with pytest.raises(ValueError, match="flat before jagged"):
            FeatureSpec(features=spec().features[::-1])

    def test_two_columns_of_one_name_are_refused_by_name(self) -> None:
        clash = [Feature(name="Jet_0", kind="flat"), Feature(name="Jet", kind="jagged", length=2)]
        with pytest.raises(FeatureError, match=r"columns of the same name: Jet_0"):
            FeatureSpec.of(clash)

    @pytest.mark.parametrize("features", [[], [Feature(name="Jet_pt", kind="jagged", length=0)]])
    def test_a_spec_without_columns_is_refused(self, features: list[Feature]) -> None:
        with pytest.raises(FeatureError, match="at least one column"):
            FeatureSpec.of(features)

    def test_a_jagged_branch_that_is_always_empty_has_no_column(self) -> None:
        made = FeatureSpec.of([Feature(name="a", kind="jagged", length=0), Feature(name="b", kind="flat")])
        assert made.columns == ("b",)

    def test_one_flat_feature_has_one_column_only(self) -> None:
        with pytest.raises(ValueError, match="flat branch has length 1, not 3"):
            Feature(name="MET_pt", kind="flat", length=3)


class TestAffine:
    def test_minmax_puts_the_seen_range_onto_zero_to_one(self) -> None:
        made = spec(normalisation="minmax")
        offset, scale = made.affine()
        assert offset.dtype == scale.dtype == np.float32
        assert offset.shape == scale.shape == (made.width,)
        values = (np.array([2.0, 4.0, 10.0]) - offset[0]) * scale[0]
        np.testing.assert_allclose(values, [0, 0.25, 1])

    def test_standard_gives_zero_mean_and_unit_deviation(self) -> None:
        offset, scale = spec(normalisation="standard").affine()
        values = (np.array([2.0, 4.0, 10.0]) - offset[0]) * scale[0]
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-6)

    def test_robust_gives_zero_median_and_unit_interquartile_range(self) -> None:
        values = np.random.default_rng(0).exponential(30.0, 10_000)
        made = FeatureSpec.of(
            [Feature(name="x", kind="flat", statistics=Statistics.of(values))], normalisation="robust"
        )
        offset, scale = made.affine()
        low, middle, high = np.quantile((values - offset[0]) * scale[0], [0.25, 0.5, 0.75])
        assert middle == pytest.approx(0.0, abs=0.02)
        assert high - low == pytest.approx(1.0, rel=0.02)

    def test_robust_scales_by_the_deviation_where_the_middle_half_is_one_value(self) -> None:
        features = [
            Feature(name="equal", kind="flat", statistics=Statistics.of([3.0] * 9)),
            Feature(name="mostly", kind="flat", statistics=Statistics.of([0.0] * 9 + [10.0])),
        ]
        offset, scale = FeatureSpec.of(features, normalisation="robust").affine()
        assert (offset[0], scale[0]) == (3.0, 1.0)
        assert (offset[1], scale[1]) == (0.0, pytest.approx(1 / 3))
        old = Feature(name="x", kind="flat", statistics=Statistics(count=2, min=0.0, max=1.0))
        with pytest.raises(FeatureError, match="no quantiles to normalise by"):
            FeatureSpec.of([old], normalisation="robust").affine()

    def test_softclip_gives_median_and_deviation_of_the_bulk_and_bends_tails_towards_a_bound(self) -> None:
        bulk = np.random.default_rng(0).normal(50.0, 2.0, 10_000)
        tails = np.array([-999.0, 1e6, 50.0, np.inf, np.nan])
        made = FeatureSpec.of(
            [Feature(name="x", kind="flat", statistics=Statistics.of(np.concatenate([bulk, tails])))],
            normalisation="softclip",
        )
        z = made.normalised(np.concatenate([bulk, tails])[:, None].astype(np.float32))[:, 0]
        assert z.dtype == np.float32
        straight = (bulk - 50.0) / 2.0
        assert z[:10_000] == pytest.approx(straight / np.sqrt(1 + (straight / 5) ** 2), abs=0.05)
        assert z[10_000:] == pytest.approx([-5.0, 5.0, 0.0, 0.0, 0.0], abs=0.03)
        assert np.corrcoef(z[:10_000], straight)[0, 1] > 0.99

    @pytest.mark.parametrize("normalisation", ["none", "minmax", "standard", "robust"])
    def test_the_others_bend_nothing(self, normalisation: str) -> None:
        values = np.random.default_rng(0).exponential(30.0, (1000, 1)).astype(np.float32)
        made = FeatureSpec.of(
            [Feature(name="x", kind="flat", statistics=Statistics.of(values))],
            normalisation=normalisation,  # type: ignore[arg-type]
        )
        offset, scale = made.affine()
        np.testing.assert_array_equal(made.normalised(values), (values - offset) * scale)

    def test_all_columns_of_a_jagged_branch_are_scaled_alike(self) -> None:
        offset, scale = spec().affine()
        np.testing.assert_array_equal(offset[2:], np.full(5, 2.0))
        np.testing.assert_array_equal(scale[2:], np.full(5, 0.125))

    def test_a_column_never_seen_is_left_as_it_is(self) -> None:
        offset, scale = spec().affine()
        assert (offset[1], scale[1]) == (0, 1)

    def test_none_leaves_all_as_it_is(self) -> None:
        offset, scale = spec(normalisation="none").affine()
        assert not offset.any()
        assert (scale == 1).all()

    @pytest.mark.parametrize("normalisation", ["minmax", "standard"])
    @pytest.mark.parametrize("values", [[7.0, 7.0], [0.0, 1e-45], [7.0]])
    def test_a_column_of_equal_values_becomes_zero_and_stays_finite(
        self, normalisation: str, values: list[float]
    ) -> None:
        feature = Feature(name="x", kind="flat", statistics=Statistics.of(values))
        offset, scale = FeatureSpec.of([feature], normalisation=normalisation).affine()  # type: ignore[arg-type]
        normalised = (np.float32(values[0]) - offset) * scale
        assert np.isfinite(normalised).all()
        np.testing.assert_allclose(normalised, 0, atol=1e-30)

    def test_the_widest_range_of_float32_does_not_overflow(self) -> None:
        big = float(np.finfo(np.float32).max)
        feature = Feature(name="x", kind="flat", statistics=Statistics.of([-big, big]))
        offset, scale = FeatureSpec.of([feature]).affine()
        assert np.isfinite(offset).all()
        assert scale[0] > 0


class TestJson:
    def test_what_was_written_is_read_back_equal(self) -> None:
        made = spec(normalisation="standard", entries=1234)
        assert FeatureSpec.from_json(made.to_json()) == made
        assert FeatureSpec.from_json(made.to_json().encode()) == made

    def test_statistics_keep_every_bit(self) -> None:
        values = np.random.default_rng(1).normal(size=100)
        feature = Feature(name="x", kind="flat", statistics=Statistics.of(values))
        made = FeatureSpec.of([feature])
        assert FeatureSpec.from_json(made.to_json()).features[0].statistics == feature.statistics

    def test_equal_specs_have_equal_digests_whoever_formats_the_json(self) -> None:
        text = json.dumps(json.loads(spec().to_json()), indent=8, sort_keys=True)
        assert FeatureSpec.from_json(text).digest == spec().digest

    def test_another_content_has_another_digest(self) -> None:
        digests = {spec().digest, spec(entries=1).digest, spec(normalisation="none").digest}
        assert len(digests) == 3

    def test_a_change_after_writing_is_noticed(self) -> None:
        text = spec().to_json().replace('"length": 3', '"length": 4')
        with pytest.raises(FeatureError, match="was changed after it was written"):
            FeatureSpec.from_json(text)

    def test_a_copy_with_other_values_has_a_digest_and_columns_of_its_own(self) -> None:
        made = spec()
        before = made.digest, made.columns
        copy = made.model_copy(update={"features": made.features[:1], "entries": 3})
        assert copy.columns == ("MET_pt",)
        assert FeatureSpec.from_json(copy.to_json()) == copy
        assert (made.digest, made.columns) == before

    def test_a_spec_written_by_hand_needs_no_digest(self) -> None:
        content = json.loads(spec().to_json())
        del content["sha256"]
        assert FeatureSpec.from_json(json.dumps(content)) == spec()

    def test_a_newer_schema_is_refused_by_number(self) -> None:
        text = spec().to_json().replace('"schema_version": 2', '"schema_version": 3')
        with pytest.raises(FeatureError, match=r"schema 3 is unknown here.*Upgrade"):
            FeatureSpec.from_json(text)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "not a FeatureSpec"),
            ("[1, 2]", "not a FeatureSpec"),
            ("{}", "features: Field required"),
            ('{"features": [], "colour": 1}', "colour"),
            ('{"features": [{"name": "x", "kind": "cubic"}]}', r"features\.0\.kind"),
            ('{"features": [{"name": "x", "kind": "jagged", "length": -1}]}', r"features\.0\.length"),
        ],
    )
    def test_what_is_no_spec_is_refused_with_the_reason(self, text: str, reason: str) -> None:
        with pytest.raises(FeatureError, match=reason):
            FeatureSpec.from_json(text)
