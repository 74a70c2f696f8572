"""The async client. generate.py makes the blocking client from this file."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from typing_extensions import Self

from ._shared import (
    BULK_TRIES_MAX,
    REFRESH_SECONDS,
    RETRIED,
    RETRY_AFTER_SECONDS_MAX,
    UNREAD,
    BulkInterrupted,
    BulkResult,
    backoff,
    expiry,
    variable,
)
from ._watch import OrderUpdate, Place, Update, Watcher
from .models import (
    Accepted,
    BulkCommand,
    Customer,
    HistoryEvent,
    LogEvent,
    NewItem,
    NewOrder,
    Order,
    OrderSummary,
    Product,
    Projections,
    Sale,
)
from .problems import NoAnswer, VersionMismatch, problem_from, problem_of

AsyncTokenProvider = Callable[[str | None], Awaitable[str] | str]
"""Returns a token. The argument is the token that the server no longer accepts, if there is one."""

Result = TypeVar("Result")


class AsyncDocket:
    """A client of one server, for one user. It is cheap to keep, and safe to use for many requests at once.

    `url`: address of the server: `http://127.0.0.1:8080`. Default: the environment variable `DOCKET_URL`.
    `token`: a token, or a function that returns one. The function is called again before the token expires, and when
    it is refused. Default: the environment variable `DOCKET_TOKEN`.
    `retries`: retries of a request after the first try, 0 for none.
    `timeout`: seconds for one try; with streamed answers, until the answer begins and between two parts of it.
    `wait`: seconds for which a query waits until the read model contains this client's commands, at most 10.
    `transport`: replaces the HTTP transport of httpx, for example in tests.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | AsyncTokenProvider | None = None,
        *,
        retries: int = 4,
        timeout: float = 30.0,
        wait: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        url = url or variable("DOCKET_URL", "url")
        token = token or variable("DOCKET_TOKEN", "token")
        self.position = 0
        """Position of the last command of this client. Queries wait for it. Set it to 0 after a log was restored."""
        self.orders = AsyncOrders(self)
        """Commands and queries of orders."""
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, transport=transport)
        self._provider = token
        self._token: str | None = None
        self._refresh_at = 0.0
        self._token_lock = asyncio.Lock()
        self._retries = retries
        self._wait_ms = round(wait * 1000)
        # Only async.
        self._watcher = Watcher(url, self._current_token, can_refresh=not isinstance(token, str))
        # End of only async.

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        # Only async.
        await self._watcher.close()
        # End of only async.
        await self._http.aclose()

    async def query(self, path: str, *, min_position: int | None = None, **parameters: Any) -> Any:
        """Sends a query, and returns its answer. `path` begins with `/v1`.

        `min_position` is the position that the read model must have reached; default: that of this client's last
        command; 0: none.
        """
        query = self._parameters(parameters, min_position)
        return (await self._send(self._http.build_request("GET", path, params=query))).json()

    async def command(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        if_match: int | None = None,
        idempotency_key: str | None = None,
    ) -> Accepted:
        """Sends a command, and returns its answer. Retries repeat the request with the same idempotency key.

        `if_match` refuses the command with `VersionMismatch` unless the order has this version. The default of
        `idempotency_key` is a new UUID for each call.
        """
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"'
        request = self._http.build_request(method, path, headers=headers, json=body)
        answer = await self._send(request)
        accepted: Accepted = answer.json()
        self.position = max(self.position, accepted["position"])
        return accepted

    async def bulk(
        self, commands: AsyncIterable[BulkCommand] | Iterable[BulkCommand], *, batch: int = 1000
    ) -> AsyncIterator[BulkResult]:
        """Sends many commands in order, `batch` in one request, and yields a result for each.

        Refused commands do not stop the others. Commands that the server did not read are sent again. Raises
        `BulkInterrupted` when the connection fails.
        """
        waiting: list[BulkCommand] = []
        # Only async.
        if isinstance(commands, AsyncIterable):
            async for command in commands:
                waiting.append(command)
                if len(waiting) >= batch:
                    async for result in self._send_batch(waiting):
                        yield result
                    waiting = []
            commands = []
        # End of only async.
        for command in commands:
            waiting.append(command)
            if len(waiting) >= batch:
                async for result in self._send_batch(waiting):
                    yield result
                waiting = []
        async for result in self._send_batch(waiting):
            yield result

    async def _send_batch(self, commands: list[BulkCommand]) -> AsyncIterator[BulkResult]:
        attempt = 0
        while commands:
            answered, unread = 0, None
            body = "".join(json.dumps(command, ensure_ascii=False) + "\n" for command in commands)
            headers = {"content-type": "application/x-ndjson"}
            request = self._http.build_request("POST", "/v1/commands", content=body.encode(), headers=headers)
            try:
                answer = await self._send(request, stream=True, repeat_refused=True)
                try:
                    async for line in answer.aiter_lines():
                        found = json.loads(line)
                        problem = found.get("problem") and problem_from(found["problem"])
                        if problem and problem.slug in UNREAD:
                            unread = problem
                            break
                        command = commands[answered]
                        answered += 1
                        if problem:
                            yield BulkResult(command, found["status"], problem=problem)
                        else:
                            accepted: Accepted = {key: found[key] for key in ("order_id", "version", "position")}  # type: ignore[assignment]
                            self.position = max(self.position, accepted["position"])
                            yield BulkResult(command, found["status"], accepted)
                finally:
                    await answer.aclose()
            except (httpx.TransportError, NoAnswer) as error:
                raise BulkInterrupted(commands[answered:]) from error
            commands = commands[answered:]
            if commands and not unread:
                raise BulkInterrupted(commands)
            attempt = 1 if answered else attempt + 1
            if unread:
                if attempt > BULK_TRIES_MAX:
                    raise unread
                await asyncio.sleep(1)

    async def customer(self, customer_id: str, **options: Any) -> Customer:
        """Returns a customer's figures."""
        found: Customer = await self.query(f"/v1/customers/{quote(customer_id, safe='')}", **options)
        return found

    async def sales(self, by: str, **options: Any) -> list[Sale]:
        """Returns the sales by `day`, `category` or `store`; `from_` and `to` limit the time. For staff."""
        found: list[Sale] = await self.query("/v1/reports/sales", by=by, **options)
        return found

    async def top_products(self, by: str, **options: Any) -> list[Product]:
        """Returns the best sellers by `revenue` or `quantity`. For staff."""
        found: list[Product] = await self.query("/v1/products/top", by=by, **options)
        return found

    async def events(self, after: int = 0, *, min_position: int | None = None) -> AsyncIterator[LogEvent]:
        """Yields the events of the log after a position. For admins."""
        while True:
            query = self._parameters({"after": after, "limit": 1000}, min_position)
            page = (await self._send(self._http.build_request("GET", "/v1/events", params=query))).json()
            for event in page["items"]:
                after = event["position"]
                yield event
            if not page["items"]:
                return

    async def projections(self) -> Projections:
        """Returns the status of every read model. For admins."""
        found: Projections = await self.query("/v1/projections", min_position=0)
        return found

    # Only async.
    async def watch(self, channel: str, *, since: Place | None = None) -> AsyncIterator[Update]:
        """Yields the snapshot of a channel, then each change once and in order, across reconnects. See docs/push.md.

        `since` continues after a place instead of beginning with a snapshot.
        """
        async for update in self._watcher.watch(channel, since):
            yield update

    # End of only async.
    def _parameters(self, parameters: dict[str, Any], min_position: int | None) -> dict[str, Any]:
        # `from` is a keyword of Python, so callers write `from_`.
        found = {name.rstrip("_"): value for name, value in parameters.items() if value is not None}
        wanted = self.position if min_position is None else min_position
        return found | ({"min_position": wanted, "wait_ms": self._wait_ms} if wanted > 0 else {})

    async def _current_token(self, refused: str | None = None) -> str:
        """Returns a token that has not expired. Callers at the same time share one call of the provider."""
        if isinstance(self._provider, str):
            return self._provider
        async with self._token_lock:
            if self._token is None or self._token == refused or time.time() >= self._refresh_at:
                token = self._provider(refused)
                # Only async.
                if inspect.isawaitable(token):
                    token = await token
                # End of only async.
                self._token, self._refresh_at = token, expiry(token) - REFRESH_SECONDS
            return self._token

    async def _send(
        self, request: httpx.Request, *, stream: bool = False, repeat_refused: bool = False
    ) -> httpx.Response:
        """Sends a request until it is answered, and returns the answer with a status below 400.

        A request is repeated when it has no effect (GET) or an `Idempotency-Key`; each try sends the same key, so the
        server executes the command once. `repeat_refused` repeats other requests after answers that say that nothing
        was done (429 and 503). A refused token is replaced once.

        Raises `Problem` if the server refuses, `NoAnswer` if no answer arrives.
        """
        key = request.headers.get("idempotency-key")
        repeatable = request.method == "GET" or key is not None
        refused: str | None = None
        attempt = 0
        while True:
            token = await self._current_token(refused)
            request.headers["authorization"] = f"Bearer {token}"
            pause = backoff(attempt)
            try:
                answer = await self._http.send(request, stream=stream)
                if answer.status_code < 400:
                    return answer
                await answer.aread()
            except httpx.TransportError as error:
                if not repeatable or attempt >= self._retries:
                    why = (
                        "No answer arrived in time"
                        if isinstance(error, httpx.TimeoutException)
                        else "The connection failed"
                    )
                    raise NoAnswer(f"{why}: {request.method} {request.url.path}.", key) from error
            else:
                problem = problem_of(answer)
                if problem.status == 401 and refused is None and not isinstance(self._provider, str):
                    refused = token
                    continue
                if repeatable:
                    again = problem.status in RETRIED or problem.slug == "request-in-flight"
                else:
                    again = repeat_refused and problem.status in (429, 503)
                pause = max(pause, problem.retry_after_seconds or 0)
                if not again or attempt >= self._retries or pause > RETRY_AFTER_SECONDS_MAX:
                    raise problem
            attempt += 1
            await asyncio.sleep(pause)


class AsyncOrders:
    """Commands and queries of orders. `options` of commands are `if_match` and `idempotency_key`."""

    def __init__(self, docket: AsyncDocket) -> None:
        self._docket = docket

    async def create(self, order: NewOrder, *, idempotency_key: str | None = None) -> Accepted:
        """Creates an order. The server generates an id if there is none."""
        return await self._docket.command("POST", "/v1/orders", order, idempotency_key=idempotency_key)

    async def add_item(self, order_id: str, item: NewItem, **options: Any) -> Accepted:
        """Adds an item to a draft. The quantity of the same SKU at the same price adds up."""
        return await self._docket.command("POST", f"{_path(order_id)}/items", item, **options)

    async def change_item(self, order_id: str, sku: str, quantity: int, **options: Any) -> Accepted:
        """Sets the quantity of a line."""
        path = f"{_path(order_id)}/items/{quote(sku, safe='')}"
        return await self._docket.command("PUT", path, {"quantity": quantity}, **options)

    async def remove_item(self, order_id: str, sku: str, **options: Any) -> Accepted:
        """Removes a line."""
        return await self._docket.command("DELETE", f"{_path(order_id)}/items/{quote(sku, safe='')}", **options)

    async def confirm(self, order_id: str, **options: Any) -> Accepted:
        """Confirms a draft."""
        return await self._docket.command("POST", f"{_path(order_id)}/confirm", **options)

    async def cancel(self, order_id: str, reason: str, **options: Any) -> Accepted:
        """Cancels an order. `reason` has 1 to 500 characters."""
        return await self._docket.command("POST", f"{_path(order_id)}/cancel", {"reason": reason}, **options)

    async def get(self, order_id: str, *, as_of: int | str | None = None, min_position: int | None = None) -> Order:
        """Returns an order with its lines, also as of a version or an RFC 3339 time."""
        found: Order = await self._docket.query(_path(order_id), as_of=as_of, min_position=min_position)
        return found

    async def list(self, *, min_position: int | None = None, **filters: Any) -> AsyncIterator[OrderSummary]:
        """Yields the orders that match the filters of `GET /v1/orders`, page by page."""
        cursor = None
        while True:
            page = await self._docket.query("/v1/orders", min_position=min_position, **filters, cursor=cursor)
            for order in page["items"]:
                yield order
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    async def history(self, order_id: str, *, min_position: int | None = None) -> AsyncIterator[HistoryEvent]:
        """Yields the events of an order, page by page."""
        after: int | None = 0
        while after is not None:
            page = await self._docket.query(f"{_path(order_id)}/events", min_position=min_position, after=after)
            for event in page["items"]:
                yield event
            after = page.get("next_after")

    # Only async.
    async def watch(self, order_id: str, *, since: Place | None = None) -> AsyncIterator[OrderUpdate]:
        """Yields the order, then the order after each change, with the change. See `AsyncDocket.watch`."""
        async for update in self._docket.watch(f"order:{order_id}", since=since):
            if update.kind == "snapshot":
                yield OrderUpdate(update.data, None, update.position, update.epoch)
            else:
                yield OrderUpdate(update.data["view"], update.data, update.position, update.epoch)

    # End of only async.
    async def update(self, order_id: str, decide: Callable[[Order], Awaitable[Result]], *, tries: int = 5) -> Result:
        """Reads an order and calls `decide`, which sends commands with `if_match`.

        Repeats both when another client was faster.
        """
        attempt = 1
        while True:
            try:
                return await decide(await self.get(order_id))
            except VersionMismatch:
                if attempt >= tries:
                    raise
                # The read model may not contain the other client's change yet.
                await asyncio.sleep(0.05 * attempt)
                attempt += 1


def _path(order_id: str) -> str:
    return f"/v1/orders/{quote(order_id, safe='')}"
