// Follows channels with the stock `eventsource` client and prints a JSON line for each event.
// usage: node stream.mjs http://HOST:PORT/v1/live TOKEN CHANNEL…
import { EventSource } from 'eventsource';

const [url, token, ...channels] = process.argv.slice(2);
const query = channels.map((channel) => `channel=${encodeURIComponent(channel)}`).join('&');
const source = new EventSource(`${url}?${query}`, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } }),
});
for (const kind of ['snapshot', 'pub', 'reset', 'auth_expired']) {
  source.addEventListener(kind, ({ data, lastEventId }) =>
    process.stdout.write(`${JSON.stringify({ ...JSON.parse(data), event: kind, id: lastEventId })}\n`));
}
source.addEventListener('error', ({ message }) => process.stderr.write(`stream: ${message}\n`));
// The client's own timer for coming back does not keep Node running.
setInterval(() => {}, 60_000);
