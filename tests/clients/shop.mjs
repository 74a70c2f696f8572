// Uses the page of examples/shop in headless Chromium as a customer does, over the Chrome DevTools Protocol.
// usage: node shop.mjs CHROMIUM http://HOST:PORT/ [SCREENSHOT.png]
// Reads a line for each step from standard input: a JavaScript expression. Prints its value as a line of JSON, once it
// is neither false nor null; it asks again until then.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import WebSocket from 'ws';

const [chromium, url, screenshot] = process.argv.slice(2);
const profile = mkdtempSync(join(tmpdir(), 'docket-browser-'));
const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--window-size=1000,640', '--remote-debugging-port=0'];
const browser = spawn(chromium, [...flags, `--user-data-dir=${profile}`], { stdio: ['ignore', 'ignore', 'pipe'], detached: true });
const end = (code) => {
  // All processes of the browser write to the profile until they end.
  browser.once('exit', () => {
    rmSync(profile, { recursive: true, force: true, maxRetries: 10 });
    process.exit(code);
  });
  process.kill(-browser.pid, 'SIGKILL');
};
process.on('SIGTERM', () => end(1));

let address;
for await (const line of createInterface(browser.stderr)) {
  address = line.match(/listening on (ws:\S+)/)?.[1];
  if (address) break;
}
const socket = new WebSocket(address);
await new Promise((resolve) => socket.on('open', resolve));
const waiting = new Map();
socket.on('message', (text) => {
  const { id, result, error, method, params } = JSON.parse(text);
  if (method === 'Runtime.exceptionThrown') process.stderr.write(`page: ${JSON.stringify(params.exceptionDetails)}\n`);
  if (error) process.stderr.write(`${JSON.stringify(error)}\n`);
  waiting.get(id)?.(result ?? {});
});
let count = 0;
const call = (method, params, sessionId) =>
  new Promise((resolve) => {
    waiting.set((count += 1), resolve);
    socket.send(JSON.stringify({ id: count, method, params, sessionId }));
  });
const { targetId } = await call('Target.createTarget', { url });
const { sessionId } = await call('Target.attachToTarget', { targetId, flatten: true });
await call('Runtime.enable', {}, sessionId);

for await (const expression of createInterface(process.stdin)) {
  for (;;) {
    const { result, exceptionDetails } = await call('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true }, sessionId);
    if (exceptionDetails) process.stderr.write(`${JSON.stringify(exceptionDetails)}\n`);
    if (result?.value != null && result.value !== false) {
      process.stdout.write(`${JSON.stringify(result.value)}\n`);
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
if (screenshot) {
  const { data } = await call('Page.captureScreenshot', { format: 'png' }, sessionId);
  writeFileSync(screenshot, Buffer.from(data, 'base64'));
}
end(0);
