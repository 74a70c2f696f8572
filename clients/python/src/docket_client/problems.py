"""Errors of the client: a class for each problem type of the API, and one for each way in which no answer arrives."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

import httpx
from typing_extensions import TypedDict


class FieldError(TypedDict):
    """A value of the request's body that the server refused."""

    pointer: str
    """JSON pointer (RFC 6901) into the body."""
    message: str


class DocketError(Exception):
    """Every error of this client is one."""


class NoAnswer(DocketError):
    """No complete answer arrived, and the retries are used up. A command may have taken effect."""

    def __init__(self, message: str, idempotency_key: str | None) -> None:
        super().__init__(message)
        self.idempotency_key = idempotency_key
        """The key of the command. Send it again with this key to learn its outcome."""


class Problem(DocketError):
    """The server refused the request."""

    _types: ClassVar[dict[str, type[Problem]]] = {}

    def __init_subclass__(cls, type: str | None = None) -> None:
        if type:
            Problem._types[type] = cls

    def __init__(self, body: dict[str, Any], retry_after_seconds: float | None = None) -> None:
        self.body = body
        """The body of the answer, with the members that this problem type adds."""
        self.retry_after_seconds = retry_after_seconds
        """Seconds after which the server expects a retry to succeed."""
        self.slug: str = body["type"].rsplit("/", 1)[-1]
        """Last part of the problem's type, such as `order-not-found`."""
        self.status: int = body["status"]
        self.title: str = body["title"]
        self.detail: str = body.get("detail") or ""
        self.request_id: str | None = body.get("request_id")
        """Finds the request in the server's log."""
        self.errors: list[FieldError] = body.get("errors") or []
        """The refused values of the body."""
        fields = [f"{error['pointer'] or '/'}: {error['message']}" for error in self.errors]
        super().__init__(" ".join([self.detail or self.title, *fields]))


# Orders.


class OrderNotFound(Problem, type="order-not-found"):
    """The problem `/problems/order-not-found`."""


class OrderExists(Problem, type="order-exists"):
    """The problem `/problems/order-exists`."""


class OrderNotDraft(Problem, type="order-not-draft"):
    """The problem `/problems/order-not-draft`."""


class OrderEmpty(Problem, type="order-empty"):
    """The problem `/problems/order-empty`."""


class ItemNotFound(Problem, type="item-not-found"):
    """The problem `/problems/item-not-found`."""


class ItemsRejected(Problem, type="items-rejected"):
    """The problem `/problems/items-rejected`."""


class PriceMismatch(Problem, type="price-mismatch"):
    """The problem `/problems/price-mismatch`."""


class QuantityTooLarge(Problem, type="quantity-too-large"):
    """The problem `/problems/quantity-too-large`."""


class TooManyLines(Problem, type="too-many-lines"):
    """The problem `/problems/too-many-lines`."""


class TotalTooLarge(Problem, type="total-too-large"):
    """The problem `/problems/total-too-large`."""


class InvalidAmount(Problem, type="invalid-amount"):
    """The problem `/problems/invalid-amount`."""


# Requests.


class NotFound(Problem, type="not-found"):
    """The problem `/problems/not-found`."""


class InvalidBody(Problem, type="invalid-body"):
    """The problem `/problems/invalid-body`."""


class InvalidId(Problem, type="invalid-id"):
    """The problem `/problems/invalid-id`."""


class InvalidQuery(Problem, type="invalid-query"):
    """The problem `/problems/invalid-query`."""

    @property
    def parameter(self) -> str | None:
        """Name of the parameter that was refused."""
        return self.body.get("parameter")


class BodyTooLarge(Problem, type="body-too-large"):
    """The problem `/problems/body-too-large`."""


class TooMuchAtOnce(Problem, type="too-much-at-once"):
    """The problem `/problems/too-much-at-once`."""


class VersionMismatch(Problem, type="version-mismatch"):
    """`if_match` was not the order's version: read it again and decide again."""


class IdempotencyKeyReused(Problem, type="idempotency-key-reused"):
    """The idempotency key belongs to another request."""


class RequestInFlight(Problem, type="request-in-flight"):
    """The first request with this idempotency key has not ended. The client retries this by itself."""


class CustomerNotFound(Problem, type="customer-not-found"):
    """The problem `/problems/customer-not-found`."""


class ChannelNotFound(Problem, type="channel-not-found"):
    """The problem `/problems/channel-not-found`."""


class VersionNotFound(Problem, type="version-not-found"):
    """The problem `/problems/version-not-found`."""


# Access.


class AuthenticationRequired(Problem, type="authentication-required"):
    """The problem `/problems/authentication-required`."""


class TokenExpired(Problem, type="token-expired"):
    """The problem `/problems/token-expired`."""


class TokenRevoked(Problem, type="token-revoked"):
    """The problem `/problems/token-revoked`."""


class Forbidden(Problem, type="forbidden"):
    """The problem `/problems/forbidden`."""


class BanNotFound(Problem, type="ban-not-found"):
    """The problem `/problems/ban-not-found`."""


class CustomerBanned(Problem, type="customer-banned"):
    """The problem `/problems/customer-banned`."""


class InvalidBan(Problem, type="invalid-ban"):
    """The problem `/problems/invalid-ban`."""


class SubjectBanned(Problem, type="subject-banned"):
    """The problem `/problems/subject-banned`."""


class InvalidTicket(Problem, type="invalid-ticket"):
    """The problem `/problems/invalid-ticket`."""


class InvalidToken(Problem, type="invalid-token"):
    """The problem `/problems/invalid-token`."""


class UnknownKey(Problem, type="unknown-key"):
    """The problem `/problems/unknown-key`."""


# Conditions that pass. The client retries these by itself before it raises them.


class RateLimited(Problem, type="rate-limited"):
    """The problem `/problems/rate-limited`."""


class Overloaded(Problem, type="overloaded"):
    """The problem `/problems/overloaded`."""


class OrderBusy(Problem, type="order-busy"):
    """The problem `/problems/order-busy`."""


class StoreUnavailable(Problem, type="store-unavailable"):
    """The problem `/problems/store-unavailable`."""


class DiskLow(Problem, type="disk-low"):
    """The problem `/problems/disk-low`."""


class Stopping(Problem, type="stopping"):
    """The problem `/problems/stopping`."""


class ProjectionBehind(Problem, type="projection-behind"):
    """The read model has not reached the position that the query waits for."""

    @property
    def position(self) -> int | None:
        """Position of the read model."""
        return self.body.get("position")

    @property
    def min_position(self) -> int | None:
        """Position that the query waited for."""
        return self.body.get("min_position")


# The rest: faults of a program or of a proxy, and limits.


class BadRequest(Problem, type="bad-request"):
    """The problem `/problems/bad-request`."""


class BodyLimit(Problem, type="body-limit"):
    """The problem `/problems/body-limit`."""


class BulkLimit(Problem, type="bulk-limit"):
    """The problem `/problems/bulk-limit`."""


class ConnectionLimit(Problem, type="connection-limit"):
    """The problem `/problems/connection-limit`."""


class DeadlineNotEnded(Problem, type="deadline-not-ended"):
    """The problem `/problems/deadline-not-ended`."""


class DuplicateHeader(Problem, type="duplicate-header"):
    """The problem `/problems/duplicate-header`."""


class HeadersTooLarge(Problem, type="headers-too-large"):
    """The problem `/problems/headers-too-large`."""


class InternalError(Problem, type="internal-error"):
    """The problem `/problems/internal-error`."""


class InvalidHost(Problem, type="invalid-host"):
    """The problem `/problems/invalid-host`."""


class InvalidIdempotencyKey(Problem, type="invalid-idempotency-key"):
    """The problem `/problems/invalid-idempotency-key`."""


class InvalidIfMatch(Problem, type="invalid-if-match"):
    """The problem `/problems/invalid-if-match`."""


class InvalidLogLevel(Problem, type="invalid-log-level"):
    """The problem `/problems/invalid-log-level`."""


class InvalidRevocation(Problem, type="invalid-revocation"):
    """The problem `/problems/invalid-revocation`."""


class JsonOnly(Problem, type="json-only"):
    """The problem `/problems/json-only`."""


class LineTooLong(Problem, type="line-too-long"):
    """The problem `/problems/line-too-long`."""


class MalformedJson(Problem, type="malformed-json"):
    """The problem `/problems/malformed-json`."""


class MethodNotAllowed(Problem, type="method-not-allowed"):
    """The problem `/problems/method-not-allowed`."""


class NotAWebsocket(Problem, type="not-a-websocket"):
    """The problem `/problems/not-a-websocket`."""


class OriginNotAllowed(Problem, type="origin-not-allowed"):
    """The problem `/problems/origin-not-allowed`."""


class RequestTimeout(Problem, type="request-timeout"):
    """The problem `/problems/request-timeout`."""


class ResultsUnread(Problem, type="results-unread"):
    """The problem `/problems/results-unread`."""


class TooManyBodies(Problem, type="too-many-bodies"):
    """The problem `/problems/too-many-bodies`."""


class TooManyBulkRequests(Problem, type="too-many-bulk-requests"):
    """The problem `/problems/too-many-bulk-requests`."""


class TooManyConnections(Problem, type="too-many-connections"):
    """The problem `/problems/too-many-connections`."""


class UnreadableBody(Problem, type="unreadable-body"):
    """The problem `/problems/unreadable-body`."""


class UnstorableValue(Problem, type="unstorable-value"):
    """The problem `/problems/unstorable-value`."""


class UnsupportedContentEncoding(Problem, type="unsupported-content-encoding"):
    """The problem `/problems/unsupported-content-encoding`."""


class UnsupportedMediaType(Problem, type="unsupported-media-type"):
    """The problem `/problems/unsupported-media-type`."""


class UnusableHeader(Problem, type="unusable-header"):
    """The problem `/problems/unusable-header`."""


class BodyExpandsTooMuch(Problem, type="body-expands-too-much"):
    """The body expands to many times its compressed size."""


class UndecodableBody(Problem, type="undecodable-body"):
    """The body is not in the coding that Content-Encoding names."""


class WindowTooLarge(Problem, type="window-too-large"):
    """The body was compressed with too large a window."""


class OrderDiffers(Problem, type="order-differs"):
    """The stored order differs from the imported one."""


def problem_from(body: dict[str, Any], retry_after_seconds: float | None = None) -> Problem:
    """Creates the error for a problem. A type that this client does not know becomes a plain `Problem`."""
    kind = Problem._types.get(body["type"].rsplit("/", 1)[-1], Problem)
    return kind(body, retry_after_seconds)


def problem_of(answer: httpx.Response) -> Problem:
    """Returns the problem of a refused answer. Proxies answer in other forms."""
    status = answer.status_code
    body = {"type": "about:blank", "title": f"HTTP status {status}", "status": status}
    try:
        found = answer.json() if "json" in answer.headers.get("content-type", "") else None
    except ValueError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("type"), str):
        body |= found
    return problem_from(body, retry_after(answer.headers.get("retry-after")))


def retry_after(value: str | None) -> float | None:
    """Returns the seconds of `Retry-After`, which is a number of seconds or a date."""
    if value is None:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
