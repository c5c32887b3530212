from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from mlaas_ray.core import errors
from mlaas_ray.core.errors import FileMissingError, FileUnreadableError, MlaasError, nearest

FAMILY = [
    thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, MlaasError)
]


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_every_error_comes_through_pickle_as_it_was(kind: type[MlaasError]) -> None:
    error = kind("a.root: no tree 'evnts'", "Did you mean 'events'?")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.remedy, str(copy)) == (error.message, error.remedy, str(error))


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_an_error_says_its_message_and_then_its_remedy(kind: type[MlaasError]) -> None:
    assert str(kind("it broke", "Mend it")) == "it broke. Mend it."
    assert str(kind("it broke")) == "it broke."


def test_every_error_of_the_module_is_drawn_in_its_tree() -> None:
    drawn = errors.__doc__ or ""
    for kind in FAMILY:
        assert kind.__name__ in drawn
        builtin = [base.__name__ for base in kind.__bases__ if not issubclass(base, MlaasError)]
        if builtin and kind is not MlaasError:
            assert f"{kind.__name__} ({builtin[0]})" in drawn


def fail_to_read(path: str) -> None:
    raise FileUnreadableError(f"{path} is not a ROOT file", "Check how it was made")


def test_an_error_raised_in_another_process_arrives_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(fail_to_read, "a.root")
        with pytest.raises(FileUnreadableError, match=r"a\.root is not a ROOT file\. Check how"):
            future.result(timeout=240)


def test_errors_are_caught_as_the_builtin_that_callers_expect() -> None:
    with pytest.raises(FileNotFoundError):
        raise FileMissingError("no file a.root", "Look again")
    with pytest.raises(OSError, match="not ROOT"):
        raise FileUnreadableError("not ROOT")


@pytest.mark.parametrize(
    ("name", "offer"),
    [
        ("Jet_pT", "Did you mean 'Jet_pt'"),
        ("jet_pt", "Did you mean 'Jet_pt'"),
        ("MET_PT", "Did you mean 'MET_pt'"),
        ("zzz", "Known: Jet_eta, Jet_pt, MET_pt"),
    ],
)
def test_nearest_offers_what_was_probably_meant(name: str, offer: str) -> None:
    assert nearest(name, ["MET_pt", "Jet_pt", "Jet_eta"]).startswith(offer)


def test_nearest_shortens_a_long_list_and_is_silent_about_an_empty_one() -> None:
    many = nearest("zzz", [f"branch_{i:03d}" for i in range(1000)])
    assert "branch_000" in many
    assert "(1000 in all)" in many
    assert len(many) < 200
    assert nearest("x", []) == ""
