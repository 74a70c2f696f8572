/** The client. */
import createApi, { type Client } from 'openapi-fetch';
import { bulk, lines, type BulkRequestOptions, type BulkResult } from './bulk.js';
import type { paths } from './generated/openapi.js';
import type {
  Accepted, BulkCommand, Change, Customer, HistoryEvent, LogEvent, NewItem, NewOrder, Order, OrderFilter, OrderSummary,
  Product, Projections, Sale, SalesQuery, TopQuery,
} from './models.js';
import { DocketError, VersionMismatch } from './problems.js';
import { pause, Transport, type RequestOptions, type TokenProvider, type TransportOptions } from './transport.js';
import { Watcher, type Update, type WatchOptions } from './watch.js';

export interface DocketOptions extends Omit<TransportOptions, 'token'> {
  /** Address of the server: `http://127.0.0.1:8080`. Default: the environment variable `DOCKET_URL`. */
  url?: string;
  /**
   * A token, or a function that returns one. The function is called again before the token expires, and when it is
   * refused. Default: the environment variable `DOCKET_TOKEN`.
   */
  token?: string | TokenProvider;
  /** Milliseconds for which a query waits until the read model contains this client's commands. Default: 5,000. */
  waitMs?: number;
  /** Replaces the global `WebSocket`. Default in Node 20: the package `ws`. */
  webSocket?: unknown;
}

export interface CommandOptions extends RequestOptions {
  /** Refuses the command with `VersionMismatch` unless the order has this version. */
  ifMatch?: number;
  /** 1 to 255 printable ASCII characters. Default: a new UUID for each call. */
  idempotencyKey?: string;
}

export interface QueryOptions extends RequestOptions {
  /** Position that the read model must have reached. Default: that of this client's last command; 0: none. */
  minPosition?: number;
}

export interface GetOrderOptions extends QueryOptions {
  /** Version or RFC 3339 time of the state to return. */
  asOf?: number | string;
}

const NDJSON = 'application/x-ndjson';

type Parameters = Record<string, string | number | boolean | null | undefined>;

/** A client of one server, for one user. It is cheap to keep, and safe to use for many requests at once. */
export class Docket {
  /** Position of the last command of this client. Queries wait for it. Set it to 0 after a log was restored. */
  position = 0;
  /** Commands and queries of orders. */
  readonly orders: Orders;
  /** Every operation of the API, typed by its path. Tokens, time-outs and retries work as everywhere. */
  readonly api: Client<paths>;
  readonly #transport: Transport;
  readonly #watcher: Watcher;
  readonly #url: URL;
  readonly #waitMs: number;

  constructor(options: DocketOptions = {}) {
    const url = options.url ?? variable('DOCKET_URL', 'url');
    this.#url = new URL(url.endsWith('/') ? url : `${url}/`);
    this.#waitMs = options.waitMs ?? 5000;
    this.#transport = new Transport({ ...options, token: options.token ?? variable('DOCKET_TOKEN', 'token') });
    this.#watcher = new Watcher(this.#transport, this.#at('ws').href.replace(/^http/, 'ws'), options.webSocket);
    this.orders = new Orders(this);
    this.api = createApi<paths>({
      baseUrl: this.#url.href.slice(0, -1),
      fetch: (request) => this.#transport.send(request),
    });
  }

  /** Sends a query, and returns its answer. `path` begins after the server's address: `v1/orders`. */
  async query<Answer>(path: string, parameters: Parameters = {}, options: QueryOptions = {}): Promise<Answer> {
    const answer = await this.#query(path, parameters, options);
    return (await answer.json()) as Answer;
  }

  async #query(path: string, parameters: Parameters, options: QueryOptions, stream = false): Promise<Response> {
    const url = this.#at(path);
    const min = options.minPosition ?? this.position;
    const wait = min > 0 ? { min_position: min, wait_ms: this.#waitMs } : {};
    for (const [name, value] of Object.entries({ ...parameters, ...wait })) {
      if (value != null) url.searchParams.set(name, String(value));
    }
    return this.#transport.send(new Request(url, { headers: { accept: stream ? NDJSON : 'application/json' } }), options, { stream });
  }

  /** Sends a command, and returns its answer. Retries repeat the request with the same idempotency key. */
  async command(method: string, path: string, body?: unknown, options: CommandOptions = {}): Promise<Accepted> {
    const headers = new Headers({ 'idempotency-key': options.idempotencyKey ?? crypto.randomUUID() });
    if (options.ifMatch !== undefined) headers.set('if-match', `"${options.ifMatch}"`);
    const init: RequestInit = { method, headers };
    if (body !== undefined) {
      headers.set('content-type', 'application/json');
      init.body = JSON.stringify(body);
    }
    const answer = await this.#transport.send(new Request(this.#at(path), init), options);
    const accepted = (await answer.json()) as Accepted;
    this.#saw(accepted.position);
    return accepted;
  }

  /** Sends many commands in order, and yields a result for each. Refused commands do not stop the others. */
  async *bulk(
    commands: Iterable<BulkCommand> | AsyncIterable<BulkCommand>,
    options: BulkRequestOptions = {},
  ): AsyncGenerator<BulkResult, void, undefined> {
    for await (const result of bulk(this.#transport, this.#at('v1/commands'), commands, options)) {
      this.#saw(result.accepted?.position ?? 0);
      yield result;
    }
  }

  /** Yields the snapshot of a channel, then each change once and in order, across reconnects. See docs/push.md. */
  watch<View = unknown, Data = Change>(channel: string, options?: WatchOptions): AsyncGenerator<Update<View, Data>, void, undefined> {
    return this.#watcher.watch<View, Data>(channel, options);
  }

  /** Returns a customer's figures. */
  customer(id: string, options?: QueryOptions): Promise<Customer> {
    return this.query(`v1/customers/${encodeURIComponent(id)}`, {}, options);
  }

  /** Returns the sales by day, category or store. For staff. */
  sales(query: SalesQuery, options?: QueryOptions): Promise<Sale[]> {
    return this.query('v1/reports/sales', query, options);
  }

  /** Returns the best sellers. For staff. */
  topProducts(query: TopQuery, options?: QueryOptions): Promise<Product[]> {
    return this.query('v1/products/top', query, options);
  }

  /** Yields the events of the log after a position. For admins. */
  async *events(after = 0, options: QueryOptions = {}): AsyncGenerator<LogEvent, void, undefined> {
    for (let last = after; ; ) {
      const answer = await this.#query('v1/events', { after: last, limit: 1000 }, options, true);
      let count = 0;
      for await (const line of lines(answer)) {
        const event = JSON.parse(line) as LogEvent;
        [last, count] = [event.position, count + 1];
        yield event;
      }
      if (count === 0) return;
    }
  }

  /** Returns the status of every read model. For admins. */
  projections(options: QueryOptions = {}): Promise<Projections> {
    return this.query('v1/projections', {}, { ...options, minPosition: 0 });
  }

  /** Ends all live updates of this client. */
  close(): void {
    this.#watcher.close();
  }

  #at(path: string): URL {
    return new URL(path, this.#url);
  }

  #saw(position: number): void {
    this.position = Math.max(this.position, position);
  }
}

/** Commands and queries of orders. */
export class Orders {
  constructor(private readonly docket: Docket) {}

  /** Creates an order. The server generates an id if there is none. */
  create(order: NewOrder, options?: CommandOptions): Promise<Accepted> {
    return this.docket.command('POST', 'v1/orders', order, options);
  }

  /** Adds an item to a draft. The quantity of the same SKU at the same price adds up. */
  addItem(id: string, item: NewItem, options?: CommandOptions): Promise<Accepted> {
    return this.docket.command('POST', `${path(id)}/items`, item, options);
  }

  /** Sets the quantity of a line. */
  changeItem(id: string, sku: string, quantity: number, options?: CommandOptions): Promise<Accepted> {
    return this.docket.command('PUT', `${path(id)}/items/${encodeURIComponent(sku)}`, { quantity }, options);
  }

  /** Removes a line. */
  removeItem(id: string, sku: string, options?: CommandOptions): Promise<Accepted> {
    return this.docket.command('DELETE', `${path(id)}/items/${encodeURIComponent(sku)}`, undefined, options);
  }

  /** Confirms a draft. */
  confirm(id: string, options?: CommandOptions): Promise<Accepted> {
    return this.docket.command('POST', `${path(id)}/confirm`, undefined, options);
  }

  /** Cancels an order. `reason` has 1 to 500 characters. */
  cancel(id: string, reason: string, options?: CommandOptions): Promise<Accepted> {
    return this.docket.command('POST', `${path(id)}/cancel`, { reason }, options);
  }

  /** Returns an order with its lines. Its `version` is the value for `ifMatch`. */
  get(id: string, options: GetOrderOptions = {}): Promise<Order> {
    return this.docket.query(path(id), { as_of: options.asOf }, options);
  }

  /** Yields the orders that match a filter, page by page. */
  async *list(filter: OrderFilter = {}, options?: QueryOptions): AsyncGenerator<OrderSummary, void, undefined> {
    for (let cursor: string | null | undefined; cursor !== null; ) {
      type Page = { items: OrderSummary[]; next_cursor?: string | null };
      const page: Page = await this.docket.query('v1/orders', { ...filter, cursor }, options);
      yield* page.items;
      cursor = page.next_cursor ?? null;
    }
  }

  /** Yields the events of an order, page by page. */
  async *history(id: string, options?: QueryOptions): AsyncGenerator<HistoryEvent, void, undefined> {
    for (let after: number | null = 0; after !== null; ) {
      type Page = { items: HistoryEvent[]; next_after?: number | null };
      const page: Page = await this.docket.query(`${path(id)}/events`, { after }, options);
      yield* page.items;
      after = page.next_after ?? null;
    }
  }

  /** Yields the order, then the order after each change, with the change. See `Docket.watch`. */
  async *watch(id: string, options?: WatchOptions): AsyncGenerator<OrderUpdate, void, undefined> {
    for await (const update of this.docket.watch<Order>(`order:${id}`, options)) {
      const { position, epoch } = update;
      if (update.kind === 'snapshot') yield { order: update.view, position, epoch };
      else yield { order: update.data.view, change: update.data, position, epoch };
    }
  }

  /** Reads an order, decides, and sends commands with `ifMatch`; repeats all of it when another client was faster. */
  async update<Result>(id: string, decide: (order: Order) => Promise<Result>, tries = 5): Promise<Result> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await decide(await this.get(id));
      } catch (error) {
        if (!(error instanceof VersionMismatch) || attempt >= tries) throw error;
        // The read model may not contain the other client's change yet.
        await pause(50 * attempt * (0.5 + Math.random()), []);
      }
    }
  }
}

/** The order at a place of its channel. */
export interface OrderUpdate {
  order: Order;
  /** The change that led to it; absent for the first update, and after a gap that could not be replayed. */
  change?: Change;
  position: number;
  epoch: string;
}

/** Returns an environment variable. Browsers have none. */
function variable(name: string, option: string): string {
  const value = typeof process === 'undefined' ? undefined : process.env?.[name];
  if (!value) throw new DocketError(`Set the option ${option}, or the environment variable ${name}.`);
  return value;
}

function path(id: string): string {
  return `v1/orders/${encodeURIComponent(id)}`;
}
