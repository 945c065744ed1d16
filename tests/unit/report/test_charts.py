"""Charts: every value where it belongs, and no figure so odd that there is no picture."""

import math
import re

import pytest

from spec.report.charts import HEIGHT, WIDTH, Line, bar_chart, histogram, line_chart, plain_number, thin


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="([^"]*)"', svg)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def bars(svg: str) -> list[dict[str, float]]:
    return [
        {name: float(value) for name, value in re.findall(r'(x|y|width|height)="([\d.]+)"', rect)}
        for rect in re.findall(r"<rect[^>]*>", svg)
    ]


def test_lines_share_an_axis_and_keep_inside_the_picture():
    lines = [Line("one", [(0, 0.0), (10, 5.0)], 0), Line("two", [(0, 2.5), (10, 5.0)], 1)]
    one, two = points(line_chart(lines, title="t", x_label="x", y_label="y"))
    assert one[1] == two[1] and one[0][0] == two[0][0]
    assert two[0][1] == pytest.approx((one[0][1] + one[1][1]) / 2)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in one + two)
    assert one[1][1] < one[0][1]  # upwards


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0], [-1.0, 1e9], [1e-9, 2e-9], [math.nan, 2.0]])
def test_odd_values_have_a_picture(values: list[float]):
    (line,) = points(line_chart([Line("l", list(enumerate(values)), 0)], title="t", x_label="x", y_label="y"))
    assert all(math.isfinite(x) and math.isfinite(y) and -1 <= y <= HEIGHT + 1 for x, y in line)


def test_without_a_number_there_is_no_picture():
    assert line_chart([Line("l", [(0, math.nan)], 0)], title="t", x_label="x", y_label="y") == ""
    assert histogram([0, 1], [0], title="t", x_label="x", y_label="y") == ""


def test_bars_are_as_high_as_their_values():
    high, low, none = bars(bar_chart([("a", [0.5]), ("b", [0.25]), ("c", [0.0])], title="t", y_label="y"))
    assert low["height"] == pytest.approx(high["height"] / 2, abs=0.2) and none["height"] == 0
    assert high["y"] + high["height"] == pytest.approx(low["y"] + low["height"], abs=0.2)


def test_a_histogram_ends_where_rows_end():
    found = bars(histogram([0, 10, 20, 30, 40], [2, 4, 0, 0], title="t", x_label="x", y_label="y"))
    assert len(found) == 2 and found[0]["height"] == pytest.approx(found[1]["height"] / 2, abs=0.2)


def test_text_is_escaped():
    lines = [Line("l", [(0, 1.0), (1, 2.0)], 0)]
    svg = line_chart(lines, title='"><script>', x_label="<x>", y_label="<y>")
    assert "<script>" not in svg and "<x>" not in svg and "<y>" not in svg


def test_thinning_averages_and_drops_nothing():
    many = [(float(at), float(at % 2)) for at in range(1000)]
    thinned = thin(many, 250)
    assert len(thinned) == 250 and {y for _, y in thinned} == {0.5}
    assert thin(many[:100], 250) == many[:100]


@pytest.mark.parametrize(("value", "text"), [(1200, "1.2k"), (0.25, "0.25"), (3e6, "3M"), (0, "0"), (999, "999")])
def test_numbers_are_short(value: float, text: str):
    assert plain_number(value) == text
