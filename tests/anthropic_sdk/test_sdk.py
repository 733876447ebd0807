"""The `anthropic` package against a running daemon.

usage: test_sdk.py URL MODEL        (URL without /v1)
"""

import sys
import unittest

import anthropic

URL, MODEL = sys.argv[1:3]
CLIENT = anthropic.Anthropic(base_url=URL, api_key="unused", max_retries=0, timeout=120)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def fields(**more):
    """Fields of a greedy request. The package has no argument for a temperature any more."""
    extra_body = {"temperature": 0, **more.pop("extra_body", {})}
    return {"model": MODEL, "messages": QUESTION, "max_tokens": 16, "extra_body": extra_body, **more}


def create(**more):
    return CLIENT.messages.create(**fields(**more))


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


class Messages(unittest.TestCase):
    def test_an_answer_has_text_and_usage(self):
        message = create()
        self.assertEqual((message.type, message.role, message.model), ("message", "assistant", MODEL))
        self.assertIn("Paris", text_of(message))
        self.assertIn(message.stop_reason, ("end_turn", "max_tokens"))
        self.assertIsNone(message.stop_sequence)
        usage = message.usage
        self.assertGreater(usage.input_tokens + usage.cache_read_input_tokens, 0)
        self.assertTrue(0 < usage.output_tokens <= 16)
        self.assertEqual(usage.cache_creation_input_tokens, 0)
        self.assertTrue(message._request_id)

    def test_a_turn_ends_by_itself_or_at_the_limit(self):
        self.assertEqual(create(max_tokens=3).stop_reason, "max_tokens")
        self.assertEqual(create(max_tokens=200).stop_reason, "end_turn")

    def test_system_and_content_may_be_blocks_with_hints(self):
        block = {"type": "text", "text": QUESTION[0]["content"], "cache_control": {"type": "ephemeral"}}
        as_blocks = create(system=[{**block, "text": "Answer briefly."}], messages=[{"role": "user", "content": [block]}])
        self.assertEqual(text_of(as_blocks), text_of(create(system="Answer briefly.")))

    def test_an_answer_continues_what_was_begun(self):
        begun = [*QUESTION, {"role": "assistant", "content": "The capital of France is the city of"}]
        self.assertTrue(text_of(create(messages=begun)).lstrip().startswith("Paris"))

    def test_an_answer_can_be_sent_back_as_history(self):
        first = create()
        follow_up = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And of Italy?"}]
        self.assertTrue(text_of(create(messages=follow_up)))

    def test_a_stop_sequence_ends_the_answer_and_is_named(self):
        whole = text_of(create(max_tokens=32))
        stop = whole[len(whole) // 3 :][:4]
        message = create(max_tokens=32, stop_sequences=["never said", stop])
        self.assertEqual((message.stop_reason, message.stop_sequence), ("stop_sequence", stop))
        self.assertEqual(text_of(message), whole[: whole.index(stop)])

    def test_a_repeated_prompt_is_read_from_the_cache_and_sharing_can_be_switched_off(self):
        messages = [{"role": "user", "content": "Repeat after me: " + "one two three four five " * 30}]
        create(messages=messages)
        usage = create(messages=messages).usage
        self.assertGreater(usage.cache_read_input_tokens, usage.input_tokens)
        self.assertEqual(usage.model_extra["kv_sharing"]["prefix_tokens"], usage.cache_read_input_tokens)
        off = create(messages=messages, extra_body={"kv_sharing": {"mode": "off"}}).usage
        self.assertEqual(off.cache_read_input_tokens, 0)
        self.assertEqual(off.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_tokens_are_counted_exactly(self):
        counted = CLIENT.messages.count_tokens(model=MODEL, messages=QUESTION, system="Answer briefly.")
        usage = create(system="Answer briefly.").usage
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_a_schema_constrains_the_answer(self):
        schema = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"], "additionalProperties": False}
        message = create(extra_body={"temperature": 1}, max_tokens=100, output_config={"format": {"type": "json_schema", "schema": schema}})
        self.assertRegex(text_of(message), r'^\s*\{\s*"kind"\s*:\s*"(cat|dog)"\s*\}\s*$')


WEATHER = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Tools(unittest.TestCase):
    asked = {
        "messages": [{"role": "user", "content": "What will the weather be in Paris tomorrow?"}],
        "tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 200,
    }

    def check(self, message):
        self.assertEqual(message.stop_reason, "tool_use")
        (call,) = [block for block in message.content if block.type == "tool_use"]
        self.assertTrue(call.id)
        self.assertEqual(call.name, "weather")
        self.assertIn(call.input["city"], ["Paris", "Oslo"])
        self.assertIn(call.input["days"], range(1, 8))
        return call

    def test_a_call_is_a_block_and_its_result_is_answered(self):
        message = create(**self.asked)
        call = self.check(message)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Rain."}]}
        history = [*self.asked["messages"], {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        answer = create(messages=history, tools=[WEATHER], tool_choice={"type": "none"})
        self.assertTrue(text_of(answer))

    def test_a_streamed_call_adds_up_to_the_whole(self):
        with CLIENT.messages.stream(**fields(**self.asked)) as stream:
            final = stream.get_final_message()
        self.assertEqual(self.check(final).input, self.check(create(**self.asked)).input)

    def test_tools_are_part_of_the_counted_prompt(self):
        counted = CLIENT.messages.count_tokens(model=MODEL, messages=QUESTION, tools=[WEATHER]).input_tokens
        self.assertGreater(counted, CLIENT.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens)
        usage = create(tools=[WEATHER], max_tokens=1).usage
        self.assertEqual(counted, usage.input_tokens + usage.cache_read_input_tokens)


class Streams(unittest.TestCase):
    def test_a_stream_adds_up_to_the_whole(self):
        whole = create()
        with CLIENT.messages.stream(**fields()) as stream:
            pieces = list(stream.text_stream)
            final = stream.get_final_message()
        self.assertGreater(len(pieces), 1)
        self.assertEqual("".join(pieces), text_of(whole))
        self.assertEqual(text_of(final), text_of(whole))
        self.assertEqual((final.stop_reason, final.usage.output_tokens), (whole.stop_reason, whole.usage.output_tokens))
        self.assertGreater(final.usage.input_tokens, 0)

    def test_raw_events_come_in_order(self):
        kinds = [event.type for event in create(stream=True, max_tokens=4)]
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})

    def test_a_stop_sequence_ends_a_stream(self):
        whole = text_of(create(max_tokens=32))
        stop = whole[len(whole) // 3 :][:4]
        with CLIENT.messages.stream(**fields(max_tokens=32, stop_sequences=[stop])) as stream:
            final = stream.get_final_message()
        self.assertEqual((final.stop_reason, final.stop_sequence), ("stop_sequence", stop))
        self.assertEqual(text_of(final), whole[: whole.index(stop)])


class Errors(unittest.TestCase):
    def check(self, error, kind, part, **more):
        with self.assertRaises(error) as caught:
            create(**more)
        self.assertEqual((caught.exception.body["type"], caught.exception.type), ("error", kind))
        self.assertIn(part, caught.exception.body["error"]["message"])
        self.assertEqual(caught.exception.body["request_id"], caught.exception.request_id)

    def test_a_bad_request_names_its_field(self):
        self.check(anthropic.BadRequestError, "invalid_request_error", "temperature", extra_body={"temperature": 1.5})
        self.check(anthropic.BadRequestError, "invalid_request_error", "max_tokens", max_tokens=0)
        self.check(anthropic.BadRequestError, "invalid_request_error", "stop_sequences", stop_sequences=["x"] * 17)
        source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
        image = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        self.check(anthropic.BadRequestError, "invalid_request_error", "image", messages=image)

    def test_a_prompt_that_is_too_long_is_refused(self):
        messages = [{"role": "user", "content": "word " * 40_000}]
        self.check(anthropic.BadRequestError, "invalid_request_error", "maximum context length", messages=messages)

    def test_an_unknown_model_is_not_found(self):
        self.check(anthropic.NotFoundError, "not_found_error", "no-such-model", model="no-such-model")

    def test_an_unknown_field_is_tolerated(self):
        self.assertTrue(create(extra_body={"a_field_of_tomorrow": 1}, service_tier="auto").content)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
