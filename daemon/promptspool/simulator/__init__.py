"""A local provider of the OpenAI-dialect Batch API, with real sockets and scripted faults.

It keeps everything in memory and in one directory, moves only with the clock it is given, and
never calls anybody.
"""

from promptspool.simulator.core import Simulator
from promptspool.simulator.failures import Failure
from promptspool.simulator.faults import BatchFault, Call, Fault, Faults, FileFault
from promptspool.simulator.ledger import Ledger
from promptspool.simulator.server import running, serve
from promptspool.simulator.settings import SimulatorSettings

__all__ = [
    "BatchFault",
    "Call",
    "Failure",
    "Fault",
    "Faults",
    "FileFault",
    "Ledger",
    "Simulator",
    "SimulatorSettings",
    "running",
    "serve",
]
