// Uses the official package against the service in argv, as an application would, and prints the results to
// stdout.
import http from 'node:http';
import Stripe from 'stripe';

const [host, port, key] = process.argv.slice(2);
const at = (port, key) => new Stripe(key, { host, port, protocol: 'http' });
const stripe = at(port, key);

const event = (identifier, value, more = {}) => ({
  event_name: 'ai_tokens',
  payload: { stripe_customer_id: 'cus_1', value: String(value), ...more },
  ...(identifier && { identifier }),
});

const failure = (call) => call.then(
  (answer) => ({ answered: answer }),
  (error) => ({
    name: error.constructor.name, type: error.type, status: error.statusCode, code: error.code,
    param: error.param, message: error.message, requestId: error.requestId,
  }),
);

// delivers each first call to the service, and loses its answer
const seen = new Set();
const lossy = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', () => {
    const { method, url, headers } = request;
    const onwards = http.request({ host, port, method, path: url, headers }, (answer) => {
      const body = [];
      answer.on('data', (chunk) => body.push(chunk));
      answer.on('end', () => {
        const name = headers['idempotency-key'];
        if (!seen.has(name)) {
          seen.add(name);
          return request.socket.destroy();
        }
        response.writeHead(answer.statusCode, answer.headers);
        response.end(Buffer.concat(body));
      });
    });
    onwards.end(Buffer.concat(chunks));
  });
});
await new Promise((resolve) => lossy.listen(0, host, resolve));
const unlucky = at(lossy.address().port, key);

const timestamp = Math.floor(Date.now() / 1000) - 60;
const out = {
  version: Stripe.PACKAGE_VERSION,
  timestamp,
  created: await stripe.billing.meterEvents.create({
    ...event('evt_1', 100, { model: 'gpt-4o' }), timestamp, expand: ['payload'],
  }),
  unnamed: await stripe.billing.meterEvents.create(event(null, 20)),
  duplicate: await failure(stripe.billing.meterEvents.create(event('evt_1', 100, { model: 'gpt-4o' }))),
  retried: await unlucky.billing.meterEvents.create(event('evt_2', 3)),
  retriedUnnamed: await unlucky.billing.meterEvents.create(event(null, 4)),
  lost: seen.size,
  wrong: await stripe.billing.meterEvents.create(event('evt_3', 5000)),
  adjustment: await stripe.billing.meterEventAdjustments.create({
    event_name: 'ai_tokens', type: 'cancel', cancel: { identifier: 'evt_3' },
  }),
  unknownAdjustment: await failure(stripe.billing.meterEventAdjustments.create({
    event_name: 'ai_tokens', type: 'cancel', cancel: { identifier: 'evt_4' },
  })),
  noMeter: await failure(stripe.billing.meterEvents.create({ ...event('evt_5', 1), event_name: 'nothing' })),
  wrongKey: await failure(at(port, 'mg_sk_test_wrong').billing.meterEvents.create(event('evt_6', 1))),
  notHere: await failure(stripe.customers.create({ email: 'a@example.com' })),
};
lossy.close();
lossy.closeAllConnections();
console.log(JSON.stringify(out));
