"""The `openai` package against a running daemon.

usage: test_sdk.py URL MODEL        (URL without /v1)
"""

import json
import math
import sys
import time
import typing
import unittest
import urllib.request

import openai
import openai.types.responses
import pydantic

URL, MODEL = sys.argv[1:3]
CLIENT = openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=0, timeout=120)
QUESTION = [{"role": "user", "content": "Name three colours."}]


def chat(**fields):
    return CLIENT.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 16, **fields})


def complete(**fields):
    return CLIENT.completions.create(**{"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8, **fields})


def metric(name):
    """Sum of a metric over its labels."""
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
    assert values, f"no metric {name}"
    return sum(values)


class Chat(unittest.TestCase):
    def test_an_answer_has_text_and_usage(self):
        answer = chat()
        choice, usage = answer.choices[0], answer.usage
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        self.assertGreater(usage.prompt_tokens, 0)
        self.assertLessEqual(usage.completion_tokens, 16)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertGreaterEqual(usage.prompt_tokens_details.cached_tokens, 0)

    def test_a_greedy_answer_is_repeatable_streamed_or_not(self):
        whole = chat().choices[0].message.content
        chunks = list(chat(stream=True))
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), whole)

    def test_a_stream_has_one_role_one_finish_and_then_usage(self):
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        *news, last = chunks
        self.assertEqual(last.choices, [])
        self.assertGreater(last.usage.completion_tokens, 0)
        self.assertGreaterEqual(last.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertTrue(all(chunk.choices for chunk in news))
        reasons = [chunk.choices[0].finish_reason for chunk in news]
        self.assertIn(reasons[-1], ("stop", "length"))
        self.assertEqual(set(reasons[:-1]), {None})

    def test_n_answers_are_told_apart_by_index(self):
        answer = chat(n=3, temperature=1.0, seed=7)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        again = chat(n=3, temperature=1.0, seed=7)
        self.assertEqual([c.message.content for c in again.choices], [c.message.content for c in answer.choices])
        seen = {choice.index for chunk in chat(n=3, temperature=1.0, seed=7, stream=True) for choice in chunk.choices}
        self.assertEqual(seen, {0, 1, 2})

    def test_logprobs_belong_to_the_tokens_of_the_answer(self):
        choice = chat(logprobs=True, top_logprobs=3).choices[0]
        entries = choice.logprobs.content
        text = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="ignore")
        self.assertTrue(text.startswith(choice.message.content))
        for entry in entries:
            self.assertLessEqual(entry.logprob, 0.0)
            self.assertEqual(len(entry.top_logprobs), 3)
            likeliest = max(entry.top_logprobs, key=lambda top: top.logprob)
            self.assertAlmostEqual(entry.logprob, likeliest.logprob, places=4)
        self.assertIsNone(chat().choices[0].logprobs)

    def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(self):
        whole = chat(max_tokens=32).choices[0].message.content
        stop = whole[len(whole) // 3 :][:4]
        answer = chat(max_tokens=32, stop=[stop])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.choices[0].message.content, whole[: whole.index(stop)])
        streamed = "".join(c.choices[0].delta.content or "" for c in chat(max_tokens=32, stop=stop, stream=True) if c.choices)
        self.assertEqual(streamed, whole[: whole.index(stop)])

    def test_a_token_limit_is_kept_under_both_names(self):
        for name in ("max_tokens", "max_completion_tokens"):
            answer = CLIENT.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"ignore_eos": True}, **{name: 5})
            self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (5, "length"))

    def test_a_repeated_prompt_is_cached_and_sharing_can_be_switched_off(self):
        messages = [{"role": "user", "content": "Repeat after me: " + "one two three four five " * 30}]
        chat(messages=messages)
        usage = chat(messages=messages).usage
        self.assertGreater(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens // 2)
        self.assertEqual(usage.model_extra["kv_sharing"]["prefix_tokens"], usage.prompt_tokens_details.cached_tokens)
        off = chat(messages=messages, extra_body={"kv_sharing": {"mode": "off"}}).usage
        self.assertEqual(off.prompt_tokens_details.cached_tokens, 0)

    def test_leaving_midway_frees_the_request(self):
        stream = chat(max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
        for _, chunk in zip(range(3), stream):
            self.assertTrue(chunk.id)
        self.wait_for_running(1)
        stream.close()
        self.wait_for_running(0)

    def wait_for_running(self, num_requests):
        deadline = time.monotonic() + 20
        while metric("vllm:num_requests_running") != num_requests:
            self.assertLess(time.monotonic(), deadline, f"{num_requests} requests should run")
            time.sleep(0.02)


class Completions(unittest.TestCase):
    def test_a_prompt_is_continued(self):
        answer = complete()
        self.assertEqual(answer.object, "text_completion")
        self.assertIn("Paris", answer.choices[0].text)

    def test_several_prompts_get_one_answer_each(self):
        answer = complete(prompt=["One, two,", "Red, green,"])
        self.assertEqual([choice.index for choice in answer.choices], [0, 1])
        self.assertEqual(answer.choices[0].text, complete(prompt="One, two,").choices[0].text)

    def test_token_ids_are_a_prompt(self):
        request = urllib.request.Request(f"{URL}/tokenize", b'{"prompt": "The capital of France is"}', {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            ids = json.load(answer)["tokens"]
        self.assertEqual(complete(prompt=ids).choices[0].text, complete().choices[0].text)

    def test_a_stream_adds_up_to_the_whole(self):
        self.assertEqual("".join(c.choices[0].text for c in complete(stream=True) if c.choices), complete().choices[0].text)

    def test_an_echoed_prompt_is_scored(self):
        answer = complete(echo=True, logprobs=2, max_tokens=1)
        choice = answer.choices[0]
        self.assertTrue(choice.text.startswith("The capital of France is"))
        logprobs = choice.logprobs
        self.assertEqual(len(logprobs.tokens), answer.usage.total_tokens)
        self.assertEqual(len(logprobs.token_logprobs), len(logprobs.tokens))
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(math.isfinite(value) and value <= 0 for value in logprobs.token_logprobs[1:]))
        self.assertEqual("".join(logprobs.tokens), choice.text)


class Models(unittest.TestCase):
    def test_the_served_model_is_listed_and_retrieved(self):
        self.assertIn(MODEL, [model.id for model in CLIENT.models.list()])
        self.assertEqual(CLIENT.models.retrieve(MODEL).id, MODEL)

    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            CLIENT.models.retrieve("no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.NotFoundError):
            chat(model="no-such-model")


class Pet(pydantic.BaseModel):
    name: str
    age: typing.Annotated[int, pydantic.Field(ge=0, le=30)]
    kind: typing.Literal["cat", "dog"]


class StructuredOutput(unittest.TestCase):
    def test_an_answer_is_parsed_into_its_type(self):
        parsed = CLIENT.chat.completions.parse(model=MODEL, messages=[{"role": "user", "content": "Describe a pet as JSON."}],
                                               response_format=Pet, temperature=1, seed=5, max_tokens=200)
        self.assertEqual(parsed.choices[0].finish_reason, "stop")
        self.assertIsInstance(parsed.choices[0].message.parsed, Pet)

    def test_a_stream_of_events_ends_with_the_parsed_answer(self):
        with CLIENT.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "Describe a pet as JSON."}],
                                            response_format=Pet, temperature=1, seed=6, max_tokens=200) as stream:
            parsed = stream.get_final_completion().choices[0].message.parsed
        self.assertIsInstance(parsed, Pet)

    def test_a_json_object_and_the_fields_of_peers(self):
        self.assertTrue(chat(response_format={"type": "json_object"}, max_tokens=64).choices[0].message.content.lstrip().startswith("{"))
        self.assertIn(chat(extra_body={"guided_choice": ["red", "blue"]}).choices[0].message.content, ["red", "blue"])
        self.assertRegex(complete(extra_body={"structured_outputs": {"regex": "[A-Z][a-z]{2,6}"}}).choices[0].text, "^[A-Z][a-z]{2,6}$")


def respond(**fields):
    return CLIENT.responses.create(**{"model": MODEL, "input": "Name three colours.", "temperature": 0, "max_output_tokens": 16, **fields})


class Responses(unittest.TestCase):
    def test_a_response_has_text_and_usage(self):
        response = respond(metadata={"a": "b"})
        self.assertTrue(response.id.startswith("resp_"))
        self.assertEqual((response.object, response.error, response.metadata), ("response", None, {"a": "b"}))
        self.assertIn(response.status, ("completed", "incomplete"))
        self.assertEqual(response.output_text, chat().choices[0].message.content)
        self.assertEqual(response.output[0].type, "message")
        usage = response.usage
        self.assertEqual(usage.total_tokens, usage.input_tokens + usage.output_tokens)
        self.assertGreaterEqual(usage.input_tokens_details.cached_tokens, 0)
        self.assertEqual(usage.model_extra["kv_sharing"]["mode"], "prefix")
        # Types are checked strictly here, which the package itself does not.
        openai.types.responses.Response.model_validate_json(response.model_dump_json())

    def test_a_limit_leaves_a_response_incomplete(self):
        response = respond(max_output_tokens=3, extra_body={"ignore_eos": True})
        self.assertEqual((response.status, response.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertEqual(response.usage.output_tokens, 3)

    def test_events_add_up_to_the_response(self):
        events = list(respond(stream=True))
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        self.assertEqual([event.type for event in events[:2]], ["response.created", "response.in_progress"])
        self.assertIn(events[-1].type, ("response.completed", "response.incomplete"))
        for event in events:
            type(event).model_validate_json(event.model_dump_json())
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual(text, events[-1].response.output_text)
        self.assertEqual(text, respond().output_text)

    def test_the_stream_helper_ends_with_the_response(self):
        with CLIENT.responses.stream(model=MODEL, input="Describe a pet as JSON.", text_format=Pet, temperature=1, max_output_tokens=200,
                                     extra_body={"seed": 5}) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    self.assertTrue(event.snapshot.endswith(event.delta))
            response = stream.get_final_response()
        self.assertIsInstance(response.output_parsed, Pet)

    def test_an_answer_is_parsed_into_its_type(self):
        response = CLIENT.responses.parse(model=MODEL, input="Describe a pet as JSON.", text_format=Pet, temperature=1, max_output_tokens=200,
                                          extra_body={"seed": 5})
        self.assertIsInstance(response.output_parsed, Pet)

    def test_logprobs_belong_to_the_text(self):
        part = respond(include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0]
        self.assertTrue(part.text and part.logprobs)
        self.assertTrue(all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in part.logprobs))

    def test_a_conversation_goes_on(self):
        first = respond(input="My name is Ada.", instructions="Be brief.")
        second = respond(input="And what is my name?", previous_response_id=first.id)
        self.assertEqual(second.previous_response_id, first.id)
        messages = [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": first.output_text},
                    {"role": "user", "content": "And what is my name?"}]
        self.assertEqual(second.output_text, chat(messages=messages).choices[0].message.content)
        history = [{"role": "user", "content": "My name is Ada."}, *[item.model_dump() for item in first.output],
                   {"role": "user", "content": "And what is my name?"}]
        self.assertEqual(respond(input=history).output_text, second.output_text)

    def test_a_response_is_retrieved_listed_and_deleted(self):
        response = respond(input=[{"role": "user", "content": text} for text in ("one", "two", "three")])
        self.assertEqual(CLIENT.responses.retrieve(response.id).output_text, response.output_text)
        pages = CLIENT.responses.input_items.list(response.id, limit=1, order="asc")
        self.assertEqual([item.content[0].text for item in pages], ["one", "two", "three"])
        with self.assertRaises(openai.BadRequestError):
            CLIENT.responses.cancel(response.id)
        CLIENT.responses.delete(response.id)
        for missing in (response.id, respond(store=False).id):
            with self.assertRaises(openai.NotFoundError):
                CLIENT.responses.retrieve(missing)
        with self.assertRaises(openai.BadRequestError) as caught:
            respond(previous_response_id=response.id)
        self.assertEqual(caught.exception.code, "previous_response_not_found")

    def test_what_is_not_supported_is_refused_by_name(self):
        image = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
        for param, fields in [("tools[0].type", {"tools": [{"type": "web_search"}]}), ("background", {"background": True}),
                              ("input[0].content[0].type", {"input": [{"role": "user", "content": [image]}]})]:
            with self.assertRaises(openai.BadRequestError) as caught:
                respond(**fields)
            self.assertEqual(caught.exception.param, param)


class Errors(unittest.TestCase):
    def check(self, param, **fields):
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(**fields)
        self.assertEqual(caught.exception.param, param)
        self.assertEqual(caught.exception.type, "invalid_request_error")
        self.assertTrue(caught.exception.body["message"])

    def test_a_value_out_of_range_names_its_field(self):
        self.check("temperature", temperature=-1)
        self.check("top_p", top_p=1.5)
        self.check("max_tokens", max_tokens=0)
        self.check("messages", messages=[])

    def test_a_known_field_that_is_not_supported_is_refused(self):
        self.check("modalities", modalities=["audio"])
        self.check("response_format", response_format={"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "x"}}})

    def test_an_unknown_field_is_tolerated(self):
        self.assertTrue(chat(extra_body={"a_field_of_tomorrow": 1}).choices)

    def test_a_required_tool_is_called_with_arguments_of_its_schema(self):
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
        tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters, "strict": True}}
        fields = {"model": MODEL, "messages": QUESTION, "tools": [tool], "tool_choice": "required", "temperature": 0, "max_tokens": 80}
        [call] = CLIENT.chat.completions.create(**fields, parallel_tool_calls=False).choices[0].message.tool_calls
        assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}
        pieces = [chunk.choices[0].delta.tool_calls for chunk in CLIENT.chat.completions.create(**fields, stream=True, parallel_tool_calls=False)]
        streamed = "".join(piece[0].function.arguments for piece in pieces if piece)
        assert streamed == call.function.arguments

    def test_a_prompt_that_is_too_long_is_refused_with_its_code(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(messages=[{"role": "user", "content": "word " * 40_000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertRegex(caught.exception.body["message"], r"\d+.*\d+")


class Embeddings(unittest.TestCase):
    TEXTS = ["the keeper crossed the old bridge", "quickly"]

    def test_the_form_that_the_package_asks_for_is_that_of_numbers(self):
        packed = CLIENT.embeddings.create(model="bert", input=self.TEXTS)
        plain = CLIENT.embeddings.create(model="bert", input=self.TEXTS, encoding_format="float")
        self.assertEqual([item.index for item in packed.data], [0, 1])
        for one, other in zip(packed.data, plain.data):
            self.assertEqual(len(one.embedding), 16)
            self.assertTrue(all(math.isclose(a, b, abs_tol=1e-7) for a, b in zip(one.embedding, other.embedding)))
            self.assertAlmostEqual(sum(x * x for x in one.embedding), 1, places=5)
        self.assertEqual(packed.usage.total_tokens, packed.usage.prompt_tokens)

    def test_fewer_dimensions_are_the_first_ones(self):
        whole, first = (CLIENT.embeddings.create(model="bert", input=self.TEXTS[0], **fields).data[0].embedding for fields in ({}, {"dimensions": 4}))
        length = math.sqrt(sum(x * x for x in whole[:4]))
        self.assertTrue(all(math.isclose(a / length, b, abs_tol=1e-6) for a, b in zip(whole, first)))
        self.assertEqual(len(first), 4)

    def test_an_input_that_is_too_long_is_named(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            CLIENT.embeddings.create(model="bert", input=["a", "river " * 400])
        self.assertEqual(caught.exception.param, "input[1]")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
