"""Follows channels with the stock centrifuge-python client and prints a JSON line for each event that the client reports.

usage: python3 follow.py ws://HOST:PORT/ws TOKEN[,TOKEN...] CHANNEL...
The first token is used to connect; the others are returned when the client asks for a fresh token.
"""

import asyncio
import json
import sys

from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler


def show(**line):
    print(json.dumps(line), flush=True)


class Events(ClientEventHandler):
    async def on_disconnected(self, ctx):
        show(event="disconnected", code=ctx.code, reason=ctx.reason)

    async def on_error(self, ctx):
        print("client:", ctx, file=sys.stderr)


class Channel(SubscriptionEventHandler):
    def __init__(self, name):
        self.name = name

    async def on_subscribed(self, ctx):
        show(event="subscribed", channel=self.name, data=ctx.data, recovered=ctx.recovered)

    async def on_publication(self, ctx):
        show(event="publication", channel=self.name, data=ctx.pub.data, offset=ctx.pub.offset)

    async def on_unsubscribed(self, ctx):
        show(event="unsubscribed", channel=self.name, code=ctx.code, reason=ctx.reason)


async def main():
    url, tokens, *channels = sys.argv[1:]
    token, *fresh = tokens.split(",")

    async def get_token(*_):
        show(event="token")
        return fresh.pop(0) if len(fresh) > 1 else (fresh or [token])[0]

    client = Client(
        url, events=Events(), token=token, get_token=get_token, min_reconnect_delay=0.05, max_reconnect_delay=0.5
    )
    for name in channels:
        await client.new_subscription(name, events=Channel(name)).subscribe()
    await client.connect()
    await asyncio.Event().wait()


asyncio.run(main())
