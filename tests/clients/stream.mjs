// Follows channels with the stock `eventsource` client and prints a JSON line for each event.
// usage: node stream.mjs http://HOST:PORT/v1/live TOKEN[,TOKEN…] CHANNEL…
// The first token opens the stream; the others replace a token after the event `auth_expired`.
import { EventSource } from 'eventsource';

const [url, tokens, ...channels] = process.argv.slice(2);
const query = channels.map((channel) => `channel=${encodeURIComponent(channel)}`).join('&');
const fresh = tokens.split(',');
let token = fresh.shift();
const source = new EventSource(`${url}?${query}`, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }),
});
for (const kind of ['snapshot', 'pub', 'reset', 'auth_expired']) {
  source.addEventListener(kind, ({ data, lastEventId }) =>
    process.stdout.write(`${JSON.stringify({ ...JSON.parse(data), event: kind, id: lastEventId })}\n`));
}
// The stream ends after this event, and the client reconnects automatically.
source.addEventListener('auth_expired', () => (token = fresh.shift() ?? token));
source.addEventListener('error', ({ message }) => process.stderr.write(`stream: ${message}\n`));
// The client's own reconnect timer does not keep Node running.
setInterval(() => {}, 60_000);
