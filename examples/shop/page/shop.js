// The page of the shop: a plain module, without a build step.
import { Docket } from '/docket.js';

const byId = (id) => document.getElementById(id);
const name = new URLSearchParams(location.search).get('customer') ?? 'ada';

async function shop(path, body, token) {
  const headers = { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, body ? { method: 'POST', headers, body: JSON.stringify(body) } : { headers });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.message);
  return content;
}

const { docket: url, token: first } = await shop('/login', { name });
let token = first;
// Called again before the token expires, and when Docket refuses it.
const provider = async (refused) => {
  if (refused) ({ token } = await shop('/login', { name }));
  return token;
};
const docket = new Docket({ url, token: provider });
let orderId = new URLSearchParams(location.hash.slice(1)).get('order');

/** Runs what a click does. Only one click at a time, so that two clicks cannot start two orders. */
async function click(path, body) {
  for (const button of document.querySelectorAll('button')) button.disabled = true;
  byId('problem').textContent = '';
  try {
    // The key makes a repeated request harmless.
    const { order_id } = await shop(path, { ...body, order_id: orderId, key: crypto.randomUUID() }, token);
    if (!orderId) follow(order_id);
  } catch (error) {
    byId('problem').textContent = error.message;
  }
  show();
}

let order;

function show() {
  for (const button of document.querySelectorAll('#products button')) button.disabled = order?.status === 'confirmed';
  byId('confirm').disabled = order?.status !== 'draft' || order.lines.length === 0;
  if (!order) return;
  byId('status').textContent = order.status;
  byId('total').textContent = `${order.total} ${order.currency}`;
  byId('lines').replaceChildren(...order.lines.map((line) => row(`${line.quantity} × ${line.name ?? line.sku}`, line.line_total)));
}

/** Shows the order and each of its changes, whoever makes them. The client reconnects and resumes on its own. */
async function follow(id) {
  orderId = id;
  location.hash = `order=${id}`;
  try {
    for await (const update of docket.orders.watch(id)) {
      order = update.order;
      byId('changes').append(row(update.change?.type ?? 'Connected', `version ${order.version}`));
      show();
    }
  } catch (error) {
    byId('problem').textContent = error.message;
  }
}

function row(...parts) {
  const item = document.createElement('li');
  item.append(...parts.map((part) => (part instanceof Node ? part : Object.assign(document.createElement('span'), { textContent: part }))));
  return item;
}

for (const { sku, name, unit_price } of await shop('/products')) {
  const button = Object.assign(document.createElement('button'), { textContent: 'Add', onclick: () => click('/items', { sku }) });
  button.dataset.sku = sku;
  byId('products').append(row(`${name} ${unit_price}`, button));
}
byId('confirm').onclick = () => click('/confirm');
if (orderId) follow(orderId);
document.body.dataset.ready = 'true';
