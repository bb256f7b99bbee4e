"""Intake: a dropped file becomes request files and a manifest.

`plan` is the whole of it; the other modules are its pure parts, one for each step of a row's way:
`lines` (bytes to lines), `readers` (line to columns), `render` (columns to request) and `split`
(requests to files). Raises `BadInput` (bad data) and lets `OSError` through (environment).
"""

from promptspool.intake.plan import plan
from promptspool.intake.split import Limits

__all__ = ["Limits", "plan"]
