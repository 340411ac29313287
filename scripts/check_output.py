#!/usr/bin/env python3
"""Checks an answer file against its input, with nothing of mpinfer's own: every row once, in input order, its own members as
they were, our members with the types of the flat format. Exit 0: all right; 1: what is wrong, a line each; 2: usage.

  check_output.py OUT IN... [--skip N] [--limit N] [--expect FILE]   (--expect: OUT must equal FILE byte for byte)
"""
import argparse
import json
import sys

OURS = ("index", "output", "finish_reason", "stop_reason", "prompt_tokens", "completion_tokens", "error",
        "output_token_ids", "cumulative_logprob", "logprobs", "prompt_logprobs")
ALWAYS = OURS[:7]
MOST_COMPLAINTS = 20


def input_lines(paths):
    """Bytes of every row: lines that are not blank, without their end and a byte-order mark at the file's beginning."""
    for path in paths:
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                if number == 0 and line.startswith(b"\xef\xbb\xbf"):
                    line = line[3:]
                line = line.rstrip(b"\n")
                if line.endswith(b"\r"):
                    line = line[:-1]
                if line.strip(b" \t\r"):
                    yield line


def parsed(line):
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def complaints_of(index, row, source):
    """What is wrong with the output row of input row index."""
    missing = [name for name in ALWAYS if name not in row]
    if missing:
        yield f"members are missing: {', '.join(missing)}"
        return
    if row["index"] != index:
        yield f"index is {row['index']}"
    for key, value in (source or {}).items():
        if key not in OURS and (key not in row or row[key] != value) and value == value:
            yield f"member {key!r} is not the input's"
    if row["error"] is not None:
        error = row["error"]
        if not isinstance(error, dict) or not isinstance(error.get("code"), str) or not error.get("message"):
            yield "error is no object with code and message"
        if row["output"] is not None or row["finish_reason"] is not None:
            yield "an error row has an answer"
        return
    if source is None:
        yield "a line that is no object has an answer"
    if row["finish_reason"] not in ("stop", "length"):
        yield f"finish_reason is {row['finish_reason']!r}"
    for name in ("prompt_tokens", "completion_tokens"):
        if not isinstance(row[name], int) or row[name] < 0:
            yield f"{name} is {row[name]!r}"
    if "output_token_ids" in row and isinstance(row["output_token_ids"], list):
        ids = row["output_token_ids"]
        if ids and isinstance(ids[0], int) and len(ids) != row["completion_tokens"]:
            yield f"{len(ids)} ids, completion_tokens {row['completion_tokens']}"


def check(out, inputs, skip=0, limit=None):
    """Yields what is wrong."""
    sources = list(input_lines(inputs))
    end = len(sources) if limit is None else min(len(sources), skip + limit)
    with open(out, "rb") as file:
        data = file.read()
    if data and not data.endswith(b"\n"):
        yield f"{out}: the last line has no end"
    lines = data.split(b"\n")[:-1] if data else []
    expected = max(0, end - skip)
    if len(lines) != expected:
        yield f"{out}: {len(lines)} lines, expected {expected}"
    for place, line in enumerate(lines[:expected]):
        index = skip + place
        row = parsed(line)
        if row is None:
            yield f"{out}:{place + 1}: is no JSON object"
            continue
        for complaint in complaints_of(index, row, parsed(sources[index])):
            yield f"{out}:{place + 1}: {complaint}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--expect")
    options = parser.parse_args()
    wrong = 0
    for complaint in check(options.out, options.inputs, options.skip, options.limit):
        wrong += 1
        if wrong <= MOST_COMPLAINTS:
            print(complaint)
    if options.expect:
        with open(options.out, "rb") as one, open(options.expect, "rb") as other:
            if one.read() != other.read():
                wrong += 1
                print(f"{options.out}: differs from {options.expect}")
    if wrong > MOST_COMPLAINTS:
        print(f"… and {wrong - MOST_COMPLAINTS} more")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
