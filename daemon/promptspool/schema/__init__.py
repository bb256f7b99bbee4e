"""Schema: what answers are asked to fit, how a provider is asked, and whether they do.

A leaf that knows of no job and no file: nothing is ever fetched or read for a schema. Draft
2020-12 of JSON Schema unless `$schema` names another. Pure. Raises `ValueError` (bad data) for what
is no schema that answers can be asked to fit, and nothing for any answer.
"""

from promptspool.schema.asking import request_member, strictness
from promptspool.schema.checking import Checker, Misfit, Schema, check_schema
from promptspool.schema.columns import Kind, properties

__all__ = [
    "Checker",
    "Kind",
    "Misfit",
    "Schema",
    "check_schema",
    "properties",
    "request_member",
    "strictness",
]
