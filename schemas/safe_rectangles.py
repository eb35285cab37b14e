"""The safe rectangle of a clip: the part of its picture without bars and overlays.

Any stage may make it, as four columns of `clips` with shares of the displayed picture.
"""

from __future__ import annotations

SAFE = ("safe_left", "safe_top", "safe_right", "safe_bottom")
ROUNDING = 1e-6
"""Computed shares may miss 0 and 1 by this much."""
_LOW, _HIGH = f"{ROUNDING:.7f}", f"{1 - ROUNDING:.7f}"
IS_CROPPED = (
    f"coalesce(safe_left >= -{_LOW} AND safe_top >= -{_LOW} "
    f"AND safe_right <= 1 + {_LOW} AND safe_bottom <= 1 + {_LOW} "
    "AND safe_left < safe_right AND safe_top < safe_bottom "
    f"AND (safe_left > {_LOW} OR safe_top > {_LOW} "
    f"OR safe_right < {_HIGH} OR safe_bottom < {_HIGH}), false)"
)
"""Whether a clip has a rectangle that makes sense and is smaller than the picture, as SQL."""
