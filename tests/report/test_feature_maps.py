"""The maps of the features in a report."""

import numpy as np

from utils.report import features
from utils.report.features import in_two_dimensions, spread_out
from utils.report.runs import read_run


def test_maps_share_a_number_of_images(reported_run, monkeypatch):
    monkeypatch.setattr(features, "MAX_IMAGES_OF_ALL_MAPS", 20)
    (picture,) = features.features([read_run(str(reported_run))])[-1].pictures
    assert "20 validation images" in picture.caption


def test_spread_out_samples_the_whole_list():
    assert spread_out(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread_out(101, 3).tolist() == [0, 50, 100]


def test_two_dimensional_features_are_not_embedded():
    plane = np.eye(2)
    assert in_two_dimensions(plane)[0] is plane
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(5)[:2], 10, axis=0) + 0.01 * rng.normal(size=(20, 5))
    points, description = in_two_dimensions(groups)
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    assert description.startswith("t-SNE")
    assert (
        distances.argsort(axis=1)[:, 1] // 10 == np.arange(20) // 10
    ).all()  # the nearest point is in the same group
