"""Long-tailed data sets: registry, split lists, samplers and loaders."""

import utils  # noqa: F401, must be imported first (see utils/__init__.py)
