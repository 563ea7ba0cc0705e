"""From a trained classifier to predictions: names of classes, python -m imagenet_inat.predict, exported programs."""
