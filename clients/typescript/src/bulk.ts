/** Many commands in one request: `POST /v1/commands`. */
import type { BulkCommand } from './models.js';
import { DocketError, Problem, problemFrom, type ProblemBody } from './problems.js';
import { pause, type RequestOptions, type Transport } from './transport.js';

/** The result of one command. */
export interface BulkResult {
  command: BulkCommand;
  /** HTTP status that the command would have as a single request. */
  status: number;
  /** Id, version and position of the order, if the command was accepted. */
  accepted?: { order_id: string; version: number; position: number };
  /** Why the command was refused. */
  problem?: Problem;
}

/** The connection failed while results were outstanding. The commands may have taken effect. */
export class BulkInterrupted extends DocketError {
  constructor(
    /** The commands without a result, in order. */
    readonly unanswered: BulkCommand[],
    cause: unknown,
  ) {
    super(`The connection failed before the results of ${unanswered.length} commands arrived.`, { cause });
  }
}

export interface BulkRequestOptions extends RequestOptions {
  /** Commands in one request. Default: 1,000. */
  batch?: number;
}

/** Last lines of an answer with these problems name the first command that the server did not read. */
const UNREAD = new Set([
  'stopping', 'request-timeout', 'results-unread', 'token-expired', 'token-revoked', 'subject-banned',
]);
const TRIES_MAX = 5;

interface LineResult {
  line: number;
  status: number;
  problem?: ProblemBody | null;
  order_id: string;
  version: number;
  position: number;
}

/** Sends commands in order, and yields a result for each. Commands that the server did not read are sent again. */
export async function* bulk(
  transport: Transport,
  url: URL,
  commands: Iterable<BulkCommand> | AsyncIterable<BulkCommand>,
  options: BulkRequestOptions = {},
): AsyncGenerator<BulkResult, void, undefined> {
  for await (const batch of batches(commands, options.batch ?? 1000)) {
    let rest = batch;
    for (let attempt = 0; rest.length > 0; attempt += 1) {
      let answered = 0;
      try {
        for await (const result of send(transport, url, rest, options)) {
          if (result.problem !== undefined && UNREAD.has(result.problem.slug)) {
            if (attempt >= TRIES_MAX) throw result.problem;
            break;
          }
          answered += 1;
          yield result;
        }
      } catch (error) {
        options.signal?.throwIfAborted();
        if (error instanceof Problem) throw error;
        throw new BulkInterrupted(rest.slice(answered), error);
      }
      if (answered > 0) attempt = 0;
      rest = rest.slice(answered);
      if (rest.length > 0) await pause(1000, options.signal ? [options.signal] : []);
    }
  }
}

async function* send(transport: Transport, url: URL, commands: BulkCommand[], options: RequestOptions) {
  const body = commands.map((command) => `${JSON.stringify(command)}\n`).join('');
  const request = new Request(url, { method: 'POST', body, headers: { 'content-type': 'application/x-ndjson' } });
  const answer = await transport.send(request, options, { stream: true, repeatRefused: true });
  let answered = 0;
  for await (const line of lines(answer)) {
    const { line: number, status, problem, order_id, version, position } = JSON.parse(line) as LineResult;
    answered += 1;
    const result: BulkResult = { command: commands[number - 1]!, status };
    if (problem) result.problem = problemFrom(problem);
    else result.accepted = { order_id, version, position };
    yield result;
    if (result.problem !== undefined && UNREAD.has(result.problem.slug)) return;
  }
  if (answered < commands.length) throw new Error('The answer ended early.');
}

async function* batches(commands: Iterable<BulkCommand> | AsyncIterable<BulkCommand>, size: number) {
  let batch: BulkCommand[] = [];
  for await (const command of commands) {
    if (batch.push(command) >= size) {
      yield batch;
      batch = [];
    }
  }
  if (batch.length > 0) yield batch;
}

/** Yields the lines of an answer as they arrive. */
export async function* lines(answer: Response): AsyncGenerator<string, void, undefined> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let text = ''; ; ) {
      const { value, done } = await reader.read();
      const parts = (text + (value ?? '')).split('\n');
      text = done ? '' : parts.pop()!;
      yield* parts.filter((part) => part !== '');
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
