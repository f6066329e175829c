// OpenAI's SDK.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { CITIES, FUNCTION, MESSAGES, MODEL, QUESTION, URL_V1, checkCall, checkWeather, run } from "./cases.mjs";

const client = new OpenAI({ baseURL: URL_V1, apiKey: "none", maxRetries: 0 });
const Weather = z.object({ city: z.enum(CITIES), sunny: z.boolean() });
const tool = { type: "function", function: FUNCTION };
const responsesTool = { type: "function", strict: true, ...FUNCTION };

await run("openai", {
  async chat() {
    const answer = await client.chat.completions.create({ model: MODEL, messages: MESSAGES, max_tokens: 30 });
    assert.ok(answer.choices[0].message.content);
    assert.ok(answer.usage.total_tokens);
  },

  async "chat streamed"() {
    const stream = await client.chat.completions.create({
      model: MODEL,
      messages: MESSAGES,
      max_tokens: 30,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.ok(text);
    assert.ok(usage.completion_tokens);
  },

  async parse() {
    const answer = await client.chat.completions.parse({
      model: MODEL,
      messages: MESSAGES,
      response_format: zodResponseFormat(Weather, "weather"),
    });
    checkWeather(answer.choices[0].message.parsed);
  },

  async "stream helper"() {
    const stream = client.chat.completions.stream({
      model: MODEL,
      messages: MESSAGES,
      response_format: zodResponseFormat(Weather, "weather"),
    });
    checkWeather((await stream.finalChatCompletion()).choices[0].message.parsed);
  },

  async tools() {
    const one = { tool_choice: "required", parallel_tool_calls: false };
    const fields = { model: MODEL, messages: MESSAGES, tools: [tool], ...one };
    const [choice] = (await client.chat.completions.create(fields)).choices;
    assert.equal(choice.finish_reason, "tool_calls");
    const calls = choice.message.tool_calls;
    checkCall(calls[0].function.name, calls[0].function.arguments);
    const results = calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "Rain." }));
    const messages = [...MESSAGES, choice.message, ...results];
    const again = await client.chat.completions.create({ model: MODEL, messages, tools: [tool], max_tokens: 20 });
    assert.ok(again.choices[0].finish_reason);
  },

  async "tools streamed"() {
    const stream = client.chat.completions.stream({
      model: MODEL,
      messages: MESSAGES,
      tools: [tool],
      tool_choice: { type: "function", function: { name: "weather" } },
    });
    const [choice] = (await stream.finalChatCompletion()).choices;
    checkCall(choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments);
  },

  async responses() {
    const answer = await client.responses.create({ model: MODEL, input: QUESTION, max_output_tokens: 100 });
    assert.ok(answer.output_text);
  },

  async "responses parse"() {
    const answer = await client.responses.parse({
      model: MODEL,
      input: QUESTION,
      text: { format: zodTextFormat(Weather, "weather") },
    });
    checkWeather(answer.output_parsed);
  },

  async "responses streamed"() {
    const stream = client.responses.stream({ model: MODEL, input: QUESTION, max_output_tokens: 100 });
    let text = "";
    for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
    assert.equal(text, (await stream.finalResponse()).output_text);
  },

  async "responses tools"() {
    const fields = { model: MODEL, input: QUESTION, tools: [responsesTool], tool_choice: "required" };
    const [call] = (await client.responses.stream(fields).finalResponse()).output;
    checkCall(call.name, call.arguments);
  },
});
