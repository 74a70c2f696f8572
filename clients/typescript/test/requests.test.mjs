// Retries, tokens and problems, against a server that fails as each test says.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  BulkInterrupted, Docket, NoAnswer, OrderNotFound, Problem, ProjectionBehind, RateLimited, StoreUnavailable, TokenExpired,
} from '@docket/client';

const closing = [];
after(() => closing.forEach((server) => (server.closeAllConnections(), server.close())));

/** Starts a server that answers with each function in turn, and repeats the last one. */
async function server(...answers) {
  const seen = [];
  const listener = createServer(async (request, response) => {
    let body = '';
    for await (const bytes of request) body += bytes;
    seen.push({ method: request.method, url: request.url, headers: request.headers, body });
    answers[Math.min(seen.length, answers.length) - 1](response, body);
  });
  closing.push(listener.listen(0, '127.0.0.1'));
  await once(listener, 'listening');
  return { url: `http://127.0.0.1:${listener.address().port}`, seen };
}

const json = (status, body, headers = {}) => (response) =>
  response.writeHead(status, { 'content-type': status < 400 ? 'application/json' : 'application/problem+json', ...headers }).end(JSON.stringify(body));
const refuse = (status, slug, more = {}, headers = {}) =>
  json(status, { type: `/problems/${slug}`, title: slug, status, detail: 'No.', request_id: 'r-1', ...more }, headers);
const cut = (response) => response.destroy();
const accepted = json(201, { order_id: 'o', version: 1, position: 7 });
const order = { customer_id: 'ada' };

test('a command is repeated with one idempotency key, and the next query waits for it', async () => {
  const { url, seen } = await server(cut, refuse(503, 'store-unavailable'), refuse(409, 'request-in-flight'), accepted, json(200, {}));
  const docket = new Docket({ url, token: 't' });
  assert.equal((await docket.orders.create(order)).position, 7);
  const keys = seen.map(({ headers }) => headers['idempotency-key']);
  assert.equal(seen.length, 4);
  assert.match(keys[0], /^[0-9a-f-]{36}$/);
  assert.equal(new Set(keys).size, 1);
  assert.deepEqual(new Set(seen.map(({ body }) => body)), new Set([JSON.stringify(order)]));
  await docket.orders.get('MUG 01/é');
  assert.equal(seen[4].url, '/v1/orders/MUG%2001%2F%C3%A9?min_position=7&wait_ms=5000');
  await docket.orders.get('o', { minPosition: 0, asOf: 3 });
  assert.equal(seen[5].url, '/v1/orders/o?as_of=3');
  await docket.orders.create(order);
  assert.notEqual(seen[6].headers['idempotency-key'], keys[0], 'each command has a key of its own');
});

test('an answer that ends early counts as no answer', async () => {
  const short = (response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': '100' });
    response.write('{"order_id":');
    setTimeout(() => response.destroy(), 20);
  };
  const { url, seen } = await server(short, accepted);
  assert.equal((await new Docket({ url, token: 't' }).orders.confirm('o')).version, 1);
  assert.equal(seen.length, 2);
});

test('Retry-After is the shortest pause, and a long one goes to the caller', async () => {
  const { url, seen } = await server(refuse(429, 'rate-limited', {}, { 'retry-after': '1' }), json(200, {}), refuse(429, 'rate-limited', {}, { 'retry-after': '3600' }));
  const docket = new Docket({ url, token: 't' });
  const started = performance.now();
  await docket.customer('ada');
  assert.ok(performance.now() - started >= 990);
  await assert.rejects(docket.customer('ada'), (error) => error instanceof RateLimited && error.retryAfterSeconds === 3600);
  assert.equal(seen.length, 3);
});

test('what is unsafe or useless to repeat is sent once', async () => {
  const lost = await server(cut);
  await assert.rejects(new Docket({ url: lost.url, token: 't' }).api.POST('/v1/tickets'), NoAnswer);
  assert.equal(lost.seen.length, 1);
  const missing = await server(refuse(404, 'order-not-found'));
  await assert.rejects(new Docket({ url: missing.url, token: 't' }).orders.confirm('o'), OrderNotFound);
  assert.equal(missing.seen.length, 1);
});

test('the retries end, and the error has the key', async () => {
  const away = await server(cut);
  const sent = new Docket({ url: away.url, token: 't', retries: 1 }).orders.confirm('o', { idempotencyKey: 'k' });
  await assert.rejects(sent, (error) => error instanceof NoAnswer && error.name === 'NoAnswer' && error.idempotencyKey === 'k');
  assert.equal(away.seen.length, 2);
  const down = await server(refuse(503, 'store-unavailable'));
  await assert.rejects(new Docket({ url: down.url, token: 't', retries: 1 }).orders.get('o'), StoreUnavailable);
  assert.equal(down.seen.length, 2);
});

test('a try has a time-out, and a signal ends everything', async () => {
  const silent = await server(() => {});
  const docket = new Docket({ url: silent.url, token: 't', timeoutMs: 50, retries: 1 });
  await assert.rejects(docket.orders.get('o'), (error) => error instanceof NoAnswer && /within 50 ms: GET \/v1\/orders\/o\./.test(error.message));
  assert.equal(silent.seen.length, 2);
  const controller = new AbortController();
  const waiting = docket.orders.get('o', { signal: controller.signal, timeoutMs: 60_000 });
  controller.abort(new Error('enough'));
  await assert.rejects(waiting, /enough/);
  const down = await server(refuse(503, 'overloaded', {}, { 'retry-after': '30' }));
  const pausing = new Docket({ url: down.url, token: 't' }).orders.get('o', { signal: AbortSignal.timeout(100) });
  await assert.rejects(pausing, { name: 'TimeoutError' });
});

const jwt = (exp) => `h.${btoa(JSON.stringify({ exp, n: Math.random() }))}.s`;
const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds;

test('a token is shared, replaced before it expires, and replaced once when it is refused', async () => {
  const tokens = [jwt(inSeconds(600)), jwt(inSeconds(10)), jwt(inSeconds(600))];
  const given = [];
  const token = async (refused) => (await sleep(10), given.push(refused), tokens[given.length - 1] ?? 'last');
  const { url, seen } = await server(json(200, {}), json(200, {}), refuse(401, 'token-revoked'), json(200, {}), json(200, {}), refuse(401, 'token-expired'));
  const docket = new Docket({ url, token });
  await Promise.all([docket.customer('a'), docket.customer('a')]);
  assert.equal(given.length, 1);
  await docket.customer('a');
  assert.deepEqual(given, [undefined, tokens[0]]);
  await docket.customer('a');
  assert.equal(given.length, 3, 'a token that expires within 30 s is replaced');
  assert.deepEqual(seen.map(({ headers }) => headers.authorization), [0, 0, 0, 1, 2].map((index) => `Bearer ${tokens[index]}`));
  await assert.rejects(docket.customer('a'), TokenExpired);
  assert.equal(seen.length, 7, 'a second refusal goes to the caller');
});

test('problems are classes with fields, whatever answers', async () => {
  const errors = [{ pointer: '/items/0/quantity', message: 'Too small.' }];
  const { url } = await server(
    refuse(422, 'invalid-body', { errors }),
    refuse(400, 'from-the-future'),
    (response) => response.writeHead(403, { 'content-type': 'text/html' }).end('<h1>No</h1>'),
    refuse(503, 'projection-behind', { position: 5, min_position: 9 }),
  );
  const docket = new Docket({ url, token: 't', retries: 0 });
  const failed = () => docket.orders.get('o').catch((error) => error);
  const invalid = await failed();
  assert.deepEqual([invalid.name, invalid.slug, invalid.errors, invalid.requestId], ['InvalidBody', 'invalid-body', errors, 'r-1']);
  assert.equal(invalid.message, 'No. /items/0/quantity: Too small.');
  const unknown = await failed();
  assert.deepEqual([unknown instanceof Problem, unknown.name, unknown.slug], [true, 'Problem', 'from-the-future']);
  assert.deepEqual([(await failed()).status, unknown.status], [403, 400]);
  const behind = await failed();
  assert.ok(behind instanceof ProjectionBehind);
  assert.deepEqual([behind.position, behind.minPosition], [5, 9]);
});

const results = (...lines) => (response) =>
  response.writeHead(200, { 'content-type': 'application/x-ndjson' }).end(lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
const done = (line) => ({ line, status: 200, order_id: 'o', version: line, position: line });
const confirm = (order_id) => ({ type: 'confirm_order', order_id });
const all = async (iterable) => {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
};

test('bulk commands that were not read are sent again', async () => {
  const problem = { type: '/problems/stopping', title: 'x', status: 503 };
  const { url, seen } = await server(
    refuse(429, 'too-many-bulk-requests'),
    results(done(1), { line: 2, status: 503, problem }),
    results(done(1), { line: 2, status: 404, problem: { type: '/problems/order-not-found', title: 'x', status: 404 } }),
    results(done(1)),
  );
  const docket = new Docket({ url, token: 't' });
  async function* source() {
    yield* ['a', 'b', 'c', 'd'].map(confirm);
  }
  const found = await all(docket.bulk(source(), { batch: 3 }));
  assert.deepEqual(found.map(({ command, status }) => `${command.order_id} ${status}`), ['a 200', 'b 200', 'c 404', 'd 200']);
  assert.ok(found[2].problem instanceof OrderNotFound);
  assert.deepEqual(seen.map(({ body }) => body.match(/"order_id":"./g).map((id) => id.at(-1)).join('')), ['abc', 'abc', 'bc', 'd']);
  assert.equal(docket.position, 1);
});

test('bulk commands of which nothing is known are returned', async () => {
  const half = (response) => {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    response.write(`${JSON.stringify(done(1))}\n`);
    setTimeout(() => response.destroy(), 50);
  };
  const { url, seen } = await server(half);
  const found = [];
  await assert.rejects(async () => {
    for await (const result of new Docket({ url, token: 't' }).bulk(['a', 'b', 'c'].map(confirm))) found.push(result);
  }, (error) => error instanceof BulkInterrupted && error.unanswered.map(({ order_id }) => order_id).join('') === 'bc');
  assert.equal(found.length, 1);
  assert.equal(seen.length, 1);
});
