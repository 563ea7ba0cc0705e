"""KCL and TSC: the model, its losses, its targets, its views."""

import utils  # noqa: F401, first: see there
