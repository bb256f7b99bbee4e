"""The command line: parse, call, print.

Exit codes: 0 done, 1 the work failed, 2 usage or configuration, with one clear line on stderr. Only
a bug ends in a traceback. What a command needs is imported when it runs, so that `--help` is quick.
"""

from promptspool.cli import admin, commanding, configuring, files, reading, running
from promptspool.cli.program import main

__all__ = ["admin", "commanding", "configuring", "files", "main", "reading", "running"]
