"""Tests of the selection of the reported epochs of a probe."""

from utils.measure.results import update_results


def test_selected_epoch_uses_validation_accuracy():
    results: dict = {}
    epochs = [(50.0, 10.0), (70.0, 20.0), (70.0, 40.0), (60.0, 30.0)]  # validation, test
    improved = [
        update_results(results, epoch, {"val": {"acc1": val}, "test": {"acc1": test}})
        for epoch, (val, test) in enumerate(epochs, start=1)
    ]
    assert improved == [True, True, False, False]  # the first of two tied epochs wins
    assert {name: (entry["epoch"], entry["acc1"]) for name, entry in results.items()} == {
        "selected": (2, 20.0),
        "best_on_test": (3, 40.0),
        "last": (4, 30.0),
    }
