// The same as report.py, for clients that run in node: `node check.mjs TASK`.

import { writeFileSync } from "node:fs";
import net from "node:net";

const outside = new Set();

const connect = net.Socket.prototype.connect;
net.Socket.prototype.connect = function (...given) {
  const [options] = Array.isArray(given[0]) ? given[0] : given; // net's own normalized form
  if (options?.host && !["127.0.0.1", "::1", "localhost"].includes(options.host)) {
    outside.add(options.host);
    throw new Error(`this client wants to reach ${options.host}`);
  }
  return connect.apply(this, given);
};

// `checks`: {name: async (task) => what it saw}
export async function main(checks) {
  const task = JSON.parse(process.argv[2]);
  const seen = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      seen[name] = await check(task);
    } catch (error) {
      seen[name] = { failed: error.stack ?? String(error) };
    }
  }
  writeFileSync("report.json", JSON.stringify({ checks: seen, outside: [...outside].sort() }));
}

export function assert(condition, what) {
  if (!condition) throw new Error(what);
}
