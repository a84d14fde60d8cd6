"""Ids of sessions, conversations and elements: what one must look like before it becomes a path or part of SQL.

Knows their spelling only: not whether there is such a thing, nor whose it is.
"""

import re
from typing import Final

# Lower case only: on a file system that ignores case, two spellings would be two sessions in one folder.
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_uuid(value: object) -> bool:
    return isinstance(value, str) and UUID.fullmatch(value) is not None


def is_uuid_or_empty(value: object) -> bool:
    return value is None or value == "" or is_uuid(value)
