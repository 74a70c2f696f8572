"""Rules that the async and the blocking client share."""

from __future__ import annotations

import base64
import json
import os
import random
from dataclasses import dataclass
from typing import Any

from .models import Accepted, BulkCommand
from .problems import DocketError, Problem

RETRIED = {408, 425, 429, 500, 502, 503, 504}
"""A try is repeated after these answers, if a repetition has no second effect."""
RETRY_AFTER_SECONDS_MAX = 60.0
"""A longer `Retry-After` is an outage: the error goes to the caller at once."""
REFRESH_SECONDS = 30.0
"""A token is replaced this long before it expires."""
BULK_TRIES_MAX = 5
UNREAD = {"stopping", "request-timeout", "results-unread", "token-expired", "token-revoked", "subject-banned"}
"""Last lines of a bulk answer with these problems name the first command that the server did not read."""


@dataclass(frozen=True)
class BulkResult:
    """The result of one command."""

    command: BulkCommand
    status: int
    """HTTP status that the command would have as a single request."""
    accepted: Accepted | None = None
    """Id, version and position of the order, if the command was accepted."""
    problem: Problem | None = None
    """Why the command was refused."""


class BulkInterrupted(DocketError):
    """The connection failed while results were outstanding. The commands may have taken effect."""

    def __init__(self, unanswered: list[BulkCommand]) -> None:
        super().__init__(f"The connection failed before the results of {len(unanswered)} commands arrived.")
        self.unanswered = unanswered
        """The commands without a result, in order."""


def backoff(attempt: int) -> float:
    """Returns the seconds of the pause before a retry."""
    return min(10.0, 0.2 * 2.0**attempt) * random.uniform(0.5, 1.0)


def expiry(token: str) -> float:
    """Returns the time of expiry of a JWT in seconds; infinity for a token without one."""
    try:
        part = token.split(".")[1]
        payload: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return float(payload["exp"])
    except (IndexError, KeyError, TypeError, ValueError):
        return float("inf")


def variable(name: str, argument: str) -> str:
    """Returns an environment variable, the default of an argument."""
    value = os.environ.get(name)
    if not value:
        raise DocketError(f"Set the argument {argument}, or the environment variable {name}.")
    return value
