"""What Chainlit writes by the way, while a chat goes on: when, in whose name, and that it must not fail the chat.

Knows Chainlit's sessions, no database.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from chainlit.context import ChainlitContextException, get_context
from chainlit.data.utils import queue_until_user_message
from chainlit.user import PersistedUser

log = logging.getLogger("smallfirst")

Method = TypeVar("Method", bound=Callable[..., Any])


def queued(method: Method) -> Method:
    """For what is written before anybody has said anything: it waits in the session for the first message."""
    return cast(Method, queue_until_user_message()(method))  # type: ignore[no-untyped-call]


def session_user() -> str | None:
    """Id of the user in whose session this runs. Chainlit runs each write in the session that it comes from."""
    try:
        user = get_context().session.user
    except ChainlitContextException:
        return None
    return user.id if isinstance(user, PersistedUser) else None


class Trouble:
    """Says in the log that what is said in the chat is not kept: once, and again only if it was kept in between."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._told = False

    def over(self) -> None:
        self._told = False

    def tell(self, error: Exception) -> None:
        if not self._told:
            log.error("Not all of a conversation is kept in %s (%s).", self._where, error)
            self._told = True
