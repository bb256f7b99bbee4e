"""The demo: the whole way of three dropped files, with no key and no network.

It runs the simulator and the daemon as they really run, two processes of this interpreter, and
learns what they do from the daemon's log alone. The spool is left in place. Raises `ConfigError`
(environment) for a folder that cannot be used and `DemoError` (environment, or a bug of ours) when
it does not come to its end.
"""

from promptspool.demo.director import DemoError, show

__all__ = ["DemoError", "show"]
