"""Small pictures: short enough for the page, whatever the numbers are."""

import base64
import math
import re
import xml.etree.ElementTree as ET

import pytest

from mlops_assets.foundation.plots import agreement, as_markdown, band, bars, intervals, lines, over_time, sparkline


def _points(svg: str) -> list[tuple[int, int]]:
    path = ET.fromstring(svg).find("{http://www.w3.org/2000/svg}path")
    assert path is not None
    return [(int(x), int(y)) for x, y in re.findall(r"[ML](-?\d+) (-?\d+)", path.attrib["d"])]


@pytest.mark.parametrize("count", [1, 2, 5, 40, 41, 1_000])
def test_a_line_shows_inline_however_long_the_series(count: int) -> None:
    svg = sparkline([math.sin(at) * 1e6 for at in range(count)])
    assert len(as_markdown(svg, "coverage over time")) < 1_000
    assert len(_points(svg)) == min(count, 40)


def test_a_line_goes_up_where_the_numbers_do() -> None:
    heights = [y for _, y in _points(sparkline([1, 2, 3]))]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 3


def test_a_line_stays_inside_its_picture() -> None:
    for x, y in _points(sparkline([-1e12, 0, 1e12, 5], width=100, height=20)):
        assert 0 <= x <= 100
        assert 0 <= y <= 20


def test_a_long_line_keeps_its_last_value() -> None:
    svg = sparkline([0.0] * 999 + [1.0])
    circle = ET.fromstring(svg).find("{http://www.w3.org/2000/svg}circle")
    assert circle is not None
    assert circle.attrib["cy"] == "4"


def test_what_is_not_finite_leaves_a_gap() -> None:
    svg = sparkline([1, math.nan, 2, 3, math.inf, 4])
    assert len(_points(svg)) == 4
    assert svg.count("M") == 3


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
def test_nothing_to_draw_is_an_empty_picture(values: list[float]) -> None:
    assert list(ET.fromstring(sparkline(values))) == []


def test_a_constant_series_is_a_level_line() -> None:
    assert len({y for _, y in _points(sparkline([3.0, 3.0, 3.0]))}) == 1


@pytest.mark.parametrize("rows", [1, 4, 12])
def test_intervals_are_a_picture_that_the_event_log_can_bear(rows: int) -> None:
    measured = {f"contestant {at}": (at / 10, at / 10 - 0.02, at / 10 + 0.03) for at in range(rows)}
    drawn = intervals(measured, title="nDCG@10", axis="nDCG")
    assert drawn.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(drawn) <= 30_000


@pytest.mark.parametrize("count", [0, 1, 12, 60])
def test_lines_are_a_picture_that_the_event_log_can_bear(count: int) -> None:
    curves = {
        f"2026-{at:02d}": [(float(month), math.sin(at + month) ** 2) for month in range(at % 37)] for at in range(count)
    }
    drawn = lines(curves, title="Defaults by vintage", axis="share", along="months on book", percent=True)
    assert drawn.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(drawn) <= 30_000


def test_a_bound_and_long_names_still_make_a_small_picture() -> None:
    name = "annual income = 14,100 to 50,000 & share of the credit lines in use = 0.503 to 1.269 & purpose = car"
    measured = {f"{name} {at}": (at / 10, at / 10 - 0.02, at / 10 + 0.03) for at in range(10)}
    plain = intervals(measured, title="Weakest", axis="gap")
    bounded = intervals(measured, title="Weakest", axis="gap", bound=0.3)
    assert plain != bounded
    assert max(len(plain), len(bounded)) <= 30_000


@pytest.mark.parametrize("count", [0, 1, 12, 40])
def test_bars_are_a_picture_that_the_event_log_can_bear(count: int) -> None:
    rows = {f"feature {at}": 1e4 / (at + 1) for at in range(count)}
    drawn = bars(rows, title="Importance", axis="log-odds", beside={"feature 0": 9_000.0, "unknown": 1.0})
    assert drawn.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(drawn) <= 30_000


def test_of_very_many_bars_the_first_are_drawn() -> None:
    rows = {f"feature {at}": float(at) for at in range(40)}
    first = {name: rows[name] for name in list(rows)[:20]}
    assert bars(rows, title="t", axis="a") == bars(first, title="t", axis="a")


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([], id="nothing"),
        pytest.param([(0.0, 0.0, 0.0, 0.0)], id="zero"),
        pytest.param([(at / 20, at / 21, at / 25, at / 15) for at in range(15)], id="fifteen bins"),
    ],
)
def test_agreement_is_a_picture_that_the_event_log_can_bear(points: list[tuple[float, float, float, float]]) -> None:
    drawn = agreement(points, title="Calibration", axis="observed", along="foreseen")
    assert drawn.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(drawn) <= 30_000


def test_a_point_that_its_interval_puts_off_the_diagonal_looks_different() -> None:
    right, wrong = (0.2, 0.21, 0.15, 0.25), (0.2, 0.21, 0.205, 0.25)
    drawn = [agreement([point], title="t", axis="a", along="b") for point in (right, wrong)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_band_is_a_picture_that_the_event_log_can_bear(count: int) -> None:
    points = [(at / 60, math.sin(at / 9), math.sin(at / 9) - 0.2, math.sin(at / 9) + 0.2) for at in range(count)]
    beside = {"expected": [(x, y / 2) for x, y, _, _ in points]} if points else None
    marks = {f"cut {at}": at / 10 for at in range(6)}
    drawn = band(points, title="Profit", axis="profit", along="cut-off", beside=beside, marks=marks)
    assert drawn.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(drawn) <= 30_000


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"2026-01": None, "2026-02": None}, id="gaps alone"),
        pytest.param({"2026-01": 0.4}, id="one"),
        pytest.param({"2026-01": -0.2, "2026-02": -0.1}, id="below zero"),
        pytest.param({f"2026-{at:03d}": None if at % 7 == 0 else at / 100 for at in range(200)}, id="many, with gaps"),
    ],
)
def test_values_over_time_are_a_picture_that_the_event_log_can_bear(values: dict[str, float | None]) -> None:
    drawn = over_time(values, title="Gini", axis="gini")
    assert drawn.startswith(b"\x89PNG\r\n")
    assert 1_000 < len(drawn) <= 30_000


def test_pictures_are_embedded_in_markdown() -> None:
    svg, png = sparkline([1, 2]), b"\x89PNG"
    assert as_markdown(png, "chart") == f"![chart](data:image/png;base64,{base64.b64encode(png).decode()})"
    found = re.fullmatch(r"!\[line\]\(data:image/svg\+xml;base64,(.*)\)", as_markdown(svg, "line"))
    assert found is not None
    assert base64.b64decode(found[1]).decode() == svg
