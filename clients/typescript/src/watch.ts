/** Live updates over the stock `centrifuge` client, which reconnects and resumes. */
import { Centrifuge, UnauthorizedError, type Subscription } from 'centrifuge';
import { DocketError } from './problems.js';
import type { Transport } from './transport.js';

/** A place in a channel, from which `watch` can continue in another process. */
export interface Place {
  position: number;
  /** The log's incarnation; it changes when a log is restored from a backup. */
  epoch: string;
}

/** The state of a channel at a position. It replaces everything before it. */
export interface Snapshot<View> extends Place {
  kind: 'snapshot';
  view: View;
}

/** A change on a channel. */
export interface Publication<Data> extends Place {
  kind: 'change';
  data: Data;
}

export type Update<View, Data> = Snapshot<View> | Publication<Data>;

export interface WatchOptions {
  /** Ends the iteration. */
  signal?: AbortSignal;
  /** Continues after this place instead of beginning with a snapshot. */
  since?: Place;
}

/** The server ended the subscription, and a new one would end in the same way. */
export class WatchEnded extends DocketError {
  constructor(
    readonly channel: string,
    /** Error or close code of docs/push.md: 103 is "permission denied", also for an order that does not exist. */
    readonly code: number,
    readonly reason: string,
  ) {
    super(`The server ended the updates of ${channel}: ${reason} (${code}).`);
  }
}

/** The updates were read too slowly. Watch again, with `since`. */
export class WatchOverflow extends DocketError {}

/** Updates that may wait for the loop that reads them. */
const WAITING_MAX = 10_000;

/** Sockets of one client. A socket carries many channels, but each channel once. */
export class Watcher {
  readonly #sockets = new Set<Centrifuge>();

  constructor(
    private readonly transport: Transport,
    private readonly url: string,
    private readonly webSocket: unknown,
  ) {}

  /** Yields a snapshot, then each change once and in order, until the signal is aborted or the loop is left. */
  async *watch<View, Data>(channel: string, options: WatchOptions = {}): AsyncGenerator<Update<View, Data>, void, undefined> {
    if (options.signal?.aborted) return;
    const websocket = this.webSocket ?? globalThis.WebSocket ?? (await nodeWebSocket());
    const socket = this.#socketWithout(channel, websocket);
    const since = options.since && { offset: options.since.position, epoch: options.since.epoch };
    const subscription = socket.newSubscription(channel, since ? { since } : {});
    const waiting: Update<View, Data>[] = [];
    let end: { error?: Error } | undefined;
    let wake = () => {};
    const finish = (error?: Error) => {
      end ??= error ? { error } : {};
      wake();
    };
    const push = (update: Update<View, Data>) => {
      if (waiting.length >= WAITING_MAX) finish(new WatchOverflow(`${WAITING_MAX} updates of ${channel} wait to be read.`));
      else if (end === undefined) waiting.push(update);
      wake();
    };
    let epoch = options.since?.epoch ?? '';
    subscription.on('subscribed', ({ data, recovered, streamPosition }) => {
      epoch = streamPosition?.epoch ?? epoch;
      if (!recovered && data) push({ kind: 'snapshot', view: data.view ?? data.items ?? null, position: data.position, epoch });
    });
    subscription.on('publication', ({ data, offset }) =>
      push({ kind: 'change', data, position: offset ?? data.position, epoch }));
    subscription.on('unsubscribed', ({ code, reason }) => finish(code === 0 ? undefined : new WatchEnded(channel, code, reason)));
    const disconnected = ({ code, reason }: { code: number; reason: string }) => finish(new WatchEnded(channel, code, reason));
    socket.on('disconnected', disconnected);
    const abort = () => finish();
    options.signal?.addEventListener('abort', abort, { once: true });
    subscription.subscribe();
    socket.connect();
    try {
      for (;;) {
        while (waiting.length > 0 && !options.signal?.aborted) yield waiting.shift()!;
        if (end?.error) throw end.error;
        if (end) return;
        await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      options.signal?.removeEventListener('abort', abort);
      socket.removeListener('disconnected', disconnected);
      this.#remove(socket, subscription);
    }
  }

  #socketWithout(channel: string, websocket: unknown): Centrifuge {
    for (const socket of this.#sockets) {
      if (socket.getSubscription(channel) === null) return socket;
    }
    let last: string | undefined;
    // The socket asks for its first token, and for another one when the server refuses it or shortly before it expires.
    const getToken = async () => {
      if (last !== undefined && !this.transport.canRefresh) throw new UnauthorizedError('The token has expired.');
      last = await this.transport.token(last);
      return last;
    };
    const socket = new Centrifuge(this.url, { getToken, websocket, minReconnectDelay: 200, maxReconnectDelay: 10_000 });
    this.#sockets.add(socket);
    return socket;
  }

  #remove(socket: Centrifuge, subscription: Subscription) {
    socket.removeSubscription(subscription);
    if (Object.keys(socket.subscriptions()).length > 0) return;
    this.#sockets.delete(socket);
    socket.disconnect();
  }

  /** Closes every socket. Running iterations end. */
  close() {
    for (const socket of this.#sockets) {
      for (const subscription of Object.values(socket.subscriptions())) subscription.unsubscribe();
      socket.disconnect();
    }
    this.#sockets.clear();
  }
}

/** Node 20 has no global WebSocket: the package `ws` provides one. */
async function nodeWebSocket(): Promise<unknown> {
  try {
    return (await import('ws')).default;
  } catch (cause) {
    throw new DocketError('This JavaScript runtime has no WebSocket. Install the package ws, or set the option webSocket.', { cause });
  }
}
