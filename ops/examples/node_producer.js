/*
 * Node: submit a refund, and wait for it. Needs the package `redis` (npm install redis; Debian: node-redis).
 *
 *   REFUNDS_REDIS_URL=redis://127.0.0.1:6379/0 node ops/examples/node_producer.js order-1001-1 pi_123 500
 *
 * Prints the record as JSON. Exit codes: 0 succeeded, 3 rejected, 4 not succeeded, 5 not accepted: run it again.
 */
"use strict";

const { randomUUID } = require("node:crypto");
const { setTimeout: sleep } = require("node:timers/promises");
const { createClient } = require("redis");

const SENDS = 3;
const SECONDS = 20;

class Rejected extends Error {}

/* One message for the task refunds.submit: Celery's protocol 2, as JSON. */
function message(fields) {
  const embed = { callbacks: null, errbacks: null, chain: null, chord: null };
  const body = JSON.stringify([[], fields, embed]);
  return JSON.stringify({
    body: Buffer.from(body).toString("base64"),
    "content-type": "application/json",
    "content-encoding": "utf-8",
    headers: {
      task: "refunds.submit",
      id: randomUUID(),
      lang: "js",
      kwargsrepr: fields.refund_id, // what Flower shows
    },
    properties: {
      delivery_tag: randomUUID(),
      delivery_mode: 2,
      body_encoding: "base64",
      delivery_info: { exchange: "", routing_key: "refunds" },
    },
  });
}

/*
 * Send the refund until its record exists; return the record. Only then is the refund accepted.
 * Sending it again is safe, because `refund_id` is the idempotency key.
 * With a REFUNDS_PREFIX of your own, each key begins with it, the queue's too.
 */
async function submit(redis, fields) {
  const id = fields.refund_id;
  const refusedBefore = await redis.hGet("refunds:rejected-ids", id);
  for (let send = 0; send < SENDS; send++) {
    await redis.lPush("refunds", message(fields));
    const end = Date.now() + SECONDS * 1000;
    while (Date.now() < end) {
      const refused = await redis.hGet("refunds:rejected-ids", id);
      if (refused && refused !== refusedBefore) throw new Rejected(JSON.parse(refused).reason);
      const record = await redis.hGetAll(`refunds:refund:${id}`);
      if (record.refund_id) return same(record, fields);
      await sleep(100);
    }
  }
  throw new Error(`refund ${id} is not known to be accepted: send it again with the same id`);
}

/* Return the record if it is of this refund, and not of another one under the same id. */
function same(record, fields) {
  for (const name of ["payment_intent", "amount"]) {
    if (name in fields && record[name] !== String(fields[name])) {
      throw new Rejected(`refund ${record.refund_id} exists with another ${name}`);
    }
  }
  return record;
}

/* Return the record once it is settled or needs a person, or as it is after so many seconds. */
async function wait(redis, id, seconds) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const record = await redis.hGetAll(`refunds:refund:${id}`);
    if (["settled", "review"].includes(record.stage) || Date.now() > end) return record;
    await sleep(200);
  }
}

/* Return an amount in minor units; anything else stays text, which is rejected. NaN would leave as null. */
function minorUnits(text) {
  return /^\d+$/.test(text) ? Number(text) : String(text);
}

async function main([refundId, paymentIntent, amount]) {
  const url = process.env.REFUNDS_REDIS_URL ?? "redis://127.0.0.1:6379/0";
  // Without this it would wait for a server that is away for as long as it takes.
  const redis = createClient({ url, socket: { reconnectStrategy: () => new Error("Redis is away") } });
  redis.on("error", () => {}); // each command reports it too
  await redis.connect();
  try {
    // The amount is a number in minor units: "500" in quotes would be rejected.
    await submit(redis, { refund_id: refundId, payment_intent: paymentIntent, amount: minorUnits(amount) });
    const record = await wait(redis, refundId, 30);
    console.log(JSON.stringify(record));
    return record.status === "succeeded" ? 0 : 4;
  } finally {
    if (redis.isOpen) await redis.quit();
  }
}

main(process.argv.slice(2)).then(
  (code) => (process.exitCode = code),
  (error) => {
    console.error(error.message);
    process.exitCode = error instanceof Rejected ? 3 : 5;
  },
);
