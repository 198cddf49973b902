"""Tiles that were cut from one picture, on drawn textures."""

import numpy as np
from conftest import cut_tiles, draw_texture, draw_tiled

from data.tiles import group_tiles


def test_tiles_of_one_picture_are_found_among_others():
    ids, images = draw_tiled()
    pictures = dict(zip(ids, group_tiles(images), strict=True))
    for seed in range(3):
        assert len({pictures[f"{number}_of_{seed}"] for number in range(4)}) == 1
    assert len(set(pictures.values())) == 3 + 12


def test_a_picture_that_is_there_twice_is_on_one_side():
    images = [np.random.default_rng(i).integers(0, 99, (20, 20), np.uint8) for i in (1, 2, 3, 1)]
    pictures = group_tiles(images)
    assert pictures[0] == pictures[3] and len(set(pictures)) == 3


def test_tiles_in_colour_are_found():
    picture = np.dstack([draw_texture(1), draw_texture(2), draw_texture(3)])
    others = [np.dstack([draw_texture(seed, 64)] * 3) for seed in range(4, 8)]
    pictures = group_tiles(cut_tiles(picture) + others)
    assert len(set(pictures[:4])) == 1 and len(set(pictures)) == 5


def test_of_two_that_fit_an_edge_only_the_better_one_is_its_neighbour():
    left, right = np.split(draw_texture(1), 2, axis=1)
    similar = np.hstack([draw_texture(2)[:, :63], left[:, -1:]])
    similar[:64, -1] -= 12
    assert len(set(group_tiles([similar, right]))) == 1
    pictures = group_tiles([left, right, similar])
    assert pictures[0] == pictures[1] != pictures[2]


def test_black_edges_prove_nothing():
    framed = [np.pad(draw_texture(seed, 64), 3) for seed in range(4)]
    assert len(set(group_tiles(framed))) == 4
