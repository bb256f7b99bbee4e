"""The command line: parse, call, print.

Exit codes: 0 done, 1 the work failed, 2 usage or configuration, with one clear line on stderr. Only
a bug ends in a traceback. A command and what it needs are imported when it runs, which keeps them
quick.
"""

from promptspool.cli.program import main

__all__ = ["main"]
