// The checked-in types belong to the API document of this commit.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

test('src/generated is what npm run generate writes', () => {
  const directory = fileURLToPath(new URL('..', import.meta.url));
  const { scripts } = JSON.parse(readFileSync(`${directory}package.json`, 'utf8'));
  const [program, ...parts] = scripts.generate.split(' ');
  const file = `${directory}${parts.pop()}`;
  parts.pop(); // --output; without it the types go to standard output.
  const { status, stdout, stderr } = spawnSync(`${directory}node_modules/.bin/${program}`, parts, { cwd: directory, encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  assert.equal(readFileSync(file, 'utf8'), stdout, 'Run npm run generate.');
});
