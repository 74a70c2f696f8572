// The shop's server: serves the page, logs customers in, and sends their commands to Docket with the shop's own prices.
// Variables: PORT (3100), DOCKET_URL (http://127.0.0.1:8080), and the key of tokens (see tokens.mjs).
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';
import { Docket, Problem } from '@docket/client';
import { issue, subjectOf } from './tokens.mjs';

const url = process.env.DOCKET_URL ?? 'http://127.0.0.1:8080';
const docket = new Docket({ url, token: () => issue('shop', 'staff', 600) });

const PRODUCTS = [
  { sku: 'mug', name: 'Mug', category: 'KITCHEN', unit_price: '12.00' },
  { sku: 'tea', name: 'Green tea', category: 'FOOD', unit_price: '4.50' },
  { sku: 'bagel', name: 'Bagel', category: 'FOOD', unit_price: '0.50' },
];

const FILES = {
  '/': ['page/index.html', 'text/html; charset=utf-8'],
  '/shop.js': ['page/shop.js', 'text/javascript'],
  '/docket.js': ['node_modules/@docket/client/dist/browser.js', 'text/javascript'],
};

/** Answers with a status and a JSON body. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Routes by method and path. `customer` is undefined for a request without a valid token. */
const ROUTES = {
  'GET /products': () => PRODUCTS,

  // A real shop checks a password here, or leaves the login to an identity provider.
  'POST /login': (_, { name }) => {
    if (!/^[a-z]{1,20}$/.test(name ?? '')) throw new Refused(422, 'A name has 1 to 20 letters from a to z.');
    return { token: issue(name, 'customer', 900), docket: url };
  },

  // Starts an order, or adds to it. The page sends a key for each click, so a click that it repeats counts once.
  'POST /items': async (customer, { order_id, sku, key }) => {
    const product = PRODUCTS.find((product) => product.sku === sku);
    if (!product) throw new Refused(422, 'There is no such product.');
    const item = { ...product, quantity: 1 };
    if (!order_id) return docket.orders.create({ customer_id: customer, items: [item] }, { idempotencyKey: key });
    await check(customer, order_id);
    return docket.orders.addItem(order_id, item, { idempotencyKey: key });
  },

  'POST /confirm': async (customer, { order_id, key }) => {
    await check(customer, order_id);
    return docket.orders.confirm(order_id, { idempotencyKey: key });
  },
};

/** The shop's token may change every order, so the shop checks whose it is. */
async function check(customer, orderId) {
  const order = await docket.orders.get(orderId);
  if (order.customer_id !== customer) throw new Refused(404, 'There is no such order.');
}

async function answer(request) {
  const route = `${request.method} ${request.url}`;
  if (!ROUTES[route]) throw new Refused(404, 'There is no such page.');
  const customer = subjectOf((request.headers.authorization ?? '').replace(/^Bearer /, ''));
  if (!customer && !['GET /products', 'POST /login'].includes(route)) throw new Refused(401, 'Log in again.');
  let text = '';
  for await (const part of request) {
    text += part;
    if (text.length > 10_000) throw new Refused(413, 'The request is too long.');
  }
  return ROUTES[route](customer, text ? JSON.parse(text) : {});
}

const server = createServer(async (request, response) => {
  const json = (status, body) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  try {
    const file = request.method === 'GET' && FILES[request.url];
    if (!file) return json(200, await answer(request));
    const content = await readFile(fileURLToPath(new URL(file[0], import.meta.url)));
    response.writeHead(200, { 'content-type': file[1] }).end(content);
  } catch (error) {
    if (error instanceof Refused || error instanceof Problem) return json(error.status, { message: error.message });
    if (error instanceof SyntaxError) return json(400, { message: 'The body must be JSON.' });
    console.error(error);
    json(500, { message: 'The shop has a problem. Try again.' });
  }
});
server.listen(Number(process.env.PORT ?? 3100), '127.0.0.1', () => console.log(`The shop is open: http://127.0.0.1:${server.address().port}`));
