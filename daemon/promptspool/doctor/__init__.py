"""Doctor: looks over a machine, a spool and its providers, and says what to mend.

It disturbs nobody: what it makes in the spool are empty hidden files that are gone again, as at a
start of the daemon, what it asks a provider is one page of a list, and the database is only read.
Whatever it meets becomes a finding; it raises nothing.
"""

from promptspool.doctor.examination import examination
from promptspool.doctor.finding import Finding, Level

__all__ = ["Finding", "Level", "examination"]
