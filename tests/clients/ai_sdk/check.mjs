// Vercel's AI SDK with its provider for servers that speak OpenAI's dialect.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";

import { main } from "../report.mjs";

const Trip = z
  .object({ city: z.enum(["Oslo", "Lima", "Pune"]), days: z.int().min(1).max(7), dry: z.boolean() })
  .strict();

function provider(task) {
  return createOpenAICompatible({
    name: "llmserve",
    baseURL: task.base_url,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
}

function settings(task, prompt, more = {}) {
  return {
    model: provider(task)(more.name ?? task.model),
    prompt,
    temperature: 0,
    maxOutputTokens: task.max_tokens,
    maxRetries: 0,
    ...more,
  };
}

async function chat(task) {
  const answer = await ai.generateText(settings(task, task.question));
  return {
    text: answer.text,
    finish: answer.finishReason,
    prompt_tokens: answer.usage.inputTokens,
    completion_tokens: answer.usage.outputTokens,
  };
}

async function stream(task) {
  const answer = ai.streamText({
    ...settings(task, task.question),
    onError({ error }) {
      throw error;
    },
  });
  const deltas = [];
  for await (const delta of answer.textStream) deltas.push(delta);
  return {
    text: deltas.join(""),
    num_deltas: deltas.length,
    completion_tokens: (await answer.usage).outputTokens,
  };
}

async function structured(task) {
  const more = { schema: Trip, maxOutputTokens: 64 };
  return (await ai.generateObject(settings(task, task.request, more))).object;
}

async function structured_stream(task) {
  const answer = ai.streamObject(settings(task, task.request, { schema: Trip, maxOutputTokens: 64 }));
  for await (const part of answer.partialObjectStream) void part;
  return await answer.object;
}

async function tool_call(task) {
  const tools = { book_trip: ai.tool({ description: "Book a trip.", inputSchema: Trip }) };
  const choice = { type: "tool", toolName: "book_trip" };
  const more = { tools, toolChoice: choice, maxOutputTokens: 64 };
  const [call] = (await ai.generateText(settings(task, task.request, more))).toolCalls;
  return { name: call.toolName, arguments: call.input };
}

async function tool_stream(task) {
  const tools = { book_trip: ai.tool({ description: "Book a trip.", inputSchema: Trip }) };
  const choice = { type: "tool", toolName: "book_trip" };
  const more = { tools, toolChoice: choice, maxOutputTokens: 64 };
  const [call] = await ai.streamText(settings(task, task.request, more)).toolCalls;
  return { name: call.toolName, arguments: call.input };
}

async function tool_auto(task) {
  const tools = { book_trip: ai.tool({ description: "Book a trip.", inputSchema: Trip }) };
  const answer = ai.streamText(settings(task, task.request, { tools, maxOutputTokens: 64 }));
  const text = await answer.text;
  return { calls: (await answer.toolCalls).map((call) => call.input), text };
}

// The SDK carries the call out and sends its result back, for the model to go on.
async function tool_loop(task) {
  const calls = [];
  const choice = { type: "tool", toolName: "book_trip" };
  const book_trip = ai.tool({
    description: "Book a trip.",
    inputSchema: Trip,
    execute: async (trip) => {
      calls.push(trip);
      return task.result;
    },
  });
  const answer = await ai.generateText(
    settings(task, task.request, {
      tools: { book_trip },
      stopWhen: ai.stepCountIs(2),
      maxOutputTokens: 64,
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : choice }),
    }),
  );
  return { calls, text: answer.text };
}

async function embeddings(task) {
  const model = provider(task).embeddingModel(task.model);
  return { vectors: (await ai.embedMany({ model, values: task.texts })).embeddings };
}

async function error(task) {
  try {
    await ai.generateText(settings(task, "x", { name: "nobody" }));
  } catch (failed) {
    if (!ai.APICallError.isInstance(failed)) throw failed;
    return { status: failed.statusCode, message: failed.message };
  }
}

await main({
  chat,
  stream,
  structured,
  structured_stream,
  tool_call,
  tool_stream,
  tool_auto,
  tool_loop,
  embeddings,
  error,
});
