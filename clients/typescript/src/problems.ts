/** Errors of the client: a class for each problem type of the API, and one for each way in which no answer arrives. */

/** A value of the request's body that the server refused. */
export interface FieldError {
  /** JSON pointer (RFC 6901) into the body. */
  pointer: string;
  message: string;
}

/** The body of an answer of type `application/problem+json` (RFC 9457). */
export interface ProblemBody {
  type: string;
  title: string;
  status: number;
  detail?: string | null;
  request_id?: string | null;
  errors?: FieldError[];
  [member: string]: unknown;
}

/** Every error of this client is one. */
export class DocketError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** No complete answer arrived, and the retries are used up. A command may have taken effect. */
export class NoAnswer extends DocketError {
  constructor(
    message: string,
    /** The key of the command. Send it again with this key to learn its outcome. */
    readonly idempotencyKey: string | undefined,
    cause: unknown,
  ) {
    super(message, { cause });
  }
}

/** The server refused the request. */
export class Problem extends DocketError {
  /** Last part of the problem's type, such as `order-not-found`. */
  readonly slug: string;
  readonly status: number;
  readonly title: string;
  readonly detail: string;
  /** Finds the request in the server's log. */
  readonly requestId: string | undefined;
  /** The refused values of the body. */
  readonly errors: FieldError[];

  constructor(
    /** The body of the answer, with the members that this problem type adds. */
    readonly body: ProblemBody,
    /** Seconds after which the server expects a retry to succeed. */
    readonly retryAfterSeconds?: number,
  ) {
    const fields = (body.errors ?? []).map(({ pointer, message }) => `${pointer || '/'}: ${message}`);
    super([body.detail ?? body.title, ...fields].join(' '));
    this.slug = slugOf(body.type);
    this.status = body.status;
    this.title = body.title;
    this.detail = body.detail ?? '';
    this.requestId = body.request_id ?? undefined;
    this.errors = body.errors ?? [];
  }
}

/** The class of a problem type. Its slug is a literal type, so `instanceof` tells classes apart. */
export interface ProblemClass<Slug extends string = string> {
  new (body: ProblemBody, retryAfterSeconds?: number): Problem & { readonly slug: Slug };
  readonly slug: Slug;
}

/** Returns the base of the class for a problem type. */
function ofType<Slug extends string>(slug: Slug): ProblemClass<Slug> {
  return class extends Problem {
    static readonly slug: Slug = slug;
    declare readonly slug: Slug;
  };
}

// Orders.
export class OrderNotFound extends ofType('order-not-found') {}
export class OrderExists extends ofType('order-exists') {}
export class OrderNotDraft extends ofType('order-not-draft') {}
export class OrderEmpty extends ofType('order-empty') {}
export class ItemNotFound extends ofType('item-not-found') {}
export class ItemsRejected extends ofType('items-rejected') {}
export class PriceMismatch extends ofType('price-mismatch') {}
export class QuantityTooLarge extends ofType('quantity-too-large') {}
export class TooManyLines extends ofType('too-many-lines') {}
export class TotalTooLarge extends ofType('total-too-large') {}
export class InvalidAmount extends ofType('invalid-amount') {}
// Requests.
export class NotFound extends ofType('not-found') {}
export class InvalidBody extends ofType('invalid-body') {}
export class InvalidId extends ofType('invalid-id') {}
export class InvalidQuery extends ofType('invalid-query') {
  /** Name of the parameter that was refused. */
  get parameter(): string | undefined {
    return text(this.body.parameter);
  }
}
export class BodyTooLarge extends ofType('body-too-large') {}
export class TooMuchAtOnce extends ofType('too-much-at-once') {}
/** `ifMatch` was not the order's version: read it again and decide again. */
export class VersionMismatch extends ofType('version-mismatch') {}
/** The idempotency key belongs to another request. */
export class IdempotencyKeyReused extends ofType('idempotency-key-reused') {}
/** The first request with this idempotency key has not ended. The client retries this by itself. */
export class RequestInFlight extends ofType('request-in-flight') {}
export class CustomerNotFound extends ofType('customer-not-found') {}
export class ChannelNotFound extends ofType('channel-not-found') {}
export class VersionNotFound extends ofType('version-not-found') {}
// Access.
export class AuthenticationRequired extends ofType('authentication-required') {}
export class TokenExpired extends ofType('token-expired') {}
export class TokenRevoked extends ofType('token-revoked') {}
export class Forbidden extends ofType('forbidden') {}
export class BanNotFound extends ofType('ban-not-found') {}
export class CustomerBanned extends ofType('customer-banned') {}
export class InvalidBan extends ofType('invalid-ban') {}
export class SubjectBanned extends ofType('subject-banned') {}
export class InvalidTicket extends ofType('invalid-ticket') {}
export class InvalidToken extends ofType('invalid-token') {}
export class UnknownKey extends ofType('unknown-key') {}
// Conditions that pass. The client retries these by itself before it throws them.
export class RateLimited extends ofType('rate-limited') {}
export class Overloaded extends ofType('overloaded') {}
export class OrderBusy extends ofType('order-busy') {}
export class StoreUnavailable extends ofType('store-unavailable') {}
export class DiskLow extends ofType('disk-low') {}
export class Stopping extends ofType('stopping') {}
/** The read model has not reached the position that the query waits for. */
export class ProjectionBehind extends ofType('projection-behind') {
  /** Position of the read model. */
  get position(): number | undefined {
    return number(this.body.position);
  }
  /** Position that the query waited for. */
  get minPosition(): number | undefined {
    return number(this.body.min_position);
  }
}
// The rest: faults of a program or of a proxy, and limits.
export class BadRequest extends ofType('bad-request') {}
export class BodyLimit extends ofType('body-limit') {}
export class BulkLimit extends ofType('bulk-limit') {}
export class ConnectionLimit extends ofType('connection-limit') {}
export class DeadlineNotEnded extends ofType('deadline-not-ended') {}
export class DuplicateHeader extends ofType('duplicate-header') {}
export class HeadersTooLarge extends ofType('headers-too-large') {}
export class InternalError extends ofType('internal-error') {}
export class InvalidHost extends ofType('invalid-host') {}
export class InvalidIdempotencyKey extends ofType('invalid-idempotency-key') {}
export class InvalidIfMatch extends ofType('invalid-if-match') {}
export class InvalidLogLevel extends ofType('invalid-log-level') {}
export class InvalidRevocation extends ofType('invalid-revocation') {}
export class JsonOnly extends ofType('json-only') {}
export class LineTooLong extends ofType('line-too-long') {}
export class MalformedJson extends ofType('malformed-json') {}
export class MethodNotAllowed extends ofType('method-not-allowed') {}
export class NotAWebsocket extends ofType('not-a-websocket') {}
export class OriginNotAllowed extends ofType('origin-not-allowed') {}
export class RequestTimeout extends ofType('request-timeout') {}
export class ResultsUnread extends ofType('results-unread') {}
export class TooManyBodies extends ofType('too-many-bodies') {}
export class TooManyBulkRequests extends ofType('too-many-bulk-requests') {}
export class TooManyConnections extends ofType('too-many-connections') {}
export class UnreadableBody extends ofType('unreadable-body') {}
export class UnstorableValue extends ofType('unstorable-value') {}
export class UnsupportedContentEncoding extends ofType('unsupported-content-encoding') {}
export class UnsupportedMediaType extends ofType('unsupported-media-type') {}
export class UnusableHeader extends ofType('unusable-header') {}
/** The body expands to many times its compressed size. */
export class BodyExpandsTooMuch extends ofType('body-expands-too-much') {}
/** The body is not in the coding that Content-Encoding names. */
export class UndecodableBody extends ofType('undecodable-body') {}
/** The body was compressed with too large a window. */
export class WindowTooLarge extends ofType('window-too-large') {}
/** The stored order differs from the imported one. */
export class OrderDiffers extends ofType('order-differs') {}

const CLASSES = new Map<string, ProblemClass>(
  [
    BodyExpandsTooMuch, UndecodableBody, WindowTooLarge, OrderDiffers,
    BanNotFound, CustomerBanned, InvalidBan, SubjectBanned,
    OrderNotFound, OrderExists, OrderNotDraft, OrderEmpty, ItemNotFound, ItemsRejected, PriceMismatch,
    QuantityTooLarge, TooManyLines, TotalTooLarge, InvalidAmount, NotFound, InvalidBody, InvalidId, InvalidQuery,
    BodyTooLarge, TooMuchAtOnce, VersionMismatch, IdempotencyKeyReused, RequestInFlight, CustomerNotFound,
    ChannelNotFound, VersionNotFound, AuthenticationRequired, TokenExpired, TokenRevoked, Forbidden, InvalidTicket,
    InvalidToken, UnknownKey, RateLimited, Overloaded, OrderBusy, StoreUnavailable, DiskLow, Stopping,
    ProjectionBehind, BadRequest, BodyLimit, BulkLimit, ConnectionLimit, DeadlineNotEnded, DuplicateHeader, HeadersTooLarge,
    InternalError, InvalidHost, InvalidIdempotencyKey, InvalidIfMatch, InvalidLogLevel, InvalidRevocation, JsonOnly,
    LineTooLong, MalformedJson, MethodNotAllowed, NotAWebsocket, OriginNotAllowed, RequestTimeout, ResultsUnread,
    TooManyBodies, TooManyBulkRequests, TooManyConnections, UnreadableBody, UnstorableValue,
    UnsupportedContentEncoding, UnsupportedMediaType, UnusableHeader,
  ].map((Type) => [Type.slug, Type]),
);

/** Creates the error for a problem. A type that this client does not know becomes a plain `Problem`. */
export function problemFrom(body: ProblemBody, retryAfterSeconds?: number): Problem {
  const Type = CLASSES.get(slugOf(body.type)) ?? Problem;
  return new Type(body, retryAfterSeconds);
}

/** Reads the problem of a refused answer. Proxies answer in other forms. */
export async function problemOf(answer: Response): Promise<Problem> {
  const other: ProblemBody = { type: 'about:blank', title: `HTTP status ${answer.status}`, status: answer.status };
  const content = await answer.text().catch(() => '');
  let body = other;
  if (/json/.test(answer.headers.get('content-type') ?? '')) {
    try {
      const parsed: unknown = JSON.parse(content);
      if (typeof (parsed as ProblemBody | null)?.type === 'string') body = { ...other, ...(parsed as ProblemBody) };
    } catch {
      // The status says enough.
    }
  }
  return problemFrom(body, retryAfter(answer));
}

/** Returns the seconds of `Retry-After`, which is a number of seconds or a date. */
export function retryAfter(answer: Response): number | undefined {
  const value = answer.headers.get('retry-after');
  if (value === null) return undefined;
  if (/^\d+$/.test(value)) return Number(value);
  const seconds = (Date.parse(value) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? undefined : Math.max(0, seconds);
}

function slugOf(type: string): string {
  return type.slice(type.lastIndexOf('/') + 1);
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function number(value: unknown): number | undefined {
  return typeof value === 'number' ? value : undefined;
}
