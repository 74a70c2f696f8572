// The examples of README.md run against the server at DOCKET_URL, whose store is empty.
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { runPage } from './pages.mjs';

test('the examples of README.md print what the page says', { skip: !process.env.DOCKET_URL && 'DOCKET_URL is not set' }, () =>
  runPage(fileURLToPath(new URL('../README.md', import.meta.url))));
