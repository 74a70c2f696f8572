"""Live updates over the stock centrifuge-python client, which reconnects and resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from .models import Change, Order
from .problems import DocketError

WAITING_MAX = 10_000
"""Updates that may wait for the loop that reads them."""
CLOSE_SECONDS_MAX = 2.0
"""Time limit for a connection to close."""


@dataclass(frozen=True)
class Place:
    """A place in a channel, from which `watch` can continue in another process."""

    position: int
    epoch: str
    """The log's incarnation; it changes when a log is restored from a backup."""


@dataclass(frozen=True)
class Update:
    """The state of a channel (`snapshot`), which replaces everything before it, or a change (`change`)."""

    kind: Literal["snapshot", "change"]
    data: Any
    position: int
    epoch: str

    @property
    def place(self) -> Place:
        """The argument `since` with which another `watch` continues after this update."""
        return Place(self.position, self.epoch)


@dataclass(frozen=True)
class OrderUpdate:
    """The order at a place of its channel."""

    order: Order
    change: Change | None
    """The change that led to it; `None` for the first update, and after a gap that could not be replayed."""
    position: int
    epoch: str

    @property
    def place(self) -> Place:
        """The argument `since` with which another `watch` continues after this update."""
        return Place(self.position, self.epoch)


class WatchEnded(DocketError):
    """The server ended the subscription, and a new one would end in the same way."""

    def __init__(self, channel: str, code: int, reason: str) -> None:
        super().__init__(f"The server ended the updates of {channel}: {reason} ({code}).")
        self.channel = channel
        self.code = code
        """Error or close code of docs/push.md: 103 is "permission denied", also for an order that does not exist."""
        self.reason = reason


class WatchOverflow(DocketError):
    """The updates were read too slowly. Watch again, with `since`."""


@dataclass(eq=False)
class _Socket:
    client: Any
    queues: dict[str, asyncio.Queue[Update | DocketError | None]]
    """By channel: the updates that wait. An exception ends the loop with an error, None ends it."""


class Watcher:
    """Sockets of one client. A socket carries many channels, but each channel once."""

    def __init__(self, url: str, token: Callable[[str | None], Awaitable[str]], *, can_refresh: bool) -> None:
        self._url = "ws" + url.removeprefix("http").rstrip("/") + "/ws"
        self._token = token
        self._can_refresh = can_refresh
        self._sockets: list[_Socket] = []

    async def watch(self, channel: str, since: Place | None) -> AsyncIterator[Update]:
        try:
            from centrifuge import StreamPosition, SubscriptionEventHandler
        except ImportError as error:
            raise DocketError("Live updates need centrifuge-python: pip install 'docket-client[watch]'.") from error
        queue: asyncio.Queue[Update | DocketError | None] = asyncio.Queue()
        epoch = since.epoch if since else ""

        def put(update: Update) -> None:
            if queue.qsize() == WAITING_MAX:
                queue.put_nowait(WatchOverflow(f"{WAITING_MAX} updates of {channel} wait to be read."))
            elif queue.qsize() < WAITING_MAX:
                queue.put_nowait(update)

        class Events(SubscriptionEventHandler):  # type: ignore[misc]
            async def on_subscribed(self, ctx: Any) -> None:
                nonlocal epoch
                epoch = ctx.stream_position.epoch if ctx.stream_position else epoch
                if ctx.data and not ctx.recovered:
                    data = ctx.data.get("view", ctx.data.get("items"))
                    put(Update("snapshot", data, ctx.data["position"], epoch))

            async def on_publication(self, ctx: Any) -> None:
                put(Update("change", ctx.pub.data, ctx.pub.offset or ctx.pub.data.get("position", 0), epoch))

            async def on_unsubscribed(self, ctx: Any) -> None:
                queue.put_nowait(None if ctx.code == 0 else WatchEnded(channel, ctx.code, ctx.reason))

        options: dict[str, Any] = {}
        if since:

            async def place(_: str) -> Any:
                return StreamPosition(offset=since.position, epoch=since.epoch)

            options["get_state"] = place
        socket = self._socket_without(channel)
        subscription = socket.client.new_subscription(channel, events=Events(), **options)
        socket.queues[channel] = queue
        try:
            await subscription.subscribe()
            await socket.client.connect()
            while (update := await queue.get()) is not None:
                if isinstance(update, DocketError):
                    raise update
                yield update
        finally:
            del socket.queues[channel]
            if not socket.queues and socket in self._sockets:
                self._sockets.remove(socket)
            await subscription.unsubscribe()
            socket.client.remove_subscription(subscription)
            if not socket.queues:
                await _disconnect(socket)

    def _socket_without(self, channel: str) -> _Socket:
        from centrifuge import Client, ClientEventHandler, UnauthorizedError

        for socket in self._sockets:
            if channel not in socket.queues:
                return socket
        last: str | None = None
        queues: dict[str, asyncio.Queue[Update | DocketError | None]] = {}

        # The socket asks for its first token, and for another one when the server refuses it or before it expires.
        async def get_token() -> str:
            nonlocal last
            if last is not None and not self._can_refresh:
                raise UnauthorizedError("The token has expired.")
            last = await self._token(last)
            return last

        class Events(ClientEventHandler):  # type: ignore[misc]
            async def on_disconnected(self, ctx: Any) -> None:
                for name, queue in queues.items():
                    queue.put_nowait(WatchEnded(name, ctx.code, ctx.reason))

        delays = {"min_reconnect_delay": 0.2, "max_reconnect_delay": 10}
        socket = _Socket(Client(self._url, events=Events(), get_token=get_token, **delays), queues)
        self._sockets.append(socket)
        return socket

    async def close(self) -> None:
        """Ends every watch."""
        sockets, self._sockets = self._sockets, []
        for socket in sockets:
            for queue in socket.queues.values():
                queue.put_nowait(None)
            await _disconnect(socket)


async def _disconnect(socket: _Socket) -> None:
    """Disconnects, and waits until the connection is closed: centrifuge-python closes it in a task of its own."""
    await socket.client.disconnect()
    if closing := set(getattr(socket.client, "_background_tasks", ())):
        await asyncio.wait(closing, timeout=CLOSE_SECONDS_MAX)
