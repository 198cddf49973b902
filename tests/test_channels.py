"""Which of several channels may show the nuclei."""

import numpy as np
import pytest

from data.channels import Channels, likely_channel, narrow_channels, pick_channels, pick_gray_or_colours
from data.files import UserError


@pytest.mark.parametrize(
    ("names", "wanted", "indices"),
    [
        (("GFP", "DAPI"), "DAPI", [1]),
        (("GFP", "DAPI"), "dapi", [1]),
        (("GFP", "DAPI"), "2", [1]),
        (("2", "1"), "2", [0]),  # a name goes before a number
        (("GFP", "Hoechst 33342"), None, [1]),
        (("H2B-mCherry", "GFP", "DRAQ5"), None, [0, 2]),
        (("GFP", "RFP"), None, [0, 1]),
        (("channel 1", "channel 2"), None, [0, 1]),
    ],
)
def test_a_channel_is_picked_by_name_or_number(names, wanted, indices):
    assert pick_channels(names, wanted) == indices


@pytest.mark.parametrize("wanted", ["0", "3", "-1", "DAP", "²", ""])
def test_a_channel_that_is_not_there_is_named_with_those_that_are(wanted):
    with pytest.raises(UserError, match=rf"no channel '{wanted}'; its channels are 1 \(GFP\), 2 \(DAPI\)"):
        pick_channels(("GFP", "DAPI"), wanted)


def test_channels_are_narrowed_to_those_that_may_be_meant():
    channels = Channels(("GFP", "DAPI", "Hoechst"), np.arange(12, dtype=np.uint16).reshape(3, 2, 2))
    narrowed = narrow_channels(channels, None)
    assert narrowed.names == ("DAPI", "Hoechst") and narrowed.shape == (2, 2)
    np.testing.assert_array_equal(narrowed.planes, channels.planes[1:])
    np.testing.assert_array_equal(narrow_channels(channels, "gfp"), channels.planes[0])
    np.testing.assert_array_equal(narrow_channels(channels, "max"), channels.planes.max(0))
    image = np.zeros((2, 2), np.uint16)
    assert narrow_channels(image, "gfp") is image


CHANNELS = Channels(("GFP", "DAPI"), np.arange(8).reshape(2, 2, 2))
COLOURS = np.arange(12).reshape(2, 2, 3)


def test_the_channel_of_a_truth_is_one_or_all_colours():
    np.testing.assert_array_equal(pick_gray_or_colours(CHANNELS, None, "a.tif"), CHANNELS.planes[1])
    np.testing.assert_array_equal(pick_gray_or_colours(CHANNELS, "1", "a.tif"), CHANNELS.planes[0])
    np.testing.assert_array_equal(pick_gray_or_colours(COLOURS, "blue", "a.png"), COLOURS[..., 2])
    assert pick_gray_or_colours(COLOURS, None, "a.png") is COLOURS
    with pytest.raises(UserError, match="a.tif: which of its channels a, b shows the nuclei"):
        pick_gray_or_colours(Channels(("a", "b"), CHANNELS.planes), None, "a.tif")
    with pytest.raises(UserError, match="a.tif: no channel 'RFP'"):
        pick_gray_or_colours(CHANNELS, "RFP", "a.tif")


def test_people_look_at_the_first_channel_that_may_show_nuclei():
    np.testing.assert_array_equal(likely_channel(CHANNELS), CHANNELS.planes[1])
    assert likely_channel(COLOURS) is COLOURS
