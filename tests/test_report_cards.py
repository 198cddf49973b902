"""What a card of the report says of one image."""

import re

import numpy as np

from data.report_cards import draw_histogram


def test_histograms_count_every_nucleus():
    bars = re.findall(r"M(\d+) 40v-(\d+)", draw_histogram(np.array([1, 1, 1, 1, 25]), "area"))
    assert bars == [("0", "40"), ("23", "10")]
    assert "median 7, from 7 to 7" in draw_histogram(np.array([7.0]), "area")
