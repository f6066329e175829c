// Cases: the requests that a client is run with, and a JSON line for how each one went.
// The server is named by the variables TUTTI_URL and TUTTI_MODEL.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const ROOT = process.env.TUTTI_URL ?? "http://127.0.0.1:8000";
export const URL_V1 = `${ROOT}/v1`;
export const MODEL = process.env.TUTTI_MODEL ?? "tutti-demo";
export const QUESTION = "Anna has 3 apples and gets 4 more. How many apples does she have?";
export const MESSAGES = [{ role: "user", content: QUESTION }];
export const CITIES = ["Bern", "Oslo"];
export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
  additionalProperties: false,
};
export const FUNCTION = { name: "weather", description: "The weather in a city.", parameters: PARAMETERS };

export function checkCall(name, args) {
  const parsed = typeof args === "string" ? JSON.parse(args) : args;
  assert.equal(name, "weather");
  assert.deepEqual(Object.keys(parsed), ["city"]);
  assert.ok(CITIES.includes(parsed.city));
}

export function checkWeather(value) {
  assert.deepEqual(Object.keys(value).sort(), ["city", "sunny"]);
  assert.ok(CITIES.includes(value.city));
  assert.equal(typeof value.sunny, "boolean");
}

export async function run(name, cases) {
  const manifest = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  const { version } = JSON.parse(readFileSync(manifest, "utf8"));
  for (const [title, work] of Object.entries(cases)) {
    let failed = null;
    try {
      await work();
    } catch (error) {
      const line = /\/node\/\w+\.mjs:(\d+)/.exec(error.stack ?? "")?.[1] ?? "?";
      failed = `line ${line}: ${error.name}: ${error.message}`.slice(0, 600);
    }
    console.log(JSON.stringify({ client: `${name} (Node)`, version, case: title, failed }));
  }
}
