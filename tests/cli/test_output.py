"""What commands print on 80 columns: nothing is cut, carets stand where they belong, silences are filled."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner

from mlaas_ray.cli import output
from mlaas_ray.cli.main import app
from mlaas_ray.core.errors import FeatureError
from mlaas_ray.core.expressions import Expression
from tests.terminal import on_terminal

LONG = "HLT_Ele32_WPTight_Gsf_L1DoubleEG_and_a_name_that_is_longer_than_half_a_line"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("narrow")
def test_a_table_folds_names_and_leaves_out_whole_columns_before_it_cuts_a_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = [f"number {place}" for place in range(9)]
    numbers = [[f"{row}{place}.123456" for place in range(9)] for row in range(2)]
    rows = [(LONG, *numbers[0]), ("x[i]", *numbers[1])]
    spare = [f"number {place}" for place in (7, 2, 4, 5, 0)]
    output.table(["branch", *map(output.number, heads)], rows, spare=spare)
    found, note = capsys.readouterr()
    assert max(map(cell_len, found.splitlines())) <= 80
    assert "…" not in found
    assert "".join(line.split()[0] for line in found.splitlines()[1:-1]) == LONG
    assert found.splitlines()[-1].startswith("x[i] ")  # and no markup
    left_out = [head for head in heads if head not in found]
    assert left_out == ["number 2", "number 4", "number 5", "number 7"]  # there is room for number 0
    assert note.strip() == f"(a wider terminal also shows: {', '.join(left_out)})"
    for row, place in itertools.product(range(2), range(9)):
        assert (numbers[row][place] in found) == (heads[place] not in left_out)


def test_what_goes_into_a_file_has_all_columns_and_is_not_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    heads = [f"number {place}" for place in range(20)]
    output.table(["branch", *map(output.number, heads)], [(LONG, *range(20))], spare=heads)
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0].strip() == "branch"
    assert row.split() == [LONG, *map(str, range(20))]


@given(
    names=st.lists(st.text("abc_[]/ ", min_size=1, max_size=90), min_size=1, max_size=4),
    values=st.lists(st.integers(0, 10**12), min_size=1, max_size=9),
    columns=st.integers(10, 120),
)
def test_no_number_and_no_letter_of_a_table_is_lost_on_any_terminal(
    names: list[str], values: list[int], columns: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        stream = io.StringIO()
        patch.setattr(output._results, "stream", stream)
        output.table(["name", *(output.number("") for _ in values)], [(name, *values) for name in names])
    found = stream.getvalue()
    for value in values:
        assert len(re.findall(rf"(?<!\d){value}(?!\d)", found)) >= len(names)
    letters = "".join(found.replace("name", "", 1).split())
    assert sorted(c for c in letters if not c.isdigit()) == sorted("".join("".join(names).split()))


@pytest.mark.parametrize(
    "text", ["2 * summ(Jet_pt)", "é + summ(Jet_pt)", "summ(a)", f"{LONG} + summ(a) + {LONG}"]
)
def test_the_carets_stand_under_what_is_wrong(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(output.MlaasError) as caught:
        Expression.parse(text, "define.x")
    with pytest.raises(output.typer.Exit):
        output.fail(caught.value)
    first, expression, carets = capsys.readouterr().err.splitlines()
    assert first == "error: define.x: there is no function 'summ'. Did you mean 'sum'?"
    assert expression == f"    {text}"
    assert carets == " " * expression.index("summ") + "^^^^"


def test_on_a_narrow_terminal_the_part_of_an_expression_with_the_carets_is_shown() -> None:
    picture = f"    {LONG} + summ(a) + {LONG}\n{' ' * (4 + len(LONG) + 3)}^^^^"
    for columns in (40, 80, 100):
        shown, carets = output._within(picture, columns).split("\n")
        assert len(shown) <= columns
        assert shown[carets.index("^") :].startswith("summ")
        assert shown.startswith("…") or shown.startswith("    HLT")


def test_an_error_of_several_lines_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(output.typer.Exit):
        output.fail(FeatureError("a worker died:\n  Traceback\n    here [x]", "Look\nthere"))
    assert capsys.readouterr().err == "error: a worker died: Traceback here [x]. Look there.\n"


def test_on_a_terminal_an_error_breaks_between_words_and_keeps_its_carets(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "datasets: {a: {files: a.root, label: 1}, b: {files: b.root, label: 0}}\n"
        "define: {HT: sum(Jet_pt) + sqrt(sum(Jet_pt)) + min(Jet_pt) + meen(Jet_pt) + num(Jet_pt) + 2.0}\n"
    )
    status, shown = on_terminal("train", job)
    assert status == 2
    lines = shown[shown.index("error:") :].splitlines()
    assert all(len(line) <= 80 for line in lines)
    (place,) = (number for number, line in enumerate(lines) if "^" in line)
    assert lines[place - 1][lines[place].index("^") :].startswith("meen(")
    # what is going on before is said: loading Ray takes seconds
    assert "reading the job …" in shown[: shown.index("error:")]


def test_what_takes_a_while_is_a_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Stages() as stage:
        stage.spin("reading the job")
        stage("starting Ray")
        stage("")
    assert capsys.readouterr().err == "starting Ray …\n"


def helps() -> list[list[str]]:
    root: Any = get_command(app)
    found: list[list[str]] = [[]]
    for name, command in root.commands.items():
        found.append([name])
        found += [[name, inner] for inner in getattr(command, "commands", ())]
    return found


@pytest.mark.parametrize("command", helps(), ids=" ".join)
def test_help_shows_flags_without_a_type_and_fits_80_columns(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 0
    assert "<bool>" not in done.output
    assert re.search(r"--help +-h +Show", done.output)
    lines = done.output.splitlines()
    assert max(map(cell_len, lines)) <= 80
    # each example is on a line of its own, and no sentence is broken before the line is full
    text = lines[: next(place for place, line in enumerate(lines) if line.startswith("╭"))]
    for line, following in itertools.pairwise(text[3:]):
        if line.strip() and following.strip() and not line.startswith("     ") and "Usage" not in line:
            assert len(line.rstrip()) + len(following.split()[0]) > 77, (line, following)


def test_an_error_nobody_foresaw_is_one_line_with_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    @output.command
    def broken() -> None:
        raise ValueError("first line\n  and the last")

    with pytest.raises(typer.Exit) as ended:
        broken()
    (file,) = tmp_path.iterdir()
    assert ended.value.exit_code == 2
    assert " ".join(capsys.readouterr().err.split()) == (
        f"error: ValueError: and the last. This should not happen; please report it with {file}."
    )
    assert file.read_text().startswith("Traceback (most recent call last):")


def test_an_error_of_the_disk_names_the_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    @output.command
    def broken() -> None:
        tmp_path.read_bytes()

    with pytest.raises(typer.Exit):
        broken()
    said = f"error: {tmp_path}: Is a directory. Check the path and its permissions."
    assert " ".join(capsys.readouterr().err.split()) == said
