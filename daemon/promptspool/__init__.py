"""The spooler for prompts: drop a file of prompts, collect the answers at the batch price."""

__version__ = "0.1.0"
