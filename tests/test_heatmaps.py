"""Maps over pictures: the colours that everyone knows, drawn without the library that defines them."""

import numpy as np
import pytest
from PIL import Image

from agridistill.heatmaps import coloured, overlaid


def test_the_colours_are_those_of_cividis() -> None:
    colormaps = pytest.importorskip("matplotlib").colormaps
    values = np.linspace(0, 1, 256)[None]
    reference = colormaps["cividis"](values)[:, :, :3] * 255
    assert np.abs(coloured(values) - reference).max() < 12
    assert np.array_equal(coloured(np.array([[-1.0, 2.0]])), coloured(np.array([[0.0, 1.0]])))


def test_the_highest_value_is_yellow_the_lowest_blue_whatever_the_scale() -> None:
    grey = Image.new("RGB", (8, 4), (128, 128, 128))
    for scale in (1e-3, 1.0, 1e3):
        drawn = np.asarray(overlaid(grey, np.array([[0.0, 1.0]]) * scale)).astype(int)
        assert drawn.shape == (4, 8, 3)
        assert (drawn[:, 0, 2] > drawn[:, 0, 0]).all()
        assert (drawn[:, -1, 0] > drawn[:, -1, 2]).all()


def test_a_map_of_one_value_and_a_range_of_ones_own_are_drawn() -> None:
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    flat = np.asarray(overlaid(grey, np.full((2, 2), 0.2)))
    assert np.array_equal(flat, np.asarray(overlaid(grey, np.zeros((2, 2)), low=0.0, high=1.0)))
