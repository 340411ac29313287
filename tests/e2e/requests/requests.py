#!/usr/bin/env python3
"""What rows may ask for, checked from outside: requests.py --binary PATH GROUP…

oracle     greedy choices after biases, penalties, bans and allowed tokens, worked out again from the log-probabilities
chi2       draws of n samples against the probabilities that the model's own log-probabilities give
openai     an OpenAI batch file answered in lines that PyPI's openai types parse (left out, and said, without that package)
batch      10,000 rows of the OpenAI form, a hundred different faults among them: good ones answered, bad ones named, memory flat
spool      .gz, .zst, standard input, a pipe; what is cut short is refused with the offset
configs    the examples of configs/, at several layouts
structured random draws held to schemas, patterns and choices at every layout; bad schemas are error rows in place
scores     continuations: the sums of what prompt_logprobs says
"""
import argparse
import datetime
import gzip
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import run as e2e  # noqa: E402

MODEL = str(e2e.GOLDEN / "llama-8h4kv")
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


class Failure(Exception):
    pass


def expect(condition, what):
    if not condition:
        raise Failure(what)


class Program:
    def __init__(self, binary, work):
        self.binary, self.work = binary, pathlib.Path(work)

    def __call__(self, rows, *arguments, layout=(1, 1, 1), code=0, name="out.jsonl", stdin=None, inputs=("in.jsonl",)):
        """Runs rows (a list, or None for files that are there) and gives the lines of the output."""
        if rows is not None:
            (self.work / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dp, pp, tp = layout
        command = ["run", "--model", MODEL, "-i", *inputs, "-o", name, "--overwrite", "-dp", str(dp), "-pp", str(pp),
                   "-tp", str(tp), *map(str, arguments)]
        done = e2e.launch(self.binary, dp * pp * tp, "", command, self.work, **({"stdin": stdin} if stdin else {}))
        self.stderr = done.stderr.decode(errors="replace")
        expect(done.returncode == code, f"exit code {done.returncode}, expected {code}\n{self.stderr}")
        path = self.work / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- the oracle: a row's raw log-probabilities, then what the row asks for, in order

def choose(row, logprobs, output, prompt_ids):
    """The greedy token, or None where the 20 known ones do not decide. logprobs: {id: logprob} of the likeliest."""
    floor = min(logprobs.values())
    scores = {}
    for token in set(logprobs) | {int(t) for t in row.get("logit_bias", {})}:
        if row.get("allowed_token_ids") and token not in row["allowed_token_ids"]:
            continue
        known = token in logprobs
        score = logprobs.get(token, floor)
        score += row.get("logit_bias", {}).get(str(token), 0)
        count = output.count(token)
        score -= row.get("frequency_penalty", 0) * count + (row.get("presence_penalty", 0) if count else 0)
        if any(word[-1] == token and output[len(output) - len(word) + 1:] == word[:-1] and len(output) >= len(word) - 1
               for word in row.get("bad", [])):
            continue
        if len(output) < row.get("min_tokens", 0) and token in [2, *row.get("stop_token_ids", [])]:
            continue
        scores[token] = (score, known)
    if not scores:
        return None
    best = max(scores, key=lambda token: (scores[token][0], -token))
    others = [score for token, (score, _) in scores.items() if token != best]
    lowest = floor + max(0, -row.get("presence_penalty", 0)) + max(0, -row.get("frequency_penalty", 0)) * 8
    if not scores[best][1] or scores[best][0] < lowest + 1e-3 or (others and max(others) > scores[best][0] - 1e-3):
        return None
    return best


def check_oracle(mpinfer):
    base = {"prompt": "The oracle says", "max_tokens": 12, "temperature": 0, "logprobs": 20}
    plain = mpinfer([base], "--return-token-ids")[0]["output_token_ids"]
    likely = sorted(set(plain))
    more = [dict(frequency_penalty=1.5), dict(presence_penalty=2), dict(frequency_penalty=-0.7, presence_penalty=0.3),
            dict(logit_bias={str(likely[0]): -100, str(likely[-1]): -2.5}), dict(logit_bias={str(t): -3 for t in likely}),
            dict(min_tokens=9), dict(min_tokens=6, stop_token_ids=likely[:3]),
            dict(allowed_token_ids=likely), dict(allowed_token_ids=likely, frequency_penalty=2, logit_bias={str(likely[0]): 1})]
    rows = [dict(base, prompt=f"{base['prompt']} {i}", **extra) for i in range(6) for extra in [{}, *more]]
    decided = 0
    for layout in ((1, 1, 1), (1, 2, 1), (2, 1, 1)):
        answers = mpinfer(rows, "--return-token-ids", layout=layout)
        for row, answer in zip(rows, answers):
            output = []
            for step, token in zip(answer["logprobs"], answer["output_token_ids"]):
                best = choose(row, dict(step["top"]), output, None)
                expect(best is None or best == token, f"{row}: step {len(output)} chose {token}, the oracle {best}")
                known = dict(step["top"])
                expect(token not in known or known[token] == step["logprob"], f"{step}")
                expect(step["top"] == sorted(step["top"], key=lambda pair: -pair[1]), f"{step}")
                decided += best is not None
                output.append(token)
            total = sum(step["logprob"] for step in answer["logprobs"])
            expect(abs(total - answer["cumulative_logprob"]) < 1e-3, "cumulative_logprob is not the sum")
    expect(decided > 600, f"the oracle decided only {decided} steps")
    # A penalty this large leaves what was in the prompt or drawn behind every other token of a positive logit.
    seen = list(range(3, 60))
    for answer in mpinfer([{"prompt_token_ids": seen, "temperature": 0, "max_tokens": 30, "ignore_eos": True, "repetition_penalty": 1e6}],
                          "--return-token-ids"):
        drawn = answer["output_token_ids"]
        expect(len(drawn) == 30 and len(set(drawn)) == 30 and not set(drawn) & set(seen), f"repeated: {drawn}")
    # A row's seed is all that its draws hang on; without one they hang on its place and on the run's seed.
    draw = {"prompt": "seeded", "max_tokens": 20, "ignore_eos": True}
    rows = [dict(draw, seed=5), draw, draw, dict(draw, seed=5), dict(draw, seed=6)]
    first, place, other, again, third = (answer["output"] for answer in mpinfer(rows))
    expect(first == again and len({first, place, other, third}) == 4, f"{[first, place, other, again, third]}")
    reseeded = [answer["output"] for answer in mpinfer(rows, "--seed", 1)]
    expect(reseeded[0] == first and reseeded[1] != place, f"{reseeded}")
    # Words: none of those banned is in the text, one at its own time and as a pair.
    free = mpinfer([dict(base, max_tokens=40)])[0]["output"]
    words = [c for c in dict.fromkeys(free) if c.isascii() and c.strip()][:4]
    pair = next((free[i:i + 2] for i in range(len(free) - 1) if free[i:i + 2].isascii() and free[i:i + 2].strip() == free[i:i + 2]),
                None)
    banned = [*words, *([pair] if pair else [])]
    expect(words, f"no word to ban in {free!r}")
    for answer in mpinfer([dict(base, max_tokens=40, bad_words=banned), dict(base, max_tokens=40, bad_words=banned[-1:])]):
        used = answer["bad_words"]
        expect(not any(word in answer["output"] for word in used), f"{used} in {answer['output']!r}")


def check_chi2(mpinfer):
    cases = [dict(), dict(temperature=0.6), dict(top_k=5), dict(top_p=0.5), dict(min_p=0.4),
             dict(temperature=1.3, top_k=12, top_p=0.8), dict(logit_bias={"70": 3, "71": 3})]
    base = {"prompt": "chi", "max_tokens": 1, "logprobs": 20, "ignore_eos": True}
    allowed = [answer_id for answer_id, _ in mpinfer([dict(base, temperature=0)])[0]["logprobs"][0]["top"]]
    rows = [dict(base, n=1024, allowed_token_ids=allowed, **case) for case in cases]
    for answer in mpinfer(rows, "--return-token-ids", "--seed", 11):
        raw = dict(answer["logprobs"][0][0]["top"])
        ids = sorted(raw)
        score = {t: raw[t] + answer.get("logit_bias", {}).get(str(t), 0) for t in ids}
        top = max(score.values())
        weight = {t: math.exp((score[t] - top) / answer.get("temperature", 1)) for t in ids}
        weight = {t: w for t, w in weight.items() if w >= answer.get("min_p", 0)}
        order = sorted(weight, key=lambda t: (-weight[t], t))
        order = order[:answer.get("top_k", len(order))]
        kept, mass, total = [], 0.0, sum(weight[t] for t in order)
        for t in order:
            if mass < answer.get("top_p", 1) * total or not kept:
                kept.append(t)
            mass += weight[t]
        total = sum(weight[t] for t in kept)
        drawn = [sample[0] for sample in answer["output_token_ids"]]
        expect(len(drawn) == 1024 and set(drawn) <= set(kept), f"drawn beyond the kept ones: {set(drawn) - set(kept)}")
        # Bins of at least five expected draws.
        bins, expected, seen = [], 0.0, 0
        for t in kept:
            expected, seen = expected + 1024 * weight[t] / total, seen + drawn.count(t)
            if expected >= 5:
                bins.append((expected, seen))
                expected, seen = 0.0, 0
        if expected and bins:
            bins[-1] = (bins[-1][0] + expected, bins[-1][1] + seen)
        statistic = sum((s - e) ** 2 / e for e, s in bins)
        freedom = max(1, len(bins) - 1)
        limit = freedom * (1 - 2 / (9 * freedom) + 3.7 * math.sqrt(2 / (9 * freedom))) ** 3  # one in 10,000
        expect(statistic < limit, f"chi-square {statistic:.1f} of {freedom}, limit {limit:.1f}: {answer.get('top_k')}")


# ---- OpenAI lines

def openai_rows():
    chat = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}], "model": "m"}
    return [
        {"custom_id": "chat", "method": "POST", "url": "/v1/chat/completions", "body": dict(chat, max_completion_tokens=4)},
        {"custom_id": "many", "method": "POST", "url": "/v1/chat/completions",
         "body": dict(chat, max_tokens=3, n=3, logprobs=True, top_logprobs=2, seed=5)},
        {"custom_id": "text", "method": "POST", "url": "/v1/completions",
         "body": {"model": "m", "prompt": "once", "max_tokens": 5, "logprobs": 3, "stop": ["zzzz"]}},
        {"custom_id": "parts", "method": "POST", "url": "/v1/chat/completions",
         "body": dict(chat, messages=[{"role": "user", "content": [{"type": "text", "text": "part"}]}], max_tokens=2)},
        {"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": dict(chat, stream=True)},
        {"prompt": "flat beside them", "max_tokens": 2},
    ]


def check_openai(mpinfer):
    (mpinfer.work / "chat.jinja").write_text(CHAT)
    outputs = []
    for layout in ((1, 1, 1), (2, 1, 1), (1, 2, 1)):
        answers = mpinfer(openai_rows(), "--chat-template", "chat.jinja", layout=layout, code=3)
        for answer in answers[:4]:
            expect(answer["response"]["body"].pop("created") > 1.6e9, "created is no time")
        outputs.append(answers)
    expect(outputs[0] == outputs[1] == outputs[2], "the layouts differ")
    answers = outputs[0]
    expect([a.get("custom_id") for a in answers] == ["chat", "many", "text", "parts", "bad", None], f"{answers}")
    expect(answers[4]["response"] is None and answers[4]["error"]["param"] == "stream", f"{answers[4]}")
    expect(answers[5]["output"] is not None and answers[5]["error"] is None, f"{answers[5]}")
    many = answers[1]["response"]["body"]
    expect([choice["index"] for choice in many["choices"]] == [0, 1, 2], f"{many}")
    expect(many["usage"]["completion_tokens"] == sum(len(c["logprobs"]["content"]) for c in many["choices"]), f"{many}")
    python = find_python("openai")
    if python is None:
        print("      without PyPI's openai: its types are not tried", flush=True)
        return
    code = """
import json, sys
from openai.types import Completion
from openai.types.chat import ChatCompletion
for line in sys.stdin:
    row = json.loads(line)
    if row.get("response") is None: continue
    body = dict(row["response"]["body"], created=1)
    kind = ChatCompletion if body["object"] == "chat.completion" else Completion
    parsed = kind.model_validate(body, strict=True)
    print(parsed.choices[0].finish_reason, parsed.usage.total_tokens)
"""
    lines = "".join(json.dumps(answer) + "\n" for answer in answers)
    done = subprocess.run([python, "-c", code], input=lines.encode(), capture_output=True, timeout=120)
    expect(done.returncode == 0 and len(done.stdout.splitlines()) == 4, done.stderr.decode())


def find_python(package):
    """A Python that has the package: this one, or that of a virtual environment named in TEST_PYTHON."""
    for python in (os.environ.get("TEST_PYTHON"), sys.executable):
        if python and subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode == 0:
            return python
    return None


def faults():
    """A hundred ways in which a row of the OpenAI form is bad: (row or bytes, code, param; None where nobody is to blame)."""
    def row(around=None, inside=None, chat=False):
        body = {"model": "m", "max_tokens": 2, **({"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"})}
        url = "/v1/chat/completions" if chat else "/v1/completions"
        return {"custom_id": "bad", "method": "POST", "url": url, "body": {**body, **(inside or {})}, **(around or {})}

    def chat(**inside):
        return row(inside=inside, chat=True)

    good = json.dumps(row()).encode()
    raw = [(b"no json", "invalid_json"), (b"[]", "invalid_json"), (b"null", "invalid_json"), (b"17", "invalid_json"),
           (good[:-1], "invalid_json"), (good + good, "invalid_json"), (good.replace(b'"x"', b"'x'"), "invalid_json"),
           (good.replace(b'"x"', b'"x",'), "invalid_json"), (good.replace(b'"x"', b"NaN"), "invalid_json"),
           (good.replace(b'"x"', b"1e999"), "invalid_json"), (good.replace(b'"x"', b"9" * 2000), "invalid_json"),
           (good.replace(b'"x"', b"[" * 200 + b"]" * 200), "invalid_json"), (good.replace(b"x", b"\x00"), "invalid_json"),
           (good.replace(b"x", b"\xff"), "invalid_utf8"), (good.replace(b"x", b"\xed\xa0\x80"), "invalid_utf8"),
           (good.replace(b"x", b"\\udc00"), "invalid_utf8")]
    found = [(line, code, None) for line, code in raw]
    found += [(row({"url": url}), "unsupported", "url") for url in ("/v1/embeddings", "/v1/responses", "", "/v1/completions/")]
    found += [(row({"method": method}), "unsupported", "method") for method in ("GET", "post")]
    found += [(row({"custom_id": "i" * 600}), "invalid_param", "custom_id")]
    found += [(row({"body": body}), "invalid_param", "body") for body in (None, [], "text", 5)]
    wrong = {  # field: values of a wrong type or outside their range
        "temperature": [9, -0.1, "warm"], "top_p": [0, 1.5, []], "min_p": [-1, 2], "top_k": [-2, 1.5], "max_tokens": [-1, 0, "2"],
        "n": [0, 5000, 1.5], "seed": ["s", 1.5], "stop": [5, [""], [1], ["s"] * 17, "s" * 300], "stop_token_ids": [[259], "2", [[2]]],
        "min_tokens": [3, -1], "presence_penalty": [3], "frequency_penalty": [-2.5], "repetition_penalty": [0],
        "ignore_eos": ["yes"], "logprobs": [21, "all"], "prompt_logprobs": [-1], "top_logprobs": [3],
        "logit_bias": [{"9999": 1}, {"5": 200}, {"five": 1}, [], {"5": "1"}], "allowed_token_ids": [[], [-1], 7],
        "bad_words": ["w", [""]], "skip_special_tokens": [0], "add_special_tokens": ["no"],
        "guided_regex": ["(a", 5], "guided_choice": [[], "a"], "guided_json": [{"type": "thing"}, "{"],
        "response_format": ["json", {"type": "json_schema"}], "structured_outputs": [{}, {"regex": "a", "choice": ["a"]}],
        "prompt_token_ids": [[300], "1 2"]}
    found += [(row(inside={name: value}), "invalid_param", name) for name, values in wrong.items() for value in values]
    found += [(row(inside={"prompt": None}), "invalid_param", "prompt"), (row(inside={"prompt": 5}), "invalid_param", "prompt"),
              (row(inside={"prompt": ""}), "empty_prompt", "prompt"), (row(inside={"prompt": []}), "empty_prompt", "prompt"),
              (row(inside={"prompt": "x" * 4000}), "prompt_too_long", None), (row(inside={"prompt": ["x", "y"]}), "unsupported", "prompt"),
              (row(inside={"n": 2, "temperature": 0}), "invalid_param", "n"),
              (row(inside={"guided_regex": "(?=a)"}), "unsupported", "guided_regex")]
    found += [(row(inside={name: value}), "unsupported", name) for name, value in
              {"surprise": 1, "stream": True, "echo": True, "suffix": "s", "best_of": 2, "messages": []}.items()]
    found += [(chat(messages=[]), "empty_prompt", "messages"), (chat(messages="hi"), "invalid_param", "messages"),
              (chat(messages=[1]), "invalid_param", "messages"), (chat(messages=[{"content": "x"}]), "invalid_param", "messages"),
              (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "unsupported", "messages"),
              (chat(messages=[{"role": "user"}] * 10_001), "invalid_param", "messages"), (chat(tools={}), "invalid_param", "tools"),
              (chat(tool_choice="required"), "unsupported", "tool_choice"), (chat(modalities=["audio"]), "unsupported", "modalities"),
              (chat(documents=[1]), "invalid_param", "documents"), (chat(chat_template_kwargs=[]), "invalid_param", "chat_template_kwargs"),
              (chat(messages=[{"role": "user", "content": "divide"}]), "template_error", None)]
    return found


RAISES = "{% for m in messages if m.content == 'divide' %}{{ 1 // 0 }}{% endfor %}" + CHAT


class MemoryWatch:
    """[(bytes in the journals, KiB of the largest rank)], taken all the time."""
    def __init__(self, mpinfer):
        self.mpinfer, self.samples, self.stop = mpinfer, [], threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.stop.wait(0.03):
            done = sum(path.stat().st_size for path in self.mpinfer.work.glob("out.jsonl.run/journal-*"))
            memory = []
            for folder in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    ours = os.readlink(folder / "exe") == self.mpinfer.binary and os.readlink(folder / "cwd") == str(self.mpinfer.work)
                    memory += re.findall(r"VmRSS:\s*(\d+)", (folder / "status").read_text()) if ours else []
                except OSError:
                    continue
            if memory:
                self.samples.append((done, max(map(int, memory))))

    def __enter__(self):
        self.thread.start()
        return self.samples

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def check_batch(mpinfer):
    (mpinfer.work / "chat.jinja").write_text(RAISES)
    found = faults()
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row, _, _ in found]
    expect(len(set(lines)) >= 100, f"only {len(set(lines))} different faults")

    def run(rows, *arguments):
        """One row in 80 is bad, in turn as many different ones as there are."""
        with open(mpinfer.work / "in.jsonl", "wb") as out:
            for i in range(rows):
                body = {"model": "m", "prompt": f"row {i}", "max_tokens": 1 + i % 3, "temperature": 0}
                good = {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body}
                out.write(lines[i // 80 % len(lines)] if i % 80 == 37 else json.dumps(good).encode())
                out.write(b"\n")
        return mpinfer(None, "--chat-template", "chat.jinja", "--kv-cache-memory-bytes", "2MiB", *arguments, layout=(2, 1, 1), code=3)

    rows = 10_000
    with MemoryWatch(mpinfer) as samples:
        answers = run(rows)
    expect(len(answers) == rows, f"{len(answers)} rows")
    messages = set()
    for i, answer in enumerate(answers):
        expect(answer["index"] == i, f"line {i + 1}: {answer}")
        error = answer["error"]
        if i % 80 != 37:
            expect(answer["custom_id"] == f"r{i}" and error is None, f"{answer}")
            expect(answer["response"]["body"]["usage"]["completion_tokens"] > 0, f"{answer}")
            continue
        row, code, param = found[i // 80 % len(found)]
        expect(answer.get("response") is None and error["code"] == code and error["line"] == i + 1, f"{row}: {answer}")
        expect(param is None or error["param"] == param, f"{row}: {answer}")
        messages.add(error["message"])
    expect(len(messages) > 90, f"only {len(messages)} different messages")
    # Flat: while rows run, nothing grows with those that are done.
    running = [memory for done, memory in samples if 0 < done < samples[-1][0]]
    expect(len(running) > 4 and max(running[-3:]) < running[0] + 6144, f"KiB of the largest rank while rows ran: {running}")
    separate = run(200, "--errors", "separate")
    errors = [json.loads(line) for line in (mpinfer.work / "out.jsonl.errors").read_text().splitlines()]
    expect(len(separate) == 197 and [e["index"] for e in errors] == [37, 117, 197], f"{len(separate)} and {errors}")


# ---- inputs that are written out first

def check_spool(mpinfer):
    rows = [{"prompt": f"row {i}", "max_tokens": 3, "temperature": 0} for i in range(300)]
    plain = "".join(json.dumps(row) + "\n" for row in rows).encode()
    expected = mpinfer(rows)
    half = len(plain) // 2
    (mpinfer.work / "a.jsonl.gz").write_bytes(gzip.compress(plain[:half]) + gzip.compress(plain[half:]))
    kinds = {"a.jsonl.gz": None}
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", "-o", "b.jsonl.zst"], input=plain, cwd=mpinfer.work, check=True)
        kinds["b.jsonl.zst"] = None
        cut = (mpinfer.work / "b.jsonl.zst").read_bytes()
        (mpinfer.work / "cut.zst").write_bytes(cut[:len(cut) // 2])
        mpinfer(None, inputs=("cut.zst",), code=4, name="cut.jsonl")
        expect("cut short at byte" in mpinfer.stderr, mpinfer.stderr)
    for name in kinds:
        for layout in ((1, 1, 1), (2, 1, 1)):
            expect(mpinfer(None, inputs=(name,), layout=layout) == expected, f"{name} {layout} differs")
    for layout in ((1, 1, 1), (2, 1, 1)):
        with open(mpinfer.work / "in.jsonl", "rb") as stdin:
            expect(mpinfer(None, inputs=("-",), layout=layout, stdin=stdin, name=f"s{layout[0]}.jsonl") == expected, "stdin differs")
    expect((mpinfer.work / "s1.jsonl.run/input/0.jsonl").read_bytes() == plain, "standard input was not kept")
    os.mkfifo(mpinfer.work / "pipe")
    with subprocess.Popen(["cp", "in.jsonl", "pipe"], cwd=mpinfer.work):
        expect(mpinfer(None, inputs=("pipe",), name="p.jsonl") == expected, "the pipe's rows differ")
    data = (mpinfer.work / "a.jsonl.gz").read_bytes()
    for name, content, said in (("cut.gz", data[:-40], "cut short at byte"), ("bad.gz", b"no gzip at all", "damaged gzip data at byte"),
                                ("flip.gz", data[:60] + bytes([data[60] ^ 255]) + data[61:], "byte")):
        (mpinfer.work / name).write_bytes(content)
        mpinfer(None, inputs=(name,), code=4, name="refused.jsonl")
        expect(name in mpinfer.stderr and said in mpinfer.stderr, mpinfer.stderr)
    expect(not (mpinfer.work / "refused.jsonl").exists(), "a refused input gave an output")


def check_scores(mpinfer):
    prompt, continuations = "What comes next is", [" a", " the end", "!"]
    rows = [{"prompt": prompt, "continuations": continuations},
            *({"prompt": prompt + text, "max_tokens": 0, "prompt_logprobs": 0} for text in continuations)]
    outputs = []
    for layout in ((1, 1, 1), (2, 1, 1), (1, 2, 1)):
        outputs.append(mpinfer(rows, layout=layout))
    expect(outputs[0] == outputs[1] == outputs[2], "the layouts differ")
    scored, *whole = outputs[0]
    expect(len(scored["scores"]) == 3 and scored["output"] is None, f"{scored}")
    for score, row in zip(scored["scores"], whole):
        tokens = row["prompt_logprobs"][-score["num_tokens"]:]
        expect(abs(sum(t["logprob"] for t in tokens) - score["logprob"]) < 1e-3, f"{score} and {tokens}")
        expect(score["is_greedy"] == all(t["rank"] == 1 for t in tokens), f"{score} and {tokens}")
        expect(row["output"] == "" and row["completion_tokens"] == 0, f"{row}")
    # Rows a sample: lines that say which.
    lines = mpinfer([{"prompt": "a", "n": 3, "max_tokens": 2}], "--samples", "rows", "--output-field", "answer")
    expect([line["sample"] for line in lines] == [0, 1, 2] and all("answer" in line for line in lines), f"{lines}")


SCHEMA = {"type": "object", "additionalProperties": False, "required": ["id", "tags"],
          "properties": {"id": {"type": "integer", "minimum": -20, "maximum": 300}, "note": {"type": "string", "maxLength": 5},
                         "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 2},
                         "ok": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/code"}]}},
          "$defs": {"code": {"type": "string", "pattern": "^[A-C]{2}\\d$"}}}


def fits_schema(text):
    value = json.loads(text)
    order = [key for key in ("id", "note", "tags", "ok") if key in value]
    return (list(value) == order and {"id", "tags"} <= set(value) and type(value["id"]) is int and -20 <= value["id"] <= 300
            and len(value.get("note", "")) <= 5 and 1 <= len(value["tags"]) <= 2 and set(value["tags"]) <= {"red", "green"}
            and (isinstance(value.get("ok", True), bool) or re.fullmatch(r"[A-C]{2}\d", value["ok"]) is not None))


def check_structured(mpinfer):
    pattern = r"(?:[a-f]{1,3}-){2}[0-9]+|é?[^x]{2}\."
    kinds = [({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, fits_schema),
             ({"structured_outputs": {"json": json.dumps(SCHEMA)}, "ignore_eos": True, "n": 3}, fits_schema),
             ({"guided_regex": pattern, "min_tokens": 30}, lambda text: re.fullmatch(pattern, text)),
             ({"guided_choice": ["yes", "no", "never"], "min_tokens": 40, "bad_words": ["n"]},
              lambda text: text in ("yes", "no", "never")),
             ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
             ({"sampling_params": {"guided_choice": ["a"]}, "frequency_penalty": 2}, lambda text: text == "a")]
    rows = [{"prompt": f"form {seed}", "seed": seed, "max_tokens": 120, **asked} for seed in range(25) for asked, _ in kinds]
    rows += [{"prompt": "greedy", "temperature": 0, "max_tokens": 120, **asked} for asked, _ in kinds if "n" not in asked]
    checks = [fits for _ in range(25) for _, fits in kinds] + [fits for asked, fits in kinds if "n" not in asked]
    outputs = {layout: mpinfer(rows, layout=layout) for layout in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))}
    expect(outputs[1, 1, 1] == outputs[2, 1, 1] == outputs[1, 2, 1], "the layouts differ")
    for layout, answers in outputs.items():
        ended = 0
        for answer, fits in zip(answers, checks):
            texts = answer["output"] if isinstance(answer["output"], list) else [answer["output"]]
            reasons = answer["finish_reason"] if isinstance(answer["finish_reason"], list) else [answer["finish_reason"]]
            for text, reason in zip(texts, reasons):
                if reason == "stop":
                    expect(fits(text), f"{layout}: {text!r} of {answer}")
                    ended += 1
        expect(ended > 120, f"{layout}: only {ended} values ended in their tokens")
    # Short answers first make the engine expect little; then the long ones lose their KV and go on where they were.
    rows = [{"prompt": f"s {i}", "guided_choice": ["a"]} for i in range(300)]
    rows += [{"prompt": f"form {i}", "max_tokens": 110, "guided_regex": "([a-c]{2}-){25,}[0-9]{9}"} for i in range(40)]
    roomy = mpinfer(rows)
    for layout, memory in (((1, 1, 1), "300KiB"), ((1, 2, 1), "150KiB")):
        expect(mpinfer(rows, "--kv-cache-memory-bytes", memory, layout=layout) == roomy, f"{layout} {memory}: others than with room")
        report = json.loads((mpinfer.work / "out.jsonl.run/report.json").read_text())
        expect(sum(rank["preemptions"] for rank in report["ranks"]) > 0, "nothing was preempted")
    # Error rows stand in place; the rows around them are answered.
    good = {"prompt": "x", "max_tokens": 20, "guided_choice": ["fine"]}
    bad = [({"guided_json": {"type": "integer", "multipleOf": 3}}, "unsupported", "#/multipleOf"), ({"guided_regex": "(a"}, "invalid_param", "("),
           ({"response_format": {"type": "grammar"}}, "unsupported", "grammar"), ({"guided_regex": "(a|b)*a(a|b){30}"}, "unsupported", "too large")]
    body = {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"model": "m", **good}}
    answers = mpinfer([row for asked, _, _ in bad for row in (good, {"prompt": "x", **asked})] + [body], code=3)
    for i, (_, code, word) in enumerate(bad):
        expect(answers[2 * i]["output"] == "fine" and answers[2 * i]["finish_reason"] == "stop", f"{answers[2 * i]}")
        error = answers[2 * i + 1]["error"]
        expect(error["code"] == code and word in error["message"] and error["line"] == 2 * i + 2, f"{error}")
    expect(answers[-1]["response"]["body"]["choices"][0]["text"] == "fine", f"{answers[-1]}")


def check_configs(mpinfer):
    """The byte-level model sees their long prompts as many tokens: a longer context than its own is not needed."""
    (mpinfer.work / "chat.jinja").write_text(CHAT)
    examples = pathlib.Path(e2e.HERE).parents[1] / "configs"
    names = [str(examples / f"{name}.jsonl") for name in ("chat", "openai_batch", "eval", "samples", "structured")]
    outputs = []
    for layout in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1)):
        answers = mpinfer(None, "--chat-template", "chat.jinja", "--seed", 3, inputs=names, layout=layout)
        for answer in answers:
            if "response" in answer:
                answer["response"]["body"].pop("created")
        outputs.append(answers)
    expect(all(answers == outputs[0] for answers in outputs), "the layouts differ")
    answers = outputs[0]
    expect(len(answers) == 10 and all(answer["error"] is None for answer in answers), f"{answers}")
    expect(answers[2]["response"]["body"]["object"] == "chat.completion", f"{answers[2]}")
    expect(answers[4]["prompt_logprobs"][0] is None and len(answers[5]["scores"]) == 2, f"{answers[4:6]}")
    expect(len(answers[6]["output"]) == 4, f"{answers[6]}")
    order, phone, answer = answers[7:]
    expect(all(row["finish_reason"] == "stop" for row in answers[7:]), f"{answers[7:]}")
    value = json.loads(order["output"])
    datetime.date.fromisoformat(value["day"])
    expect(list(value) == ["item", "boxes", "day"] and value["item"] in ("tea", "coffee") and 1 <= value["boxes"] <= 99, f"{order}")
    expect(re.fullmatch(r"\(\d{3}\) \d{3}-\d{4}", phone["output"]) and answer["output"] in ("yes", "no"), f"{answers[8:]}")


GROUPS = {"oracle": check_oracle, "configs": check_configs, "chi2": check_chi2, "openai": check_openai, "batch": check_batch, "spool": check_spool,
          "scores": check_scores, "structured": check_structured}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    failed = 0
    for name in options.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="mpinfer-requests-") as work:
            try:
                GROUPS[name](Program(str(pathlib.Path(options.binary).resolve()), work))
                print(f"ok    {name}", flush=True)
            except (Failure, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
