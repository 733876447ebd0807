// The packages `openai` and `ai` of Node against a running daemon.
//
// Answers of a small model say little, so what is checked is what the server promises: shapes, schemas, required calls, usage.
//
// usage: node test_sdk.mjs URL MODEL        (URL without /v1)

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [URL, MODEL] = process.argv.slice(2);
const ENCODER = "bert";
const WIDTH = 16;
const QUESTION = "Name three colours.";
const ORDER = "Describe a pet as JSON with the keys name, age and kind.";
const WEATHER = "What is the weather in Paris? Use the tool.";
const TEXTS = ["the keeper crossed the old bridge", "quickly"];
const Pet = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(30), kind: z.enum(["cat", "dog"]) });
const City = z.object({ city: z.string().max(20) });
const weather = ({ city }) => `${city} is sunny, 21 degrees.`;

describe("openai", () => {
  const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "unused", maxRetries: 0, timeout: 120_000 });
  const fields = (text, more) => ({ model: MODEL, messages: [{ role: "user", content: text }], temperature: 0, seed: 1, max_tokens: 100, ...more });
  const getWeather = {
    type: "function",
    function: { name: "get_weather", description: "Get the weather of a city.", parameters: z.toJSONSchema(City), parse: JSON.parse, function: weather },
  };

  test("an answer has text and usage, and its stream adds up to it", async () => {
    const answer = await client.chat.completions.create(fields(QUESTION, { max_tokens: 16 }));
    assert.ok(answer.choices[0].message.content);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
    const stream = await client.chat.completions.create(fields(QUESTION, { max_tokens: 16, stream: true, stream_options: { include_usage: true } }));
    let text = "";
    let last;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      last = chunk;
    }
    assert.equal(text, answer.choices[0].message.content);
    assert.equal(last.usage.completion_tokens, answer.usage.completion_tokens);
  });

  test("the stream helper ends with the answer", async () => {
    const stream = client.chat.completions.stream(fields(QUESTION, { max_tokens: 16 }));
    let text = "";
    stream.on("content", (delta) => (text += delta));
    assert.equal((await stream.finalChatCompletion()).choices[0].message.content, text);
  });

  test("an answer is parsed into its type", async () => {
    const format = { response_format: zodResponseFormat(Pet, "pet") };
    const answer = await client.chat.completions.parse(fields(ORDER, format));
    Pet.parse(answer.choices[0].message.parsed);
    const streamed = await client.chat.completions.stream(fields(ORDER, format)).finalChatCompletion();
    assert.deepEqual(streamed.choices[0].message.parsed, answer.choices[0].message.parsed);
  });

  test("tools are run", async () => {
    const named = { type: "function", function: { name: "get_weather" } };
    for (const stream of [false, true]) {
      const runner = client.chat.completions.runTools(fields(WEATHER, { tools: [getWeather], tool_choice: named, parallel_tool_calls: false, stream }));
      await runner.done();
      const [, called, result] = runner.messages;
      assert.equal(called.tool_calls[0].function.name, "get_weather");
      assert.equal(result.role, "tool");
      assert.match(result.content, /sunny/);
      const history = fields("", { messages: runner.messages, tools: [getWeather], tool_choice: "none" });
      const answer = await client.chat.completions.create(history);
      assert.ok(answer.choices[0].message.content);
      assert.equal(answer.choices[0].message.tool_calls ?? null, null);
    }
  });

  test("responses come whole, in events and in their type", async () => {
    const request = { model: MODEL, input: QUESTION, temperature: 0, max_output_tokens: 16 };
    const response = await client.responses.create(request);
    assert.ok(response.output_text);
    let text = "";
    for await (const event of await client.responses.create({ ...request, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, response.output_text);
    const parsed = await client.responses.parse({ ...request, input: ORDER, max_output_tokens: 100, text: { format: zodTextFormat(Pet, "pet") } });
    Pet.parse(parsed.output_parsed);
    const next = await client.responses.create({ ...request, input: "And three more.", previous_response_id: response.id });
    assert.ok(next.usage.input_tokens > response.usage.input_tokens);
  });

  test("texts are embedded", async () => {
    const packed = await client.embeddings.create({ model: ENCODER, input: TEXTS });
    assert.deepEqual(packed.data.map((item) => item.embedding.length), [WIDTH, WIDTH]);
    const plain = await client.embeddings.create({ model: ENCODER, input: TEXTS, encoding_format: "float" });
    packed.data[0].embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[0].embedding[at]) < 1e-6));
  });

  test("errors keep their class and field", async () => {
    await assert.rejects(client.chat.completions.create(fields(QUESTION, { model: "no-such-model" })), OpenAI.NotFoundError);
    const refused = client.chat.completions.create(fields(QUESTION, { temperature: -1 }));
    await assert.rejects(refused, (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
  });
});

const compatible = createOpenAICompatible({
  name: "kvshare", baseURL: `${URL}/v1`, apiKey: "unused", includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL: `${URL}/v1`, apiKey: "unused" });

for (const [name, model, encoder] of [
  ["ai, compatible", compatible(MODEL), compatible.textEmbeddingModel(ENCODER)],
  ["ai, chat", openai.chat(MODEL), openai.embedding(ENCODER)],
  ["ai, responses", openai.responses(MODEL), openai.embedding(ENCODER)],
]) {
  describe(name, () => {
    const fields = (prompt, more) => ({ model, prompt, temperature: 0, maxOutputTokens: 100, maxRetries: 0, ...more });

    test("an answer has text and usage, and its stream adds up to it", async () => {
      const answer = await ai.generateText(fields(QUESTION, { maxOutputTokens: 16 }));
      assert.ok(answer.text);
      assert.ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens <= 16);
      const stream = ai.streamText(fields(QUESTION, { maxOutputTokens: 16, onError: ({ error }) => { throw error; } }));
      let text = "";
      for await (const piece of stream.textStream) text += piece;
      assert.equal(text, answer.text);
      assert.equal((await stream.usage).outputTokens, answer.usage.outputTokens);
      assert.equal(await stream.finishReason, answer.finishReason);
    });

    test("an object has its type", async () => {
      const { object } = await ai.generateObject(fields(ORDER, { schema: Pet }));
      Pet.parse(object);
      const stream = ai.streamObject(fields(ORDER, { schema: Pet }));
      for await (const piece of stream.partialObjectStream) assert.equal(typeof piece, "object");
      Pet.parse(await stream.object);
    });

    test("a required tool is called and its result goes back", async () => {
      const tools = { get_weather: ai.tool({ description: "Get the weather of a city.", inputSchema: City, execute: weather }) };
      const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
      const request = fields(WEATHER, { tools, prepareStep, stopWhen: ai.stepCountIs(2) });
      const answer = await ai.generateText(request);
      assert.equal(answer.steps.length, 2);
      assert.equal(answer.steps[0].finishReason, "tool-calls");
      City.parse(answer.steps[0].toolCalls[0].input);
      assert.match(answer.steps[0].toolResults[0].output, /sunny/);
      assert.ok(answer.text);
      const streamed = ai.streamText(request);
      await streamed.consumeStream();
      assert.deepEqual((await streamed.steps)[0].toolCalls[0].input, answer.steps[0].toolCalls[0].input);
    });

    test("texts are embedded", async () => {
      const one = await ai.embed({ model: encoder, value: TEXTS[0], maxRetries: 0 });
      assert.equal(one.embedding.length, WIDTH);
      assert.ok(one.usage.tokens > 0);
      const { embeddings } = await ai.embedMany({ model: encoder, values: TEXTS, maxRetries: 0 });
      assert.ok(Math.abs(ai.cosineSimilarity(embeddings[0], one.embedding) - 1) < 1e-5);
    });
  });
}
