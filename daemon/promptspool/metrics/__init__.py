"""Figures of the daemon, in the text format of Prometheus, and how they get out of it.

`Metrics` counts what happens, `Figures` is how things stand at one moment, and `Page` makes text of
both. `serve` gives it to whoever asks over HTTP, beside the answers to health checks, and
`keep_textfile` leaves it in a file. The library that knows the format is imported when the first
page is made. Nothing here raises for what a client, a disk or a port does.
"""

from promptspool.metrics.figures import Disk, Disks, Enqueued, Figures, LaneUse, Spend, Standing
from promptspool.metrics.page import Page
from promptspool.metrics.serving import Check, serve
from promptspool.metrics.tally import Metrics
from promptspool.metrics.textfile import keep_textfile, write_textfile

__all__ = [
    "Check",
    "Disk",
    "Disks",
    "Enqueued",
    "Figures",
    "LaneUse",
    "Metrics",
    "Page",
    "Spend",
    "Standing",
    "keep_textfile",
    "serve",
    "write_textfile",
]
