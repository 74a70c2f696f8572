// Live updates against the server at DOCKET_URL, through a proxy that cuts connections.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { after, before, test } from 'node:test';
import { Docket, Problem, problemFrom, VersionMismatch, WatchEnded } from '@docket/client';

const { DOCKET_URL: url, DOCKET_TOKEN: token } = process.env;
const skip = url ? false : 'DOCKET_URL is not set';
const run = Date.now().toString(36);
const pen = { sku: 'pen.1', quantity: 1, unit_price: '1.00' };

let proxy;
const open = new Set();
before(async () => {
  if (skip) return;
  const { hostname, port } = new URL(url);
  proxy = createServer((near) => {
    const far = connect(Number(port), hostname);
    for (const [from, to] of [[near, far], [far, near]]) {
      open.add(from);
      from.pipe(to);
      from.on('error', () => {}).on('close', () => (open.delete(from), to.destroy()));
    }
  });
  await once(proxy.listen(0, '127.0.0.1'), 'listening');
});
after(() => {
  proxy?.close();
  cut();
});
const cut = () => open.forEach((socket) => socket.destroy());
const client = (options = {}) => new Docket({ url: `http://127.0.0.1:${proxy.address().port}`, token, ...options });

test('each change arrives once although the connection is cut', { skip }, async () => {
  const [docket, id] = [client(), `cut-${run}`];
  await docket.orders.create({ order_id: id, customer_id: 'ada' });
  const seen = [];
  let last;
  for await (const update of docket.orders.watch(id)) {
    seen.push(`${update.change?.type ?? 'snapshot'} ${update.order.version}`);
    last = update;
    if (update.order.version === 6) break;
    if (update.order.version === 3) cut();
    await docket.orders.addItem(id, pen);
  }
  assert.deepEqual(seen, ['snapshot 1', ...[2, 3, 4, 5, 6].map((version) => `ItemAdded ${version}`)]);
  // Another process continues after the last update.
  await docket.orders.cancel(id, 'enough');
  for await (const { change, order } of client().orders.watch(id, { since: last })) {
    assert.deepEqual([change?.type, order.version], ['OrderCancelled', 7]);
    break;
  }
});

test('watches share a socket, and end by a signal, by close and by a refusal', { skip }, async () => {
  const [docket, id, controller] = [client(), `end-${run}`, new AbortController()];
  await docket.orders.create({ order_id: id, customer_id: 'ada' });
  const watch = async (channel, options) => {
    let count = 0;
    for await (const update of docket.watch(channel, options)) {
      assert.equal(update.kind, 'snapshot');
      if (++count === 1) started += 1;
      if (started === 3) setTimeout(() => controller.abort(), 50);
    }
    return 'ended';
  };
  let started = 0;
  const { signal } = controller;
  const all = [watch(`order:${id}`, { signal }), watch(`order:${id}`, { signal }), watch('customer:ada')];
  assert.deepEqual(await Promise.all(all.slice(0, 2)), ['ended', 'ended']);
  docket.close();
  assert.equal(await all[2], 'ended');
  await assert.rejects(watch(`order:none-${run}`), (error) => error instanceof WatchEnded && error.code === 103);
});

test('a token that the server refuses ends a watch', { skip }, async () => {
  await assert.rejects(client({ token: 'no token' }).watch('orders').next(), (error) => error instanceof WatchEnded && error.code === 3500);
});

test('update decides again when another client was faster', { skip }, async () => {
  const [docket, id] = [client(), `race-${run}`];
  await docket.orders.create({ order_id: id, customer_id: 'ada', items: [pen] });
  const others = [1, 2, 3].map(() => Object.assign(client(), { position: docket.position }));
  await Promise.all(others.map((other) => other.orders.update(id, ({ lines, version }) =>
    other.orders.changeItem(id, pen.sku, lines[0].quantity + 1, { ifMatch: version }), 20)));
  docket.position = Math.max(...others.map(({ position }) => position));
  const order = await docket.orders.get(id);
  assert.equal(order.lines[0].quantity, 4);
  await assert.rejects(docket.orders.confirm(id, { ifMatch: 1 }), VersionMismatch);
});

test('the log and reports are read', { skip }, async () => {
  const [docket, id] = [client(), `log-${run}`];
  const { order_id, position } = await docket.orders.create({ order_id: id, customer_id: 'ada', items: [pen] });
  await docket.orders.confirm(order_id);
  const types = [];
  for await (const event of docket.events(position - 2)) types.push(event.type);
  assert.deepEqual(types.slice(0, 3), ['OrderCreated', 'ItemAdded', 'OrderConfirmed']);
  assert.ok((await docket.sales({ by: 'day' })).length > 0);
  assert.ok((await docket.topProducts({ by: 'quantity' })).some(({ sku }) => sku === pen.sku));
  assert.ok((await docket.customer('ada')).confirmed > 0);
  assert.ok((await docket.projections()).head >= position);
});

test('every problem type of the server is a class', { skip }, async () => {
  const answer = await fetch(`${url}/problems`, { headers: { accept: 'application/json' } });
  const slugs = (await answer.json()).items.map(({ type }) => type.split('/').at(-1));
  const unknown = slugs.filter((slug) => problemFrom({ type: `/problems/${slug}`, title: slug, status: 400 }).constructor === Problem);
  assert.deepEqual(unknown, [], 'Add a class to src/problems.ts for each, and to clients/python.');
});
