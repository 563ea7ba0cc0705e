"""The long-tailed data sets: registry, split files, samplers."""

import utils  # noqa: F401, first: see there
