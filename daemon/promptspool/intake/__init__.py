"""Intake: a dropped file becomes request files and a manifest.

`plan` is the whole of it; the other modules are its parts, one for each step of a row's way:
`formats` (file to rows), `render` (row to request), `ids` (no two rows are one) and `split`
(requests to files). Raises `BadInput` (bad data) and lets `OSError` through (environment).
"""

from promptspool.intake.formats import Caps, is_heavy
from promptspool.intake.index import complaints
from promptspool.intake.plan import plan
from promptspool.intake.planner import Dropped
from promptspool.intake.split import Limits

__all__ = ["Caps", "Dropped", "Limits", "complaints", "is_heavy", "plan"]
