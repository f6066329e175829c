// Anthropic's SDK.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { MESSAGES, MODEL, PARAMETERS, ROOT, checkCall, run } from "./cases.mjs";

const client = new Anthropic({ baseURL: ROOT, apiKey: "none", maxRetries: 0 });
const tool = { name: "weather", description: "The weather in a city.", input_schema: PARAMETERS };
const choice = { type: "any", disable_parallel_tool_use: true };
const asked = { model: MODEL, messages: MESSAGES, max_tokens: 80 };

await run("@anthropic-ai/sdk", {
  async message() {
    assert.ok((await client.messages.create(asked)).content[0].text);
  },

  async "message streamed"() {
    const stream = client.messages.stream(asked);
    let text = "";
    stream.on("text", (piece) => (text += piece));
    const answer = await stream.finalMessage();
    assert.ok(text);
    assert.equal(text, answer.content[0].text);
  },

  async "tools streamed"() {
    const stream = client.messages.stream({ ...asked, tools: [tool], tool_choice: choice });
    const answer = await stream.finalMessage();
    assert.equal(answer.stop_reason, "tool_use");
    checkCall(answer.content.at(-1).name, answer.content.at(-1).input);
  },
});
