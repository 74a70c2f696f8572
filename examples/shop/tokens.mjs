// JSON Web Tokens (RFC 7519) with HS256, as Docket accepts them. A real shop uses the library of its login.
import { createHmac, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';

/** The key that Docket verifies tokens with: its setting `jwt_secret`, or what `docket dev` has made in its data folder. */
const secret = process.env.DOCKET_JWT_SECRET ?? readFileSync(`${process.env.DOCKET_DATA ?? '../../data'}/jwt-secret`, 'utf8').trim();
const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
const sign = (content) => createHmac('sha256', secret).update(content).digest();

/** Returns a token for a subject and a role, valid for `seconds`. */
export function issue(sub, role, seconds) {
  const now = Math.floor(Date.now() / 1000);
  const claims = { sub, role, iss: 'docket', aud: 'docket', iat: now, exp: now + seconds };
  const content = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims)}`;
  return `${content}.${sign(content).toString('base64url')}`;
}

/** Returns the subject of a token that `issue` made and that has not expired; undefined for any other text. */
export function subjectOf(token) {
  const [header, payload, signature] = token.split('.');
  const found = Buffer.from(signature ?? '', 'base64url');
  const expected = sign(`${header}.${payload}`);
  if (found.length !== expected.length || !timingSafeEqual(found, expected)) return undefined;
  const { sub, exp } = JSON.parse(Buffer.from(payload, 'base64url'));
  return exp > Date.now() / 1000 ? sub : undefined;
}
