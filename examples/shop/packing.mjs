// A service that reacts to confirmed orders: it writes a packing list for each order, once, whatever crashes.
// Variables: DOCKET_URL and DOCKET_TOKEN (role admin), NATS_URL (nats://127.0.0.1:4222), NATS_STREAM (docket),
// PACKED: folder of the lists (./packed).
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Docket } from '@docket/client';
import { AckPolicy, DeliverPolicy, jetstream, jetstreamManager } from '@nats-io/jetstream';
import { connect, nanos } from '@nats-io/transport-node';

const docket = new Docket();
const stream = process.env.NATS_STREAM ?? 'docket';
const folder = process.env.PACKED ?? 'packed';
const progress = join(folder, '.progress');
mkdirSync(folder, { recursive: true });

/** The log's incarnation. A log that was restored from a backup has another one, and uses positions again. */
let log;

/** Writes a file completely or not at all. */
function write(path, text) {
  writeFileSync(`${path}.part`, text, { flush: true });
  renameSync(`${path}.part`, path);
}

/** Packs an order. JetStream delivers at least once, so this does nothing when the list exists. */
async function pack(orderId, position) {
  const path = join(folder, `${encodeURIComponent(orderId)}.json`);
  if (!existsSync(path)) {
    // Waits until the read model contains the event.
    const { lines } = await docket.orders.get(orderId, { minPosition: position });
    write(path, JSON.stringify({ order_id: orderId, lines: lines.map(({ sku, quantity }) => ({ sku, quantity })) }));
    console.log(`packed ${orderId}`);
  }
  // Everything up to this position is done: messages arrive one after the other, in the order of the log.
  write(progress, JSON.stringify({ position, log }));
}

// This client takes user and password as options, not in the URL.
const { username, password, hostname, port } = new URL(process.env.NATS_URL ?? 'nats://127.0.0.1:4222');
const login = username ? { user: decodeURIComponent(username), pass: decodeURIComponent(password) } : {};
const nats = await connect({ servers: `${hostname}:${port || 4222}`, name: 'packing', maxReconnectAttempts: -1, ...login });
const manager = await jetstreamManager(nats);
let messages;
let stopping = false;
for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, () => {
    stopping = true;
    messages?.close();
  });
}

/** Packs what the stream no longer has, then every new order, until the stream or the consumer is gone. */
async function follow() {
  // Found again by its name after a restart.
  await manager.consumers.add(stream, {
    durable_name: 'packing',
    filter_subject: `${stream}.events.order.OrderConfirmed`,
    deliver_policy: DeliverPolicy.All,
    ack_policy: AckPolicy.Explicit,
    // NATS sends a message again that was not acknowledged within this time, because the service crashed.
    ack_wait: nanos(5_000),
    // One at a time, in order.
    max_ack_pending: 1,
  });

  // The stream has a limit of size, and NATS can lose it. The log has everything. The sequence of a message is the
  // position of its event in the log, so the service knows what it missed.
  const { config, state } = await manager.streams.info(stream);
  log = config.metadata.docket_incarnation;
  const last = existsSync(progress) ? JSON.parse(readFileSync(progress, 'utf8')) : { position: 0, log };
  const done = last.log === log ? last.position : 0;
  const kept = state.first_seq;
  if (kept > done + 1) {
    for await (const event of docket.events(done)) {
      if (event.position >= kept) break;
      if (event.aggregate_type === 'order' && event.type === 'OrderConfirmed') await pack(event.aggregate_id, event.position);
    }
  }

  const consumer = await jetstream(nats).consumers.get(stream, 'packing');
  messages = await consumer.consume({ max_messages: 1, abort_on_missing_resource: true });
  if (stopping) return;
  console.log('waiting for orders');
  for await (const message of messages) {
    try {
      await pack(message.json().aggregate_id, message.seq);
      message.ack();
    } catch (error) {
      console.error(`Could not pack the order of event ${message.seq}; trying again.`, error);
      message.nak(1_000);
    }
  }
}

while (!stopping) {
  await follow().catch((error) => console.error('Lost the stream; trying again.', error.message));
  if (!stopping) await sleep(1_000);
}
await nats.drain();
