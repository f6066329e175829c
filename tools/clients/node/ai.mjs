// Vercel's AI SDK over chat completions (@ai-sdk/openai-compatible) and over responses (@ai-sdk/openai).

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { CITIES, MODEL, QUESTION, URL_V1, checkCall, checkWeather, run } from "./cases.mjs";

const connection = { name: "tutti", baseURL: URL_V1, apiKey: "none" };
const chat = createOpenAICompatible({ ...connection, supportsStructuredOutputs: true, includeUsage: true })(MODEL);
const responses = createOpenAI(connection)(MODEL);
const schema = z.object({ city: z.enum(CITIES), sunny: z.boolean() });
const weather = tool({ description: "The weather in a city.", inputSchema: z.object({ city: z.enum(CITIES) }) });
const asked = { prompt: QUESTION, maxRetries: 0, maxOutputTokens: 100 };

async function called(model) {
  const { toolCalls } = await generateText({ ...asked, model, tools: { weather }, toolChoice: "required" });
  checkCall(toolCalls[0].toolName, toolCalls[0].input);
}

async function streamed(model) {
  const result = streamText({ ...asked, model, onError: ({ error }) => assert.fail(error) });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  assert.ok(text);
  assert.ok(["stop", "length"].includes(await result.finishReason));
  assert.ok((await result.usage).outputTokens);
}

await run("ai", {
  "generateText with tools": () => called(chat),

  async "generateObject"() {
    checkWeather((await generateObject({ ...asked, model: chat, schema })).object);
  },

  "streamText": () => streamed(chat),

  async "streamText with tools"() {
    const result = streamText({ ...asked, model: chat, tools: { weather }, toolChoice: "required" });
    await result.consumeStream();
    const [call] = await result.toolCalls;
    checkCall(call.toolName, call.input);
  },

  async "streamObject"() {
    const result = streamObject({ ...asked, model: chat, schema });
    for await (const _ of result.partialObjectStream);
    checkWeather(await result.object);
  },

  "responses: generateText with tools": () => called(responses),

  async "responses: generateObject"() {
    checkWeather((await generateObject({ ...asked, model: responses, schema })).object);
  },

  "responses: streamText": () => streamed(responses),
});
