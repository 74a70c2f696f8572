// The examples of the documents run against the server at DOCKET_URL.
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { runPage } from './pages.mjs';

const skip = process.env.DOCKET_URL ? false : 'DOCKET_URL is not set';
for (const page of ['README.md', '../../docs/use-from-your-app.md']) {
  test(`the examples of ${page} print what the page says`, { skip }, () =>
    runPage(fileURLToPath(new URL(`../${page}`, import.meta.url))));
}
