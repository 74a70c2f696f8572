/** Sends requests: tokens, time-outs, and retries of what is safe to repeat. */
import { NoAnswer, problemOf } from './problems.js';

/** Returns a token. `refused` is the token that the server no longer accepts, if there is one. */
export type TokenProvider = (refused?: string) => string | Promise<string>;

export interface TransportOptions {
  /** A token, or a function that returns one. The function is called again before the token expires. */
  token: string | TokenProvider;
  /** Retries of a request after the first try, 0 for none. Default: 4. */
  retries?: number;
  /** Milliseconds for one try; with streamed answers, until the answer begins. Default: 30,000. */
  timeoutMs?: number;
  /** Replaces the global `fetch`. */
  fetch?: typeof fetch;
}

export interface RequestOptions {
  /** Ends the request and its retries. */
  signal?: AbortSignal;
  /** Milliseconds for one try, in place of the client's. */
  timeoutMs?: number;
}

/** A try is repeated after these answers, if a repetition has no second effect. */
const RETRIED = new Set([408, 425, 429, 500, 502, 503, 504]);
const DELAY_MS = 200;
const DELAY_MS_MAX = 10_000;
/** A longer `Retry-After` is an outage: the error goes to the caller at once. */
const RETRY_AFTER_MS_MAX = 60_000;
/** A token is replaced this long before it expires. */
const REFRESH_SECONDS = 30;

/** How a request may be repeated, and how its answer is read. */
interface Policy {
  /** Returns the answer as soon as its headers have arrived. Default: the whole answer is read within the time of a try. */
  stream?: boolean;
  /** Repeats a request without an idempotency key after answers that say that nothing was done (429 and 503). */
  repeatRefused?: boolean;
}

export class Transport {
  readonly #options: TransportOptions;
  readonly #fetch: typeof fetch;
  #current: { token: string; refreshAt: number } | undefined;
  #pending: Promise<string> | undefined;

  constructor(options: TransportOptions) {
    this.#options = options;
    this.#fetch = options.fetch ?? ((...parts) => globalThis.fetch(...parts));
  }

  /** Whether a refused token can be replaced. */
  get canRefresh(): boolean {
    return typeof this.#options.token !== 'string';
  }

  /** Returns a token that has not expired. Callers at the same time share one call of the provider. */
  async token(refused?: string): Promise<string> {
    const provider = this.#options.token;
    if (typeof provider === 'string') return provider;
    const current = this.#current;
    if (current && current.token !== refused && Date.now() / 1000 < current.refreshAt) return current.token;
    this.#pending ??= Promise.resolve(provider(refused))
      .then((token) => {
        this.#current = { token, refreshAt: expiry(token) - REFRESH_SECONDS };
        return token;
      })
      .finally(() => (this.#pending = undefined));
    return this.#pending;
  }

  /**
   * Sends a request until it is answered, and returns the answer with a status below 400.
   *
   * A request is repeated when it has no effect (GET) or an `Idempotency-Key`; each try sends the same key, so the
   * server executes the command once. A refused token is replaced once.
   *
   * @throws Problem if the server refuses, NoAnswer if no answer arrives, the signal's reason if it is aborted.
   */
  async send(request: Request, options: RequestOptions = {}, policy: Policy = {}): Promise<Response> {
    const key = request.headers.get('idempotency-key') ?? undefined;
    const repeatable = ['GET', 'HEAD'].includes(request.method) || key !== undefined;
    const retries = this.#options.retries ?? 4;
    const signals = [request.signal, ...(options.signal ? [options.signal] : [])];
    let refused: string | undefined;
    for (let attempt = 0; ; ) {
      for (const signal of signals) signal.throwIfAborted();
      const token = await this.token(refused);
      let delayMs = Math.min(DELAY_MS_MAX, DELAY_MS * 2 ** attempt) * (0.5 + Math.random() / 2);
      const limit = new AbortController();
      const timeoutMs = options.timeoutMs ?? this.#options.timeoutMs ?? 30_000;
      const timer = setTimeout(() => limit.abort(new DOMException('The time is over.', 'TimeoutError')), timeoutMs);
      try {
        const headers = new Headers(request.headers);
        headers.set('authorization', `Bearer ${token}`);
        const signal = AbortSignal.any([...signals, limit.signal]);
        const answer = await this.#fetch(new Request(request.clone(), { headers, signal }));
        if (answer.status < 400) return policy.stream ? answer : await whole(answer);
        const problem = await problemOf(answer);
        if (answer.status === 401 && refused === undefined && this.canRefresh) {
          refused = token;
          continue;
        }
        const again = repeatable
          ? RETRIED.has(answer.status) || problem.slug === 'request-in-flight'
          : policy.repeatRefused && [429, 503].includes(answer.status);
        delayMs = Math.max(delayMs, (problem.retryAfterSeconds ?? 0) * 1000);
        if (!again || attempt >= retries || delayMs > RETRY_AFTER_MS_MAX) throw problem;
      } catch (error) {
        if (signals.some((signal) => signal.aborted) || !isLost(error)) throw error;
        const why = limit.signal.aborted ? `No answer arrived within ${timeoutMs} ms` : 'The connection failed';
        const message = `${why}: ${request.method} ${new URL(request.url).pathname}.`;
        if (!repeatable || attempt >= retries) throw new NoAnswer(message, key, error);
      } finally {
        clearTimeout(timer);
      }
      attempt += 1;
      await pause(delayMs, signals);
    }
  }
}

/** Reads the whole answer, so that a connection that fails meanwhile counts as a failed try. */
async function whole(answer: Response): Promise<Response> {
  const body = await answer.arrayBuffer();
  const { status, statusText, headers } = answer;
  return new Response([204, 205, 304].includes(status) ? null : body, { status, statusText, headers });
}

/** `fetch` throws these two when the connection fails or the time is over. */
function isLost(error: unknown): boolean {
  return error instanceof TypeError || (error instanceof DOMException && ['TimeoutError', 'AbortError'].includes(error.name));
}

/** Returns the time of expiry of a JWT in seconds; Infinity for a token without one. */
function expiry(token: string): number {
  try {
    const payload = token.split('.')[1]!.replaceAll('-', '+').replaceAll('_', '/');
    const { exp } = JSON.parse(atob(payload)) as { exp?: unknown };
    return typeof exp === 'number' ? exp : Infinity;
  } catch {
    return Infinity;
  }
}

/** Waits for `ms`, or until a signal is aborted. */
export function pause(ms: number, signals: AbortSignal[]): Promise<void> {
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.any(signals);
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
    function done() {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    }
    if (signal.aborted) done();
  });
}
