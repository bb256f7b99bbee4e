"""Formats: every kind of file that can be dropped, read as rows and, if it is a table, written.

`opened` finds out what a dropped file is; `Opened.format` reads it and writes its table. Importing
this loads no format's library. Raises `BadInput` (bad data) and lets `OSError` through
(environment).
"""

from promptspool.intake.formats.archive import check_container
from promptspool.intake.formats.compression import Caps
from promptspool.intake.formats.opening import Opened, is_heavy, opened
from promptspool.intake.formats.registry import FORMATS, SUFFIXES

__all__ = ["FORMATS", "SUFFIXES", "Caps", "Opened", "check_container", "is_heavy", "opened"]
