// A page in headless Chromium follows channels with the browser's own EventSource; prints a JSON line for each event.
// usage: node browser.mjs CHROMIUM http://HOST:PORT/v1/live TOKEN CHANNEL…
// The page comes from a server of another port, which gives the browser the token in a cookie that no script can read.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const [chromium, url, token, ...channels] = process.argv.slice(2);
const query = channels.map((channel) => `channel=${encodeURIComponent(channel)}`).join('&');
const page = `<!doctype html><title>live</title><script>
  let last = Promise.resolve();
  const report = (line) => (last = last.then(() => fetch('/report', { method: 'POST', body: JSON.stringify(line) })));
  const source = new EventSource(${JSON.stringify(`${url}?${query}`)}, { withCredentials: true });
  for (const kind of ['snapshot', 'pub', 'reset', 'auth_expired'])
    source.addEventListener(kind, ({ data, lastEventId }) => report({ ...JSON.parse(data), event: kind, id: lastEventId }));
</script>`;
const server = createServer((request, response) => {
  if (request.method !== 'POST') {
    response.writeHead(200, { 'content-type': 'text/html', 'set-cookie': `docket_token=${token}; HttpOnly; SameSite=Lax` });
    response.end(page);
    return;
  }
  let body = '';
  request.on('data', (bytes) => (body += bytes));
  request.on('end', () => {
    process.stdout.write(`${body}\n`);
    response.end();
  });
});
server.listen(0, '127.0.0.1', () => {
  const profile = mkdtempSync(join(tmpdir(), 'docket-browser-'));
  const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', `--user-data-dir=${profile}`];
  const browser = spawn(chromium, [...flags, `http://127.0.0.1:${server.address().port}/`], { stdio: 'ignore' });
  const end = () => {
    browser.kill('SIGKILL');
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    process.exit();
  };
  process.on('SIGTERM', end);
  // The story that started this is gone.
  process.stdin.on('end', end).resume();
});
