// Follows channels with the stock `centrifuge` client and prints a JSON line for each event that the client reports.
// usage: node follow.mjs ws://HOST:PORT/ws TOKEN[,TOKEN…] CHANNEL…
// The first token is used to connect; the others are returned when the client asks for a fresh token.
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

const [url, tokens, ...channels] = process.argv.slice(2);
const [token, ...fresh] = tokens.split(',');
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const getToken = async () => {
  print({ event: 'token' });
  return fresh.length > 1 ? fresh.shift() : (fresh[0] ?? token);
};
const client = new Centrifuge(url, { token, getToken, websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500 });

client.on('error', ({ error }) => process.stderr.write(`client: ${JSON.stringify(error)}\n`));
client.on('disconnected', ({ code, reason }) => {
  print({ event: 'disconnected', code, reason });
  process.exit(1);
});

for (const channel of channels) {
  const subscription = client.newSubscription(channel);
  subscription.on('subscribed', ({ data, recovered, wasRecovering }) =>
    print({ event: 'subscribed', channel, data, recovered, wasRecovering }));
  subscription.on('publication', ({ data, offset }) => print({ event: 'publication', channel, data, offset }));
  subscription.on('unsubscribed', ({ code, reason }) => print({ event: 'unsubscribed', channel, code, reason }));
  subscription.on('error', ({ error }) => process.stderr.write(`${channel}: ${JSON.stringify(error)}\n`));
  subscription.subscribe();
}
client.connect();
