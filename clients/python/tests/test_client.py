"""Tests of the client: retries against a server that fails as each test says, and live updates against DOCKET_URL.

Run them with: python -m unittest discover tests
"""

import asyncio
import base64
import json
import os
import time
import unittest
from pathlib import Path

import httpx
from pages import run_page

from docket_client import AsyncDocket, BulkInterrupted, Docket, NoAnswer, Problem, WatchEnded, problems

URL, TOKEN = os.environ.get("DOCKET_URL", ""), os.environ.get("DOCKET_TOKEN", "")
ORDER = {"customer_id": "ada"}


def answer(status, body, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = "application/json" if status < 400 else "application/problem+json"
    return lambda request: httpx.Response(status, json=body, headers={"content-type": kind, **headers})


def refuse(status, slug, more=None, **headers):
    body = {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": "No.", "request_id": "r-1"}
    return answer(status, body | (more or {}), **headers)


def cut(request):
    raise httpx.ReadError("cut", request=request)


ACCEPTED = answer(201, {"order_id": "o", "version": 1, "position": 7})


class Server(httpx.MockTransport):
    """Answers with each function in turn, and repeats the last one."""

    def __init__(self, *answers):
        self.seen = []
        super().__init__(lambda request: self.next(request, answers))

    def next(self, request, answers):
        self.seen.append(httpx.Request(request.method, request.url, headers=request.headers, content=request.content))
        return answers[min(len(self.seen), len(answers)) - 1](request)

    def client(self, token="t", **options):
        return Docket("http://docket.test", token, transport=self, **options)


def jwt(seconds):
    payload = json.dumps({"exp": int(time.time()) + seconds, "n": os.urandom(4).hex()}).encode()
    return f"h.{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.s"


class Requests(unittest.TestCase):
    def test_a_command_is_repeated_with_one_key_and_the_next_query_waits_for_it(self):
        busy = refuse(503, "store-unavailable"), refuse(409, "request-in-flight")
        server = Server(cut, *busy, ACCEPTED, answer(200, {}))
        docket = server.client()
        self.assertEqual(docket.orders.create(ORDER)["position"], 7)
        keys = {request.headers["idempotency-key"] for request in server.seen}
        self.assertEqual((len(server.seen), len(keys)), (4, 1))
        self.assertEqual({request.content for request in server.seen}, {server.seen[0].content})
        docket.orders.get("MUG 01/é")
        self.assertEqual(server.seen[4].url.raw_path, b"/v1/orders/MUG%2001%2F%C3%A9?min_position=7&wait_ms=5000")
        docket.orders.get("o", min_position=0, as_of=3)
        self.assertEqual(server.seen[5].url.raw_path, b"/v1/orders/o?as_of=3")
        docket.query("/v1/reports/sales", by="day", from_="2017-01-01", min_position=0)
        self.assertEqual(server.seen[6].url.raw_path, b"/v1/reports/sales?by=day&from=2017-01-01")

    def test_retry_after_is_the_shortest_pause_and_a_long_one_goes_to_the_caller(self):
        server = Server(
            refuse(429, "rate-limited", retry_after="1"),
            answer(200, {}),
            refuse(429, "rate-limited", retry_after="3600"),
        )
        docket, started = server.client(), time.monotonic()
        docket.customer("ada")
        self.assertGreaterEqual(time.monotonic() - started, 0.99)
        with self.assertRaises(problems.RateLimited) as caught:
            docket.customer("ada")
        self.assertEqual((caught.exception.retry_after_seconds, len(server.seen)), (3600, 3))

    def test_what_is_useless_to_repeat_is_sent_once(self):
        server = Server(refuse(404, "order-not-found"))
        with self.assertRaises(problems.OrderNotFound):
            server.client().orders.confirm("o")
        self.assertEqual(len(server.seen), 1)

    def test_the_retries_end_and_the_error_has_the_key(self):
        away = Server(cut)
        with self.assertRaises(NoAnswer) as caught:
            away.client(retries=1).orders.confirm("o", idempotency_key="k")
        self.assertEqual((caught.exception.idempotency_key, len(away.seen)), ("k", 2))
        down = Server(refuse(503, "store-unavailable"))
        with self.assertRaises(problems.StoreUnavailable):
            down.client(retries=1).orders.get("o")
        self.assertEqual(len(down.seen), 2)

    def test_a_token_is_kept_replaced_before_it_expires_and_replaced_once_when_it_is_refused(self):
        tokens, given = [jwt(600), jwt(10), jwt(600)], []

        def token(refused):
            given.append(refused)
            return (tokens + ["last"])[len(given) - 1]

        fine = answer(200, {})
        server = Server(fine, fine, refuse(401, "token-revoked"), fine, fine, refuse(401, "token-expired"))
        docket = server.client(token)
        for _ in range(4):
            docket.customer("a")
        self.assertEqual(given, [None, tokens[0], None])
        sent = [request.headers["authorization"].removeprefix("Bearer ") for request in server.seen]
        self.assertEqual(sent, [tokens[index] for index in (0, 0, 0, 1, 2)])
        with self.assertRaises(problems.TokenExpired):
            docket.customer("a")
        self.assertEqual(len(server.seen), 7)

    def test_problems_are_classes_with_fields_whatever_answers(self):
        errors = [{"pointer": "/items/0/quantity", "message": "Too small."}]
        server = Server(
            refuse(422, "invalid-body", {"errors": errors}),
            refuse(400, "from-the-future"),
            lambda request: httpx.Response(403, html="<h1>No</h1>"),
            refuse(503, "projection-behind", {"position": 5, "min_position": 9}),
        )
        found = []
        for _ in range(4):
            try:
                server.client(retries=0).orders.get("o")
            except Problem as problem:
                found.append(problem)
        invalid, unknown, foreign, behind = found
        self.assertIsInstance(invalid, problems.InvalidBody)
        self.assertEqual((invalid.slug, invalid.errors, invalid.request_id), ("invalid-body", errors, "r-1"))
        self.assertEqual(str(invalid), "No. /items/0/quantity: Too small.")
        self.assertEqual((type(unknown), unknown.slug, foreign.status), (Problem, "from-the-future", 403))
        self.assertEqual((type(behind), behind.position, behind.min_position), (problems.ProjectionBehind, 5, 9))


def results(*lines):
    return lambda request: httpx.Response(200, text="".join(json.dumps(line) + "\n" for line in lines))


def done(line):
    return {"line": line, "status": 200, "order_id": "o", "version": line, "position": line}


def confirm(order_id):
    return {"type": "confirm_order", "order_id": order_id}


class Bulk(unittest.TestCase):
    def test_commands_that_were_not_read_are_sent_again(self):
        stopping = {"type": "/problems/stopping", "title": "x", "status": 503}
        missing = {"type": "/problems/order-not-found", "title": "x", "status": 404}
        server = Server(
            refuse(429, "too-many-bulk-requests"),
            results(done(1), {"line": 2, "status": 503, "problem": stopping}),
            results(done(1), {"line": 2, "status": 404, "problem": missing}),
            results(done(1)),
        )
        docket = server.client()
        found = [(r.command["order_id"], r.status) for r in docket.bulk(map(confirm, "abcd"), batch=3)]
        self.assertEqual(found, [("a", 200), ("b", 200), ("c", 404), ("d", 200)])
        sent = ["".join(json.loads(line)["order_id"] for line in r.content.splitlines()) for r in server.seen]
        self.assertEqual((sent, docket.position), (["abc", "abc", "bc", "d"], 1))

    def test_commands_of_which_nothing_is_known_are_returned(self):
        server, found = Server(results(done(1))), []
        with self.assertRaises(BulkInterrupted) as caught:
            for result in server.client().bulk(map(confirm, "abc")):
                found.append(result)
        self.assertEqual([command["order_id"] for command in caught.exception.unanswered], ["b", "c"])
        self.assertEqual((len(found), len(server.seen)), (1, 1))


@unittest.skipUnless(URL, "DOCKET_URL is not set")
class System(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.run_id, self.writers, self.joined = os.urandom(4).hex(), set(), []
        address = httpx.URL(URL)

        async def pipe(reader, writer):
            self.writers.add(writer)
            try:
                while data := await reader.read(65536):
                    writer.write(data)
            except OSError:
                pass
            writer.close()

        async def join(reader, writer):
            self.joined.append(asyncio.current_task())
            far = await asyncio.open_connection(address.host, address.port)
            await asyncio.gather(pipe(reader, far[1]), pipe(far[0], writer))

        self.proxy = await asyncio.start_server(join, "127.0.0.1", 0)
        self.port = self.proxy.sockets[0].getsockname()[1]

    async def asyncTearDown(self):
        self.proxy.close()
        self.cut()
        await asyncio.gather(*self.joined, return_exceptions=True)

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def client(self, token=TOKEN):
        return AsyncDocket(f"http://127.0.0.1:{self.port}", token)

    async def test_each_change_arrives_once_although_the_connection_is_cut(self):
        order_id, pen, seen = f"cut-{self.run_id}", {"sku": "pen.1", "quantity": 1, "unit_price": "1.00"}, []
        async with self.client() as docket:
            await docket.orders.create({"order_id": order_id, "customer_id": "ada"})
            async for update in docket.orders.watch(order_id):
                seen.append((update.change["type"] if update.change else "snapshot", update.order["version"]))
                if update.order["version"] == 6:
                    break
                if update.order["version"] == 3:
                    self.cut()
                await docket.orders.add_item(order_id, pen)
            self.assertEqual(seen, [("snapshot", 1)] + [("ItemAdded", version) for version in range(2, 7)])
            await docket.orders.cancel(order_id, "enough")
        async with self.client() as docket:
            async for next in docket.orders.watch(order_id, since=update.place):
                self.assertEqual((next.change["type"], next.order["version"]), ("OrderCancelled", 7))
                break

    async def test_watches_end_by_close_and_by_a_refusal(self):
        docket, order_id = self.client(), f"end-{self.run_id}"
        await docket.orders.create({"order_id": order_id, "customer_id": "ada"})
        started = []

        async def watch(channel):
            async for update in docket.watch(channel):
                self.assertEqual(update.kind, "snapshot")
                started.append(channel)
                if len(started) == 3:
                    asyncio.get_running_loop().call_later(
                        0.05, lambda: closing.append(asyncio.create_task(docket.aclose()))
                    )
            return "ended"

        closing = []
        channels = [f"order:{order_id}", f"order:{order_id}", "customer:ada"]
        self.assertEqual(await asyncio.gather(*map(watch, channels)), ["ended"] * 3)
        await closing[0]
        async with self.client() as docket:
            with self.assertRaises(WatchEnded) as caught:
                await watch(f"order:none-{self.run_id}")
            self.assertEqual(caught.exception.code, 103)
        async with self.client("no token") as docket:
            with self.assertRaises(WatchEnded) as caught:
                await watch("orders")
            self.assertEqual(caught.exception.code, 3500)

    async def test_update_decides_again_when_another_client_was_faster(self):
        docket, order_id = self.client(), f"race-{self.run_id}"
        await docket.orders.create(
            {"order_id": order_id, "customer_id": "ada", "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00"}]}
        )

        async def one_more():
            async def decide(order):
                await client.orders.change_item(
                    order_id, "pen", order["lines"][0]["quantity"] + 1, if_match=order["version"]
                )

            async with self.client() as client:
                client.position = docket.position
                await client.orders.update(order_id, decide, tries=20)
                return client.position

        docket.position = max(await asyncio.gather(*[one_more() for _ in range(3)]))
        self.assertEqual((await docket.orders.get(order_id))["lines"][0]["quantity"], 4)
        with self.assertRaises(problems.VersionMismatch):
            await docket.orders.confirm(order_id, if_match=1)
        await docket.aclose()

    async def test_the_log_and_reports_are_read(self):
        async def commands():
            yield {"type": "create_order", "order_id": f"log-{self.run_id}", "customer_id": "ada"}
            yield {
                "type": "add_item",
                "order_id": f"log-{self.run_id}",
                "sku": "pen",
                "quantity": 1,
                "unit_price": "1.00",
            }
            yield {"type": "confirm_order", "order_id": f"log-{self.run_id}"}

        async with self.client() as docket:
            results = [result async for result in docket.bulk(commands(), batch=2)]
            self.assertEqual([result.status for result in results], [201, 200, 200])
            after = results[0].accepted["position"] - 1
            types = [event["type"] async for event in docket.events(after)]
            self.assertEqual(types[:3], ["OrderCreated", "ItemAdded", "OrderConfirmed"])
            self.assertTrue(await docket.sales("day"))
            self.assertTrue(await docket.top_products("quantity"))
            self.assertGreater((await docket.customer("ada"))["confirmed"], 0)
            self.assertGreaterEqual((await docket.projections())["head"], docket.position)


@unittest.skipUnless(URL, "DOCKET_URL is not set")
class Types(unittest.TestCase):
    def test_every_problem_type_of_the_server_is_a_class(self):
        answer = httpx.get(f"{URL}/problems", headers={"accept": "application/json"})
        bodies = [item | {"title": "x", "status": 400} for item in answer.json()["items"]]
        unknown = [body["type"] for body in bodies if type(problems.problem_from(body)) is Problem]
        self.assertEqual(unknown, [], "Add a class to problems.py for each, and to clients/typescript.")


@unittest.skipUnless(URL, "DOCKET_URL is not set")
class Pages(unittest.TestCase):
    def test_the_examples_print_what_the_pages_say(self):
        for page in ("../README.md", "../../../docs/use-from-your-app.md"):
            with self.subTest(page):
                run_page(Path(__file__).parent / page)


if __name__ == "__main__":
    unittest.main()
