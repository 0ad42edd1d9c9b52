// The `openai` package of npm.

import OpenAI, { NotFoundError } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { main } from "../report.mjs";

const Trip = z
  .object({ city: z.enum(["Oslo", "Lima", "Pune"]), days: z.int().min(1).max(7), dry: z.boolean() })
  .strict();
const TOOL = {
  type: "function",
  function: { name: "book_trip", parameters: z.toJSONSchema(Trip), strict: true },
};

function client(task) {
  return new OpenAI({ baseURL: task.base_url, apiKey: "none", maxRetries: 0 });
}

function settings(task, content, more = {}) {
  return {
    model: task.model,
    messages: [{ role: "user", content }],
    temperature: 0,
    max_completion_tokens: task.max_tokens,
    ...more,
  };
}

async function chat(task) {
  const answer = await client(task).chat.completions.create(settings(task, task.question));
  return {
    text: answer.choices[0].message.content,
    finish: answer.choices[0].finish_reason,
    prompt_tokens: answer.usage.prompt_tokens,
    completion_tokens: answer.usage.completion_tokens,
  };
}

async function stream(task) {
  const more = { stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  const running = await client(task).chat.completions.create(settings(task, task.question, more));
  for await (const chunk of running) chunks.push(chunk);
  const deltas = chunks.flatMap((chunk) => chunk.choices[0]?.delta.content || []);
  return {
    text: deltas.join(""),
    num_deltas: deltas.length,
    completion_tokens: chunks.at(-1).usage.completion_tokens,
  };
}

async function completions(task) {
  const answer = await client(task).completions.create({
    model: task.model,
    prompt: task.prompt,
    temperature: 0,
    max_tokens: task.max_tokens,
  });
  return { text: answer.choices[0].text };
}

async function structured(task) {
  const more = { response_format: zodResponseFormat(Trip, "trip"), max_completion_tokens: 64 };
  const answer = await client(task).chat.completions.parse(settings(task, task.request, more));
  return answer.choices[0].message.parsed;
}

async function tool_call(task) {
  const choice = { type: "function", function: { name: "book_trip" } };
  const more = { tools: [TOOL], tool_choice: choice, max_completion_tokens: 64 };
  const answer = await client(task).chat.completions.create(settings(task, task.request, more));
  const [call] = answer.choices[0].message.tool_calls;
  return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
}

async function tool_stream(task) {
  const more = {
    tools: [TOOL],
    tool_choice: "required",
    parallel_tool_calls: false,
    max_completion_tokens: 64,
  };
  const running = client(task).chat.completions.stream(settings(task, task.request, more));
  const [call] = (await running.finalMessage()).tool_calls;
  return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
}

async function responses_chat(task) {
  const answer = await client(task).responses.create({
    model: task.model,
    input: task.question,
    temperature: 0,
    max_output_tokens: task.max_tokens,
  });
  return {
    text: answer.output_text,
    prompt_tokens: answer.usage.input_tokens,
    completion_tokens: answer.usage.output_tokens,
  };
}

async function responses_stream(task) {
  const running = client(task).responses.stream({
    model: task.model,
    input: [{ role: "user", content: [{ type: "input_text", text: task.question }] }],
    temperature: 0,
    max_output_tokens: task.max_tokens,
  });
  const deltas = [];
  running.on("response.output_text.delta", (event) => deltas.push(event.delta));
  const last = await running.finalResponse();
  return {
    text: deltas.join(""),
    num_deltas: deltas.length,
    completion_tokens: last.usage.output_tokens,
  };
}

async function responses_structured(task) {
  const answer = await client(task).responses.parse({
    model: task.model,
    input: task.request,
    text: { format: zodTextFormat(Trip, "trip") },
    temperature: 0,
    max_output_tokens: 64,
  });
  return answer.output_parsed;
}

async function responses_tool_call(task) {
  const answer = await client(task).responses.create({
    model: task.model,
    input: task.request,
    tools: [{ type: "function", ...TOOL.function }],
    tool_choice: { type: "function", name: "book_trip" },
    temperature: 0,
    max_output_tokens: 64,
  });
  const [call] = answer.output.filter((item) => item.type === "function_call");
  return { name: call.name, arguments: JSON.parse(call.arguments) };
}

// By default the package asks for base64.
async function embeddings(task) {
  const answer = await client(task).embeddings.create({ model: task.model, input: task.texts });
  return { vectors: answer.data.map((one) => one.embedding) };
}

async function models(task) {
  const ids = [];
  for await (const model of client(task).models.list()) ids.push(model.id);
  return { ids };
}

async function error(task) {
  try {
    await client(task).chat.completions.create(settings(task, "x", { model: "nobody" }));
  } catch (failed) {
    if (!(failed instanceof NotFoundError)) throw failed;
    return { status: failed.status, message: failed.message };
  }
}

await main({
  chat,
  stream,
  completions,
  structured,
  tool_call,
  tool_stream,
  responses_chat,
  responses_stream,
  responses_structured,
  responses_tool_call,
  embeddings,
  models,
  error,
});
