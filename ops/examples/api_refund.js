/*
 * Node: submit a refund over HTTP and wait for it; receive callbacks and check their signatures. Needs Node 18 and no
 * package.
 *
 *   export REFUNDS_API=http://127.0.0.1:8080 REFUNDS_TOKEN=rfw_…
 *   node ops/examples/api_refund.js order-1001-1 pi_123 500
 *   CALLBACK_SECRETS=whsec_… node ops/examples/api_refund.js receive 9000
 *
 * Prints the refund as JSON. Exit codes: 0 succeeded, 3 rejected, 4 not succeeded, 5 not accepted: run it again.
 */
"use strict";

const { createHmac, timingSafeEqual } = require("node:crypto");
const { createServer } = require("node:http");
const { setTimeout: sleep } = require("node:timers/promises");

const TRIES = 4;

class Rejected extends Error {}

/* Return the status and the text of an answer; status 0 if there was none. */
async function ask(method, path, fields) {
  const headers = { authorization: `Bearer ${process.env.REFUNDS_TOKEN}`, "content-type": "application/json" };
  const options = { method, headers, body: fields && JSON.stringify(fields), signal: AbortSignal.timeout(75_000) };
  try {
    const answer = await fetch(process.env.REFUNDS_API + path, options);
    return [answer.status, await answer.text()];
  } catch (error) {
    return [0, error.cause?.message ?? error.message];
  }
}

/*
 * Submit a refund, and return its record once it is settled or needs a person, or as it is after 30 seconds.
 * The same request again is safe, because `refund_id` is the idempotency key.
 */
async function submit(fields) {
  for (let attempt = 1; ; attempt++) {
    const [status, text] = await ask("POST", "/v1/refunds?wait=30", fields);
    if (status === 200 || status === 202) return JSON.parse(text);
    // A problem that names every wrong field.
    if (status !== 0 && status !== 429 && status < 500) throw new Rejected(text);
    if (attempt === TRIES) throw new Error(`refund ${fields.refund_id} is not known to be accepted: ${text}`);
    await sleep(attempt * 1000);
  }
}

/* Return whether a callback was signed with one of our secrets within the last five minutes. */
function isGenuine(headers, body) {
  const id = headers["webhook-id"] ?? "";
  const time = headers["webhook-timestamp"] ?? "";
  const signatures = (headers["webhook-signature"] ?? "").split(" "); // several while a secret is replaced
  const made = process.env.CALLBACK_SECRETS.trim().split(/\s+/).map((secret) => {
    const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
    return Buffer.from("v1," + createHmac("sha256", key).update(`${id}.${time}.`).update(body).digest("base64"));
  });
  const same = signatures.some((given) => {
    const theirs = Buffer.from(given);
    return made.some((ours) => ours.length === theirs.length && timingSafeEqual(ours, theirs));
  });
  return same && Math.abs(Date.now() / 1000 - Number(time)) < 300;
}

/* Answer callbacks: 204 if one is genuine. Keep `updated_at` and `version` with the order, and drop one not above them. */
function receive(port) {
  const server = createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const body = Buffer.concat(parts);
    if (!isGenuine(request.headers, body)) return response.writeHead(400).end();
    const { data } = JSON.parse(body);
    if (data.refund_id) console.log(`${data.refund_id} ${data.status} version ${data.version}`);
    response.writeHead(204).end();
  });
  server.listen(Number(port), "127.0.0.1");
}

/* Return an amount in minor units; anything else stays text, which is refused. NaN would leave as null. */
function minorUnits(text) {
  return /^\d+$/.test(text) ? Number(text) : String(text);
}

async function main([refundId, paymentIntent, amount]) {
  if (refundId === "receive") return receive(paymentIntent);
  // The amount is a number in minor units: "500" in quotes would be refused.
  const refund = await submit({ refund_id: refundId, payment_intent: paymentIntent, amount: minorUnits(amount) });
  console.log(JSON.stringify(refund));
  process.exitCode = refund.status === "succeeded" ? 0 : 4;
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exitCode = error instanceof Rejected ? 3 : 5;
});
