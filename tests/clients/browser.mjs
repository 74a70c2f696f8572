// Follows channels in a page in headless Chromium with the browser's own EventSource. Prints a JSON line for each event.
// usage: node browser.mjs CHROMIUM http://HOST:PORT/v1/live TOKEN[,TOKEN…] CHANNEL…
// A server on another port delivers the page. It sends the token in a cookie that no script can read.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const [chromium, url, tokens, ...channels] = process.argv.slice(2);
const fresh = tokens.split(',');
const query = channels.map((channel) => `channel=${encodeURIComponent(channel)}`).join('&');
const page = `<!doctype html><title>live</title><script>
  let last = Promise.resolve();
  const report = (line) => (last = last.then(() => fetch('/report', { method: 'POST', body: JSON.stringify(line) })));
  const follow = (resume) => {
    const source = new EventSource(${JSON.stringify(`${url}?${query}`)} + resume, { withCredentials: true });
    let last = '';
    for (const kind of ['snapshot', 'pub', 'reset', 'auth_expired'])
      source.addEventListener(kind, ({ data, lastEventId }) => {
        last = lastEventId || last;
        report({ ...JSON.parse(data), event: kind, id: lastEventId });
      });
    // A reconnect with the old cookie would be refused, and the browser would then give up.
    source.addEventListener('auth_expired', async () => {
      source.close();
      await fetch('/fresh');
      follow('&last_event_id=' + encodeURIComponent(last));
    });
  };
  follow('');
</script>`;
const server = createServer((request, response) => {
  if (request.method !== 'POST') {
    const token = fresh.length > 1 ? fresh.shift() : fresh[0];
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
  const browser = spawn(chromium, [...flags, `http://127.0.0.1:${server.address().port}/`], { stdio: 'ignore', detached: true });
  const end = () => {
    // All processes of the browser write to the profile until they end.
    browser.once('exit', () => {
      rmSync(profile, { recursive: true, force: true, maxRetries: 10 });
      process.exit();
    });
    process.kill(-browser.pid, 'SIGKILL');
  };
  process.on('SIGTERM', end);
  // Standard input ends when the story that started this script ends.
  process.stdin.on('end', end).resume();
});
