// Runs the examples of a page as one program. Blocks marked `text` are what the block before them prints.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const here = dirname(fileURLToPath(import.meta.url));
const NO_TYPES = 'The examples do not compile:\n';

/** Returns the program of a page in one language, and what it prints: each `text` block belongs to the block before it. */
export function programOf(page, language) {
  const [program, output] = [[], []];
  let last;
  for (const [, found, text] of readFileSync(page, 'utf8').matchAll(/^```(\S*)\n(.*?)^```$/gms)) {
    if (found === language) program.push(text);
    if (found === 'text' && last === language) output.push(text);
    last = found;
  }
  return { program: program.join('\n'), output: output.join('') };
}

/** Type-checks and runs the `ts` blocks of a page, and compares the output. */
export async function runPage(page) {
  const { program: text, output } = programOf(page, 'ts');
  const source = join(here, `page-${basename(page, '.md')}-${process.pid}.mts`);
  writeFileSync(source, text);
  try {
    const options = {
      target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext,
      lib: ['lib.es2023.d.ts', 'lib.dom.d.ts', 'lib.dom.iterable.d.ts', 'lib.dom.asynciterable.d.ts'], strict: true, skipLibCheck: true, types: ['node'],
    };
    const program = ts.createProgram([source], options);
    const faults = ts.getPreEmitDiagnostics(program);
    const host = { getCanonicalFileName: (name) => name, getCurrentDirectory: () => here, getNewLine: () => '\n' };
    assert.equal(faults.length, 0, NO_TYPES + ts.formatDiagnostics(faults, host));
    program.emit();
    assert.equal(await run(source.replace('.mts', '.mjs')), output);
  } finally {
    for (const kind of ['.mts', '.mjs']) rmSync(source.replace('.mts', kind), { force: true });
  }
}

function run(file) {
  const child = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'inherit'], timeout: 120_000 });
  let output = '';
  child.stdout.on('data', (bytes) => (output += bytes));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => (code === 0 ? resolve(output) : reject(new Error(`exit code ${code} after\n${output}`))));
  });
}
