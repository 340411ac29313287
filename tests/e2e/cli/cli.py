#!/usr/bin/env python3
"""The command line as a user meets it: help and the table of options, what is printed once over several ranks, precedence of
flag, variable and file, and the exit codes of check, tokenize and plan. cli.py --binary PATH GROUP…
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
MODEL = str(ROOT / "tests/golden/llama-8h4kv")
COMMANDS = ("run", "plan", "check", "tokenize", "merge", "status")
LLAMA_70B = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8192,
             "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
             "max_position_embeddings": 131072, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "vocab_size": 128256,
             "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": 128001}


class Failure(Exception):
    pass


class Program:
    def __init__(self, binary, work):
        self.binary, self.work = binary, pathlib.Path(work)

    def __call__(self, *arguments, ranks=0, code=0, said="", **variables):
        """Runs mpinfer (under mpirun with ranks > 0), checks the exit code and that stderr holds said; gives stdout."""
        command = [self.binary, *map(str, arguments)]
        if ranks:
            command = ["mpirun", "-n", str(ranks), "--oversubscribe", *command]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MPINFER_")}
        environment.update({"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "ASAN_OPTIONS": "detect_leaks=0", **variables})
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, timeout=120)
        self.stderr = done.stderr.decode(errors="replace")
        out = done.stdout.decode()
        if done.returncode != code or said not in self.stderr:
            raise Failure(f"{' '.join(command[1:])}: exit code {done.returncode}, expected {code} and '{said}' in\n"
                          f"{self.stderr}\n{out}")
        return out

    def rows(self, name):
        return [json.loads(line) for line in (self.work / name).read_text().splitlines()]


def expect(condition, what):
    if not condition:
        raise Failure(what)


def options_of_help(text):
    """{(option, command): meaning} of --help-all; a long option has its meaning on the next line."""
    found, command, last = {}, None, None
    lines = text.split("\n")
    for line, following in zip(lines, lines[1:]):
        if line in COMMANDS:
            command = line
        elif line.startswith("Examples"):
            break
        elif command and line.startswith("    -"):
            short = not following.startswith(" " * 20)
            last = ((line[4:32] if short else line[4:]).strip(), command)
            found[last] = line[32:].strip() if short else ""
        elif last and line.startswith(" " * 20):
            found[last] += line.strip()
    return found


def options_of_document():
    found = {}
    for line in (ROOT / "apps/options.md").read_text().split("\n"):
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 5 and cells[1].startswith("`-"):
            for command in cells[2].split():
                found[(cells[1].strip("`"), command)] = cells[3]
    return found


def check_options(mpinfer):
    says, written = options_of_help(mpinfer("--help-all")), options_of_document()
    expect(len(says) > 100, f"only {len(says)} options read off --help-all")
    wrong = [f"{key}: --help-all says {says.get(key)!r}, apps/options.md {written.get(key)!r}"
             for key in sorted(says.keys() | written.keys()) if says.get(key) != written.get(key)]
    expect(not wrong, "\n".join(wrong))


def check_ranks(mpinfer):
    """Rank 0 alone speaks, and its code is the launcher's."""
    expect(mpinfer("--version", ranks=3).count("mpinfer ") == 1, "--version is not printed once")
    expect(mpinfer("run", "--help", ranks=2).count("--max-num-seqs") == 1, "help is not printed once")
    mpinfer("run", "--modle", "x", ranks=3, code=2, said="did you mean --model?")
    expect(mpinfer.stderr.count("did you mean") == 1, "a usage error is not printed once")
    (mpinfer.work / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n{"prompt": 1}\n')
    mpinfer("run", "--model", MODEL, "-i", "in.jsonl", "-o", "out.jsonl", ranks=2, code=3)
    mpinfer("check", "--model", MODEL, "-i", "in.jsonl", ranks=2, code=3)


def check_cores(mpinfer):
    """The cores of taskset stay, with a launcher and without; what mpirun binds is widened to them."""
    (mpinfer.work / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n')
    run = ("run", "--model", MODEL, "-i", "in.jsonl", "-o", "out.jsonl", "--overwrite")
    allowed = sorted(os.sched_getaffinity(0))
    for cores in (allowed, allowed[:1]):
        for ranks in (0, 1, 2):
            os.sched_setaffinity(0, cores)
            try:
                mpinfer(*run, ranks=ranks)
            finally:
                os.sched_setaffinity(0, allowed)
            threads = max(1, len(cores) // max(1, ranks))
            expect(re.search(f"{threads} threads?, cores {cores[0]}.* of {len(cores)}", mpinfer.stderr), f"cores {cores}, {ranks} ranks:\n{mpinfer.stderr}")


def check_precedence(mpinfer):
    """One value from a flag, one from a variable, one from the file: seen in the rows and in the manifest."""
    (mpinfer.work / "in.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "ab", "max_tokens": 1}\n')
    (mpinfer.work / "run.toml").write_text(f'model = "{MODEL}"\nmax-tokens = 7\nseed = 7\nignore-eos = true\n')
    common = ("run", "-c", "run.toml", "-i", "in.jsonl", "-o", "out.jsonl", "--overwrite")
    for extra, variables, tokens, origin in (
            ((), {}, 7, "run.toml: max-tokens"),
            ((), {"MPINFER_MAX_TOKENS": "5"}, 5, "MPINFER_MAX_TOKENS"),
            (("--max-tokens", "3"), {"MPINFER_MAX_TOKENS": "5"}, 3, "--max-tokens")):
        mpinfer(*common, *extra, **variables)
        counts = [row["completion_tokens"] for row in mpinfer.rows("out.jsonl")]
        expect(counts == [tokens, 1], f"{origin}: completion tokens {counts}, expected {[tokens, 1]}")
        manifest = (mpinfer.work / "out.jsonl.run/manifest.json").read_text()
        expect(f"{tokens} ({origin})" in manifest, f"'{tokens} ({origin})' is not in the manifest")
    mpinfer(*common, code=2, said="MPINFER_MAX_TOKEN: unknown variable", MPINFER_MAX_TOKEN="5")


def check_check(mpinfer):
    (mpinfer.work / "good.jsonl").write_text('{"prompt": "a"}\n{"prompt_token_ids": [1, 2]}\n')
    (mpinfer.work / "bad.jsonl").write_text('{"prompt": "a"}\n[]\n{"prompt": ""}\n{"prompt": "a", "top_p": 2}\n')
    out = mpinfer("check", "--model", MODEL, "-i", "good.jsonl")
    expect("rows: 2 in 1 file, 0 bad" in out, out)
    out = mpinfer("check", "--model", MODEL, "-i", "good.jsonl", "bad.jsonl", code=3)
    expect("rows: 6 in 2 files, 3 bad" in out and "bad.jsonl:2: invalid_json" in out and "empty_prompt: 1" in out, out)
    mpinfer("check", "--model", MODEL, "-i", "missing.jsonl", code=4, said="missing.jsonl")
    mpinfer("check", "--model", "/nowhere", "-i", "good.jsonl", code=5, said="/nowhere")
    mpinfer("check", "--model", MODEL, "-i", "good.jsonl", "-tp", "2", code=2, said="works: -dp 1 -pp 1 -tp 1")
    expect(sorted(path.name for path in mpinfer.work.iterdir()) == ["bad.jsonl", "good.jsonl"], "check left files behind")


def check_tokenize(mpinfer):
    """Text to ids to text, and the ids answer like the text."""
    texts = ["Hello, world", "caf\u00e9 \u6f22\u5b57 \U0001f600", "  two  spaces\n\ttab", "\u0000\u007f"]
    lines = [json.dumps({"id": i, "prompt": text}) for i, text in enumerate(texts)]
    (mpinfer.work / "text.jsonl").write_text("\n".join(lines) + "\n")
    mpinfer("tokenize", "--model", MODEL, "-i", "text.jsonl", "-o", "ids.jsonl")
    ids = mpinfer.rows("ids.jsonl")
    expect([row["id"] for row in ids] == [0, 1, 2, 3] and all(row["prompt_token_ids"] for row in ids), ids)
    mpinfer("tokenize", "--model", MODEL, "-i", "ids.jsonl", "-o", "back.jsonl", "--decode")
    back = [row["prompt"] for row in mpinfer.rows("back.jsonl")]
    expect(back == texts, f"{back} is not {texts}")
    for name in ("text", "ids"):
        mpinfer("run", "--model", MODEL, "-i", f"{name}.jsonl", "-o", f"{name}-out.jsonl", "--max-tokens", 4,
                "--temperature", 0)
    outputs = [[row["output"] for row in mpinfer.rows(f"{name}-out.jsonl")] for name in ("text", "ids")]
    expect(outputs[0] == outputs[1], f"{outputs}")
    mpinfer("tokenize", "--model", MODEL, "-i", "text.jsonl", "-o", "ids.jsonl", code=2, said="--overwrite")
    (mpinfer.work / "chat.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    (mpinfer.work / "row.jinja").write_text("{{ a }}+{{ b[0] }}")
    chats = [{"messages": [{"role": "user", "content": "a\"b"}], "prompt": "old"},
             {"custom_id": "x", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "c"}]}},
             {"custom_id": "y", "url": "/v1/completions", "body": {"prompt": "d"}}, {"a": 1, "b": ["z"]}]
    (mpinfer.work / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    mpinfer("tokenize", "--model", MODEL, "-i", "chats.jsonl", "-o", "chat-ids.jsonl", "--chat-template", "chat.jinja",
            "--system", "s", "--prompt-template", "row.jinja")
    rendered = [row.get("prompt") for row in mpinfer.rows("chat-ids.jsonl")]
    expect(rendered == ["<system>s<user>a\"b", "<system>s<user>c", None, "1+z"], f"{rendered}")
    mpinfer("tokenize", "--model", MODEL, "-i", "chats.jsonl", "-o", "none.jsonl", "--chat-template", "absent", code=2,
            said="absent")
    (mpinfer.work / "bad.jsonl").write_text('{"prompt": 3}\n{"prompt": "a"}\n')
    mpinfer("tokenize", "--model", MODEL, "-i", "bad.jsonl", "-o", "bad-out.jsonl", code=3)
    errors = [row["error"] and row["error"]["code"] for row in mpinfer.rows("bad-out.jsonl")]
    expect(errors[0] is not None and errors[1] is None, f"{errors}")


def check_plan_of_published(mpinfer):
    """Weights and KV of large models, as tests/unit/planner/published_test.cpp sums them by hand."""
    published = ROOT / "tests/unit/planner/published"
    for name, gpus, heads, sums in (
            # 671.0 G parameters; a rank of tp 32 has q_a, kv_a and routers whole, a thirty-second of the rest
            ("deepseek-v3", 32, "latent KV rows of 576", {("1", "1", "32", "32"): "43.94"}),
            ("qwen3-235b-a22b", 8, "4 KV heads of 128", {("1", "1", "8", "1"): "58.96"}),
            ("gpt-oss-120b", 4, "8 KV heads of 64", {("1", "1", "4", "4"): "58.46"})):
        folder = mpinfer.work / name
        folder.mkdir()
        shutil.copy(published / f"{name}.json", folder / "config.json")
        out = mpinfer("plan", "--model", folder, "--gpu-memory", "80GiB", "--gpus", gpus)
        expect(heads in out and "chosen: " in out, out)
        lines = [line.split() for line in out.splitlines()]
        for layout, weights in sums.items():
            expect([*layout, weights] in [line[:5] for line in lines], out)


def check_plan(mpinfer):
    folder = mpinfer.work / "llama-70b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    plan = ("plan", "--model", folder, "--gpu-memory", "80GiB", "--gpus")
    out = mpinfer(*plan, 1, code=5, said="works: -n 2 -dp 1 -pp 1 -tp 2")
    expect("weights 141.1 GB" in mpinfer.stderr and "short 6" in mpinfer.stderr, mpinfer.stderr)
    out = mpinfer(*plan, 2)
    expect("chosen: -dp 1 -pp 1 -tp 2" in out, out)
    expect("chosen: -dp 2 -pp 1 -tp 4 (as given)" in mpinfer(*plan, 8, "-dp", 2, "-pp", 1, "-tp", 4), "given sizes changed")
    mpinfer(*plan, 8, "-tp", 3, code=2, said="valid: 1, 2, 4, 8")
    mpinfer(*plan, 8, "-dp", 3, code=2, said="works: ")
    mpinfer(*plan, 3, "--nodes", 2, code=2, said="--nodes 2")
    mpinfer(*plan, 8, "-i", "missing.jsonl", code=4, said="missing.jsonl")
    (mpinfer.work / "in.jsonl").write_text('{"prompt": "a b c d", "max_tokens": 40}\n' * 5)
    expect("and 40 completion tokens (from the input)" in mpinfer(*plan, 8, "-i", "in.jsonl"), "lengths are not the input's")
    check_plan_of_published(mpinfer)
    mpinfer("plan", "--model", "org/absent", code=5, said="hf download org/absent", HF_HUB_CACHE=str(mpinfer.work))


def check_devices(mpinfer):
    """A build with CUDA runs where there is no device, and says so; one without names the backend that works."""
    version = mpinfer("--version")
    expect(re.fullmatch(r"mpinfer [0-9.]+, backends: cpu(, cuda [0-9.]+ \(\d+ devices here\))?\n", version), version)
    (mpinfer.work / "in.jsonl").write_text('{"prompt": "ab", "max_tokens": 2}\n')
    run = ("run", "--model", MODEL, "-i", "in.jsonl", "-o", "out.jsonl", "--overwrite")
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    mpinfer(*run, said="no rank sees a CUDA device" if "cuda" in version else "exit code 0", **hidden)
    expect(len(mpinfer.rows("out.jsonl")) == 1, "no answer on the CPU")
    mpinfer(*run, "--backend", "cuda", code=2, said="use --backend cpu", **hidden)


GROUPS = {"options": check_options, "ranks": check_ranks, "cores": check_cores, "precedence": check_precedence, "check": check_check,
          "tokenize": check_tokenize, "plan": check_plan, "devices": check_devices}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS])
    options = parser.parse_args()
    failed = 0
    for name in options.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="mpinfer-cli-") as work:
            try:
                GROUPS[name](Program(str(pathlib.Path(options.binary).resolve()), work))
                print(f"ok    {name}", flush=True)
            except (Failure, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"FAIL  {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
