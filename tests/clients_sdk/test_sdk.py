"""Client libraries that are built on the `openai` package against a running daemon: one class for each.

Answers of a small model say little, so what is checked is what the server promises: shapes, schemas, calls where one is required, usage.

usage: test_sdk.py URL MODEL        (URL without /v1)
"""

import asyncio
import inspect
import json
import os
import pathlib
import sys
import tempfile
import typing
import unittest

# Nothing is fetched from elsewhere.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LLM_LOAD_PLUGINS"] = ""

import click.testing
import instructor
import instructor.core.exceptions
import langchain_core.messages
import langchain_openai
import litellm
import llama_index.core.llms
import llama_index.core.prompts
import llama_index.core.tools
import llama_index.embeddings.openai_like
import llama_index.llms.openai_like
import llm.cli
import openai
import pydantic
import pydantic_ai
import pydantic_ai.models.openai
import pydantic_ai.providers.openai

# LiteLLM brings the tables that tiktoken would fetch.
os.environ["TIKTOKEN_CACHE_DIR"] = str(pathlib.Path(litellm.__file__).with_name("litellm_core_utils") / "tokenizers")

URL, MODEL = sys.argv[1:3]
API = f"{URL}/v1"
ENCODER, WIDTH = "bert", 16
QUESTION = "Name three colours."
ORDER = "Describe a pet as JSON with the keys name, age and kind."
WEATHER = "What is the weather in Paris? Use the tool."
TEXTS = ["the keeper crossed the old bridge", "quickly"]


class Pet(pydantic.BaseModel):
    """A pet."""

    name: typing.Annotated[str, pydantic.Field(max_length=20)]
    age: typing.Annotated[int, pydantic.Field(ge=0, le=30)]
    kind: typing.Literal["cat", "dog"]


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"{city} is sunny, 21 degrees."


WEATHER_TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}}}


class LangChain(unittest.TestCase):
    def chat(self, **fields):
        return langchain_openai.ChatOpenAI(**{"model": MODEL, "base_url": API, "api_key": "unused", "temperature": 0, "seed": 1,
                                              "max_tokens": 100, "max_retries": 0, "timeout": 120, **fields})

    def test_an_answer_has_text_and_usage(self):
        answer = self.chat(max_tokens=16).invoke(QUESTION)
        self.assertTrue(answer.content)
        self.assertIn(answer.response_metadata["finish_reason"], ("stop", "length"))
        usage = answer.usage_metadata
        self.assertEqual(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"])
        self.assertLessEqual(usage["output_tokens"], 16)

    def test_a_stream_adds_up_to_the_answer(self):
        chunks = list(self.chat(max_tokens=16, stream_usage=True).stream(QUESTION))
        whole = sum(chunks[1:], chunks[0])
        self.assertGreater(len(chunks), 3)
        self.assertEqual(whole.content, self.chat(max_tokens=16).invoke(QUESTION).content)
        self.assertGreater(whole.usage_metadata["output_tokens"], 0)

    def test_calls_and_their_results_go_back_and_forth(self):
        for choice in ("required", "get_weather"):
            bound = self.chat().bind_tools([get_weather], tool_choice=choice, parallel_tool_calls=False)
            answer = bound.invoke(WEATHER)
            [call] = answer.tool_calls
            self.assertEqual((call["name"], set(call["args"])), ("get_weather", {"city"}))
            chunks = list(bound.stream(WEATHER))
            [streamed] = sum(chunks[1:], chunks[0]).tool_calls
            self.assertEqual(streamed["args"], call["args"])
        result = langchain_core.messages.ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])
        history = [langchain_core.messages.HumanMessage(WEATHER), answer, result]
        last = self.chat().bind_tools([get_weather], tool_choice="none").invoke(history)
        self.assertEqual(last.tool_calls, [])
        self.assertTrue(last.content)
        self.assertGreater(last.usage_metadata["input_tokens"], answer.usage_metadata["input_tokens"])

    def test_an_answer_is_parsed_into_its_type(self):
        for method in ("json_schema", "function_calling"):
            for strict in (True, False):
                parsed = self.chat().with_structured_output(Pet, method=method, strict=strict).invoke(ORDER)
                self.assertIsInstance(parsed, Pet, (method, strict))
        # The mode with no schema promises an object, not which one.
        answer = self.chat().with_structured_output(Pet, method="json_mode", include_raw=True).invoke(ORDER)
        self.assertTrue(answer["raw"].content.lstrip().startswith("{"))
        if answer["raw"].response_metadata["finish_reason"] == "stop":
            self.assertIsInstance(json.loads(answer["raw"].content), dict)

    def test_a_stream_of_an_answer_in_its_type_ends_with_it(self):
        self.assertIsInstance(list(self.chat().with_structured_output(Pet).stream(ORDER))[-1], Pet)

    def test_the_newer_api_works_too(self):
        answer = self.chat(use_responses_api=True, seed=None).invoke(QUESTION)
        self.assertTrue(answer.text)
        self.assertIsInstance(self.chat(use_responses_api=True, seed=None).with_structured_output(Pet).invoke(ORDER), Pet)

    def embeddings(self, **fields):
        return langchain_openai.OpenAIEmbeddings(model=ENCODER, base_url=API, api_key="unused", max_retries=0, **fields)

    def test_texts_are_embedded(self):
        embeddings = self.embeddings(check_embedding_ctx_length=False)
        vectors = embeddings.embed_documents(TEXTS)
        self.assertEqual([len(vector) for vector in vectors], [WIDTH, WIDTH])
        for one, other in zip(embeddings.embed_query(TEXTS[0]), vectors[0]):
            self.assertAlmostEqual(one, other, places=5)

    def test_tokens_of_another_vocabulary_are_refused_by_place(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embeddings(check_embedding_ctx_length=True).embed_documents(TEXTS)
        self.assertEqual(caught.exception.param, "input[0]")


class LlamaIndex(unittest.TestCase):
    def llm(self, **fields):
        return llama_index.llms.openai_like.OpenAILike(**{
            "model": MODEL, "api_base": API, "api_key": "unused", "is_chat_model": True, "is_function_calling_model": True, "temperature": 0,
            "max_tokens": 100, "max_retries": 0, "timeout": 120, "additional_kwargs": {"seed": 1}, **fields})

    def messages(self, text=QUESTION):
        return [llama_index.core.llms.ChatMessage(role="user", content=text)]

    def test_an_answer_has_text_and_its_stream_adds_up_to_it(self):
        answer = self.llm(max_tokens=16).chat(self.messages())
        self.assertTrue(answer.message.content)
        self.assertGreater(answer.raw.usage.prompt_tokens, 0)
        pieces = list(self.llm(max_tokens=16).stream_chat(self.messages()))
        self.assertEqual("".join(piece.delta or "" for piece in pieces), answer.message.content)

    def test_a_prompt_is_continued(self):
        llm = self.llm(is_chat_model=False, max_tokens=8)
        whole = llm.complete("The capital of France is").text
        self.assertTrue(whole)
        self.assertEqual("".join(piece.delta for piece in llm.stream_complete("The capital of France is")), whole)

    def test_an_answer_is_parsed_into_its_type(self):
        prompt = llama_index.core.prompts.PromptTemplate("{order}")
        required = {"tool_choice": "required"}
        self.assertIsInstance(self.llm().structured_predict(Pet, prompt, llm_kwargs=required, order=ORDER), Pet)
        self.assertIsInstance(self.llm(should_use_structured_outputs=True).structured_predict(Pet, prompt, order=ORDER), Pet)

    def test_a_required_tool_is_called_and_its_result_comes_back(self):
        tool = llama_index.core.tools.FunctionTool.from_defaults(get_weather)
        answer = self.llm().predict_and_call([tool], WEATHER, tool_required=True)
        [source] = answer.sources
        self.assertEqual(source.tool_name, "get_weather")
        self.assertIn("sunny", source.content)
        [piece] = [piece for piece in answer.sources if not piece.is_error]
        self.assertIn("city", piece.raw_input["kwargs"])

    def test_a_result_of_a_tool_is_answered(self):
        tool = llama_index.core.tools.FunctionTool.from_defaults(get_weather)
        called = self.llm().chat_with_tools([tool], WEATHER, tool_required=True)
        [call] = self.llm().get_tool_calls_from_response(called)
        result = llama_index.core.llms.ChatMessage(role="tool", content=get_weather("Paris"), additional_kwargs={"tool_call_id": call.tool_id})
        answer = self.llm().chat([*self.messages(WEATHER), called.message, result])
        self.assertTrue(answer.message.content)

    def test_texts_are_embedded(self):
        encoder = llama_index.embeddings.openai_like.OpenAILikeEmbedding(model_name=ENCODER, api_base=API, max_retries=0)
        self.assertEqual([len(vector) for vector in encoder.get_text_embedding_batch(TEXTS)], [WIDTH, WIDTH])
        self.assertEqual(len(encoder.get_query_embedding(TEXTS[0])), WIDTH)
        narrow = llama_index.embeddings.openai_like.OpenAILikeEmbedding(model_name=ENCODER, api_base=API, max_retries=0, dimensions=4)
        self.assertEqual(len(narrow.get_text_embedding(TEXTS[0])), 4)


class Instructor(unittest.TestCase):
    def client(self, mode):
        return instructor.from_openai(openai.OpenAI(base_url=API, api_key="unused", max_retries=0, timeout=120), mode=mode)

    def fields(self, **fields):
        return {"model": MODEL, "messages": [{"role": "user", "content": ORDER}], "temperature": 0, "seed": 1, "max_tokens": 100,
                "max_retries": 1, **fields}

    def test_calls_become_objects(self):
        for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
            pet, raw = self.client(mode).chat.completions.create_with_completion(response_model=Pet, **self.fields())
            self.assertIsInstance(pet, Pet, mode)
            self.assertGreater(raw.usage.completion_tokens, 0)

    def test_the_mode_with_no_schema_gets_an_object(self):
        try:
            self.assertIsInstance(self.client(instructor.Mode.JSON).chat.completions.create(response_model=Pet, **self.fields()), Pet)
        except (instructor.core.exceptions.InstructorRetryException, instructor.core.exceptions.IncompleteOutputException) as error:
            # Only the model is to blame: the text is an object.
            self.assertTrue(error.last_completion.choices[0].message.content.lstrip().startswith("{"))

    def test_objects_arrive_while_they_are_written(self):
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
            pieces = list(self.client(mode).chat.completions.create_partial(response_model=Pet, **self.fields()))
            self.assertGreater(len(pieces), 1)
            self.assertIn(pieces[-1].kind, ("cat", "dog"))


class PydanticAi(unittest.TestCase):
    SETTINGS = {"temperature": 0, "seed": 1, "max_tokens": 100}

    def agent(self, **fields):
        provider = pydantic_ai.providers.openai.OpenAIProvider(base_url=API, api_key="unused")
        model = pydantic_ai.models.openai.OpenAIChatModel(MODEL, provider=provider)
        return pydantic_ai.Agent(model, **{"model_settings": self.SETTINGS, **fields})

    def test_an_answer_has_text_and_usage(self):
        result = self.agent().run_sync(QUESTION)
        self.assertTrue(result.output)
        self.assertEqual(result.usage.requests, 1)
        self.assertGreater(result.usage.input_tokens, 0)

    def test_an_answer_is_parsed_into_its_type(self):
        for output in (Pet, pydantic_ai.ToolOutput(Pet, strict=True), pydantic_ai.NativeOutput(Pet), pydantic_ai.NativeOutput(Pet, strict=True)):
            self.assertIsInstance(self.agent(output_type=output).run_sync(ORDER).output, Pet, output)

    def test_a_tool_is_called_and_its_result_goes_back(self):
        called = []

        def weather(city: str) -> str:
            """Get the weather of a city."""
            called.append(city)
            return get_weather(city)

        def settings(context):
            return {**self.SETTINGS, "tool_choice": "none" if called else ["weather"], "parallel_tool_calls": False}

        result = self.agent(tools=[weather], model_settings=settings).run_sync(WEATHER)
        self.assertEqual((len(called), result.usage.requests, result.usage.tool_calls), (1, 2, 1))
        self.assertTrue(result.output)

    def test_streams_add_up(self):
        async def stream():
            async with self.agent().run_stream(QUESTION) as result:
                return [piece async for piece in result.stream_text(delta=True, debounce_by=None)], result.usage

        pieces, usage = asyncio.run(stream())
        self.assertGreater(len(pieces), 3)
        self.assertEqual("".join(pieces), self.agent().run_sync(QUESTION).output)
        self.assertGreater(usage.output_tokens, 0)

    def test_an_answer_in_its_type_is_streamed(self):
        async def stream(output):
            async with self.agent(output_type=output).run_stream(ORDER) as result:
                return [piece async for piece in result.stream_output(debounce_by=None)][-1]

        for output in (Pet, pydantic_ai.NativeOutput(Pet)):
            self.assertIsInstance(asyncio.run(stream(output)), Pet, output)


class LiteLlm(unittest.TestCase):
    def complete(self, text=QUESTION, **fields):
        return litellm.completion(**{"model": f"openai/{MODEL}", "api_base": API, "api_key": "unused", "num_retries": 0, "temperature": 0, "seed": 1,
                                     "messages": [{"role": "user", "content": text}], "max_tokens": 16, **fields})

    def test_an_answer_has_text_and_usage_and_its_stream_adds_up_to_it(self):
        answer = self.complete()
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        chunks = list(self.complete(stream=True, stream_options={"include_usage": True}))
        rebuilt = litellm.stream_chunk_builder(chunks)
        self.assertEqual(rebuilt.choices[0].message.content, answer.choices[0].message.content)
        self.assertEqual(rebuilt.usage.completion_tokens, answer.usage.completion_tokens)

    def test_calls_and_their_results_go_back_and_forth(self):
        fields = {"tools": [WEATHER_TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}
        message = self.complete(WEATHER, **fields).choices[0].message
        [call] = message.tool_calls
        self.assertEqual((call.function.name, set(json.loads(call.function.arguments))), ("get_weather", {"city"}))
        rebuilt = litellm.stream_chunk_builder(list(self.complete(WEATHER, stream=True, **fields)))
        self.assertEqual(rebuilt.choices[0].message.tool_calls[0].function.arguments, call.function.arguments)
        result = {"role": "tool", "tool_call_id": call.id, "content": get_weather("Paris")}
        answer = self.complete(messages=[{"role": "user", "content": WEATHER}, message.model_dump(), result], tools=[WEATHER_TOOL], tool_choice="none")
        self.assertTrue(answer.choices[0].message.content)

    def test_an_answer_is_of_its_type(self):
        answer = self.complete(ORDER, response_format=Pet, max_tokens=100)
        Pet.model_validate_json(answer.choices[0].message.content)

    def test_other_apis_work_too(self):
        response = litellm.responses(model=f"openai/{MODEL}", api_base=API, api_key="unused", input=QUESTION, temperature=0, max_output_tokens=16)
        self.assertEqual(response.output[0].content[0].text, self.complete().choices[0].message.content)
        text = litellm.text_completion(model=f"text-completion-openai/{MODEL}", api_base=API, api_key="unused", prompt="One, two,", max_tokens=4)
        self.assertTrue(text.choices[0].text)

    def test_texts_are_embedded(self):
        answer = litellm.embedding(model=f"openai/{ENCODER}", api_base=API, api_key="unused", input=TEXTS)
        self.assertEqual([len(item["embedding"]) for item in answer.data], [WIDTH, WIDTH])
        self.assertGreater(answer.usage.prompt_tokens, 0)

    def test_errors_keep_their_class(self):
        with self.assertRaises(litellm.ContextWindowExceededError):
            self.complete("word " * 40_000)
        with self.assertRaises(litellm.NotFoundError):
            self.complete(model="openai/no-such-model")


class Llm(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        models = [{"model_id": "served", "model_name": MODEL, "api_base": API, "supports_schema": True, "supports_tools": True},
                  {"model_id": "raw", "model_name": MODEL, "api_base": API, "completion": True},
                  {"model_id": "newer", "model_name": MODEL, "api_base": API, "responses": True, "supports_schema": True, "supports_tools": True}]
        # JSON is YAML.
        pathlib.Path(self.folder, "extra-openai-models.yaml").write_text(json.dumps(models))

    def llm(self, *arguments, model="served"):
        command = ["-m", model, "-o", "temperature", "0", "-o", "max_tokens", "100", *arguments]
        done = click.testing.CliRunner().invoke(llm.cli.cli, command, env={"LLM_USER_PATH": self.folder})
        self.assertEqual(done.exit_code, 0, done.output)
        return done

    def test_an_answer_is_printed_whole_and_as_it_comes(self):
        for model in ("served", "newer"):
            whole = self.llm("--no-stream", "--usage", QUESTION, model=model)
            self.assertTrue(whole.stdout.strip())
            self.assertRegex(whole.stderr, r"Token usage: \d+ input, \d+ output")
            self.assertEqual(self.llm(QUESTION, model=model).stdout, whole.stdout)
        self.assertTrue(self.llm("The capital of France is", model="raw").stdout.strip())

    def test_an_answer_keeps_to_a_schema(self):
        for model in ("served", "newer"):
            Pet.model_validate_json(self.llm("--schema", json.dumps(Pet.model_json_schema()), ORDER, model=model).stdout)

    def test_a_tool_is_offered(self):
        self.assertTrue(self.llm("-T", "llm_version", QUESTION).stdout.strip())

    @unittest.skipUnless("qwen" in MODEL, "the default model calls no tool unless it must")
    def test_a_tool_is_called_and_its_result_goes_back(self):
        tool = inspect.getsource(get_weather)
        done = self.llm("--functions", tool, "--td", WEATHER)
        self.assertIn("Tool call: get_weather({'city': ", done.stderr)
        self.assertIn("sunny", done.stderr)
        self.assertTrue(done.stdout.strip())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
