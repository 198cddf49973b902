"""What a card of the report says of one image."""

import re

import numpy as np

from data.report_cards import describe_seen, draw_histogram


def test_histograms_count_every_nucleus():
    bars = re.findall(r"M(\d+) 40v-(\d+)", draw_histogram(np.array([1, 1, 1, 1, 25]), "area"))
    assert bars == [("0", "40"), ("23", "10")]
    assert "median 7, from 7 to 7" in draw_histogram(np.array([7.0]), "area")


def test_scales_are_numbers():
    row = {"background": "dark", "scale": "1.0+0.125+0.0625", "channel": "", "width_px": 5, "height_px": 5}
    seen = describe_seen(row | {"pixel_size_um": None, "covered_fraction": 0.5})
    assert seen.startswith("dark\N{NO-BREAK SPACE}background · scale\N{NO-BREAK SPACE}1+0.125+0.0625 · ")
