"""KCL and TSC: models, losses, class targets and image views."""

import utils  # noqa: F401, must come first; see utils/__init__.py
