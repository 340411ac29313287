"""Bad rows, a good one after each; their codes are repeated in expected.jsonl."""
import sys

BAD = [
    (b"not json", "invalid_json"),
    (b"[1, 2]", "invalid_json"),
    (b"null", "invalid_json"),
    (b'"text"', "invalid_json"),
    (b'{"prompt": "x"', "invalid_json"),
    (b'{"prompt": "x"} {"prompt": "y"}', "invalid_json"),
    (b'{"prompt": "x", "temperature": NaN}', "invalid_json"),
    (b'{"prompt": "x", "a": 1e999}', "invalid_json"),
    (b'{"prompt": "x", "a": ' + b"9" * 1000000 + b"}", "invalid_json"),
    (b"[" * 100000, "invalid_json"),
    (b'{"prompt": "x", "a": ' + b'{"a":' * 100000 + b"1" + b"}" * 100000 + b"}", "invalid_json"),
    (b'{"prompt": "a\x00b"}', "invalid_json"),
    (b'{"prompt": "\xff\xfe"}', "invalid_utf8"),
    (b'{"prompt": "\xed\xa0\x80"}', "invalid_utf8"),
    (b'{"prompt": "\\ud800"}', "invalid_utf8"),
    (b'{"prompt": "' + b"x" * (65 << 20) + b'"}', "line_too_long"),
    (b'{"prompt": ""}', "empty_prompt"),
    (b'{"prompt_token_ids": []}', "empty_prompt"),
    (b'{"prompt": 5}', "invalid_param"),
    (b'{"prompt": null}', "invalid_param"),
    (b'{"text": "no prompt here"}', "invalid_param"),
    (b'{"prompt_token_ids": [1, -1]}', "invalid_param"),
    (b'{"prompt_token_ids": [259]}', "invalid_param"),
    (b'{"prompt_token_ids": "1 2"}', "invalid_param"),
    (b'{"prompt": "' + b"x" * 128 + b'"}', "prompt_too_long"),
    (b'{"prompt": "' + b"x" * 1000000 + b'"}', "prompt_too_long"),
    (b'{"prompt": "x", "max_tokens": 0}', "invalid_param"),
    (b'{"prompt": "x", "max_tokens": -5}', "invalid_param"),
    (b'{"prompt": "x", "max_tokens": 99999999999999999999}', "invalid_param"),
    (b'{"prompt": "x", "temperature": "NaN"}', "invalid_param"),
    (b'{"prompt": "x", "temperature": 3}', "invalid_param"),
    (b'{"prompt": "x", "top_p": 0}', "invalid_param"),
    (b'{"prompt": "x", "stop": ["", "y"]}', "invalid_param"),
    (b'{"prompt": "x", "max_tokens": 2, "min_tokens": 3}', "invalid_param"),
    (b'{"prompt": "x", "n": 2, "temperature": 0}', "invalid_param"),
    (b'{"prompt": "x", "sampling_params": {"max_new_tokens": 2}}', "unsupported"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', "template_error"),
    (b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}', "invalid_param"),
]

if __name__ == "__main__":
    for number, (line, _) in enumerate(BAD):
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.write(b'{"good": %d, "prompt": "hi", "max_tokens": 3, "ignore_eos": true}\n' % number)
