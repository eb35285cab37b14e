"""No text in a chart is cut off at the drawing's edge, whatever names a dataset has."""

from __future__ import annotations

import pytest

from clipmill.jobs.report import charts
from clipmill.jobs.report.figures import Bin, Distribution
from clipmill.jobs.report.lettering import fitted, text_width

LONG = "largest change of luma between neighbouring frames, in grey levels of 8 bits"


def drawn(low: float, high: float, **details) -> charts.Histogram:
    step = (high - low) / 4
    bins = [Bin(low + n * step, low + (n + 1) * step, 1, 1) for n in range(4)]
    found = Distribution(bins=bins, values=4, missing=0, whole=4)
    chart = charts.histogram(found, x_label=LONG, noun="clips", with_catalog=False, **details)
    assert chart is not None
    return chart


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.00012, 0.00048), (0, 400_000), (-3_000_000, 1_000_000)]
)
def test_axis_numbers_and_names_stay_inside(low, high):
    chart = drawn(low, high)
    for tick in chart.x_ticks:
        half = text_width(tick.text) / 2
        assert half <= tick.text_at <= charts.WIDTH - half
    assert len(chart.x_label) < len(LONG)
    assert text_width(chart.x_label) <= chart.right


@pytest.mark.parametrize("value", [0.01, 0.5, 0.99])
def test_threshold_is_labelled_where_there_is_room(value):
    (line,) = drawn(
        0, 1, thresholds=[(f"a long name of a scorer of its own >= {value}", value)]
    ).lines
    room = line.x - 4 if line.anchor == "end" else charts.WIDTH - line.x - 4
    assert text_width(line.text) <= room
    assert len(line.text) > 20


@pytest.mark.parametrize(
    "word", ["Film & Animation 2", "WWWWWWWWWWWWWWWWW", "料理と食べ物の動画", "short"]
)
def test_bar_labels_fit_next_to_the_bars(word):
    chart = charts.counted_rows([(word, 1_000_000), ("other", 1)], "uses")
    assert chart is not None
    row = chart.rows[0]
    assert text_width(row.label) <= chart.left - 7
    assert row.label == word or row.label.endswith("…")
    assert chart.left + row.width + 5 + text_width(row.text) <= chart.width


def test_text_that_fits_is_unchanged():
    assert fitted("cross", 100) == "cross"
    assert fitted("", 10) == ""
    assert fitted("cross", 3) == ""


@pytest.mark.parametrize(
    "label", ["under 10 words", "over 20 words", "1080 px or more", "721–1079 px", "30 s or more"]
)
def test_built_in_interval_names_are_shown_in_full(label):
    chart = charts.counted_rows([(label, 3)], "clips")
    assert chart is not None
    assert chart.rows[0].label == label
