#!/usr/bin/env python3
"""Runs the cases of this folder with a real mpirun and compares what comes out.

A case is a folder with
  cmd             lines "key: value"; args and layouts (dp x pp x tp, x ep) are the usual ones, the rest is in DEFAULTS
  input.jsonl     or input.py, which writes the input to its stdout
  expected.jsonl  one object a line: its members must be there with these values ("*" stands for any value)
Outputs of layouts with the same tp and ep must be equal byte for byte; across them nearly all rows (a
near-tie may fall either way). refusals.txt holds command lines that must fail: exit code, a part of the
message, arguments.
"""
import argparse
import json
import os
import pathlib
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
DEFAULTS = {
    "model": "llama-8h4kv",
    "layouts": "1x1x1",
    "args": "",       # before the others
    "variants": "",   # alternatives separated by |, each run at every layout; all must agree
    "mpirun": "",     # options of the launcher
    "exit": "0",
    "rows": "",       # number of output rows, when there is no expected.jsonl
    "stderr": "",     # must be found in it
}
ENVIRONMENT = {
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "ASAN_OPTIONS": "detect_leaks=0",
}


class Failure(Exception):
    pass


def read_case(folder):
    case = dict(DEFAULTS)
    for line in (folder / "cmd").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, value = line.split(":", 1)
        if key not in case:
            raise Failure(f"{folder.name}/cmd: unknown key {key}")
        case[key] = value.strip()
    return case


def write_input(folder, work):
    target = work / "input.jsonl"
    script = folder / "input.py"
    if script.exists():
        with open(target, "wb") as out:
            subprocess.run([sys.executable, str(script)], stdout=out, check=True)
    else:
        shutil.copy(folder / "input.jsonl", target)
    return target


def limit_file_size(limit):
    """Files of the child may not grow beyond limit bytes: a full disk without a disk."""
    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return prepare


def launch(binary, ranks, launcher, arguments, work, timeout=240, **popen):
    command = [binary, *arguments]
    if ranks > 1:
        command = ["mpirun", "-n", str(ranks), "--oversubscribe", *shlex.split(launcher), *command]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, cwd=work, env=environment, timeout=timeout,
                          **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen})


def matches(expected, actual):
    if expected == "*":
        return True
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(key in actual and matches(value, actual[key]) for key, value in expected.items())
    return expected == actual and type(expected) is type(actual)


def check_rows(output, expected_path, rows, where):
    lines = output.decode("utf-8").split("\n")
    if lines.pop() != "":
        raise Failure(f"{where}: the output does not end with a newline")
    actual = [json.loads(line) for line in lines]
    for index, row in enumerate(actual):
        if row["index"] - actual[0]["index"] != index:
            raise Failure(f"{where}: line {index + 1} has index {row['index']}")
    if not expected_path.exists():
        if rows and len(actual) != int(rows):
            raise Failure(f"{where}: {len(actual)} rows, expected {rows}")
        return
    expected = [json.loads(line) for line in expected_path.read_text().splitlines()]
    if len(actual) != len(expected):
        raise Failure(f"{where}: {len(actual)} rows, expected {len(expected)}")
    for number, (want, have) in enumerate(zip(expected, actual), 1):
        if not matches(want, have):
            raise Failure(f"{where}: line {number}:\n  expected {json.dumps(want)}\n  actual   {json.dumps(have)}")


def compare_outputs(outputs):
    """outputs: ((tp, ep), name, bytes). Equal bytes for equal cuts; nearly all rows equal otherwise."""
    first = {}
    for tp, name, data in outputs:
        if tp not in first:
            first[tp] = (name, data)
        elif data != first[tp][1]:
            pairs = zip(first[tp][1].split(b"\n"), data.split(b"\n"))
            line = next(i for i, (a, b) in enumerate(pairs, 1) if a != b)
            raise Failure(f"{name} differs from {first[tp][0]} at line {line}")
    reference = min(first)
    lines = first[reference][1].split(b"\n")
    for tp, (name, data) in first.items():
        others = data.split(b"\n")
        equal = sum(a == b for a, b in zip(lines, others))
        if len(lines) != len(others) or equal < 0.9 * len(lines):
            raise Failure(f"{name}: only {equal} of {len(lines)} lines equal those of {first[reference][0]}")


def run_case(folder, binary, most_ranks):
    case = read_case(folder)
    with tempfile.TemporaryDirectory(prefix="mpinfer-e2e-") as name:
        work = pathlib.Path(name)
        write_input(folder, work)
        outputs = []
        for layout in case["layouts"].split():
            dp, pp, tp, *ep = (int(n) for n in layout.split("x"))
            if dp * pp * tp > most_ranks:
                continue
            for variant in case["variants"].split("|"):
                where = f"{folder.name} {layout} {variant}".strip()
                arguments = ["run", "--model", str(GOLDEN / case["model"]), "-i", "input.jsonl", "-o", "out.jsonl",
                             "--overwrite", "-dp", str(dp), "-pp", str(pp), "-tp", str(tp),
                             *(["--ep", str(ep[0])] if ep else []),
                             *shlex.split(case["args"]), *shlex.split(variant)]
                done = launch(binary, dp * pp * tp, case["mpirun"], arguments, work)
                log = done.stderr.decode(errors="replace")
                if done.returncode != int(case["exit"]):
                    raise Failure(f"{where}: exit code {done.returncode}, expected {case['exit']}\n{log}")
                if case["stderr"] and case["stderr"] not in log:
                    raise Failure(f"{where}: '{case['stderr']}' is not in\n{log}")
                if done.stdout:
                    raise Failure(f"{where}: unexpected stdout {done.stdout[:200]!r}")
                if not (work / "out.jsonl").exists():
                    continue
                output = (work / "out.jsonl").read_bytes()
                check_rows(output, folder / "expected.jsonl", case["rows"], where)
                check_run_directory(work, int(case["exit"]), where)
                outputs.append(((tp, *ep), where, output))
        if outputs:
            compare_outputs(outputs)


def check_run_directory(work, exit_code, where):
    manifest = json.loads((work / "out.jsonl.run/manifest.json").read_text())
    report = json.loads((work / "out.jsonl.run/report.json").read_text())
    rows = (work / "out.jsonl").read_bytes().count(b"\n")
    counts = manifest["counts"]
    if manifest["state"] != "complete" or manifest["attempts"][-1]["exit_code"] != exit_code:
        raise Failure(f"{where}: the manifest says {manifest['state']}, {manifest['attempts'][-1]}")
    if counts["answered"] + counts["failed"] != rows or report["totals"]["rows"] != rows:
        raise Failure(f"{where}: {rows} rows, the manifest counts {counts}, the report {report['totals']}")
    if "experts" in report:  # every layer chooses for the same rows
        sums = {sum(layer) for layer in report["experts"]["rows_by_layer"] if layer}
        if len(sums) != 1:
            raise Failure(f"{where}: layers chose experts for different numbers of rows: {sums}")
    left = [path.name for path in work.iterdir() if path.name.endswith(".tmp")]
    if left:
        raise Failure(f"{where}: left behind {left}")


def run_refusals(binary):
    """Each line: exit code, then a part of the message in quotes, then the arguments. {g} is the golden folder."""
    for line in (HERE / "refusals.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        code, message, *arguments = shlex.split(line)
        ranks = 1
        if arguments[0].startswith("-n"):
            ranks = int(arguments.pop(0)[2:])
        with tempfile.TemporaryDirectory(prefix="mpinfer-e2e-") as name:
            work = pathlib.Path(name)
            (work / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n')
            (work / "old.jsonl").write_text("old\n")
            (work / "folder").mkdir()
            os.mkfifo(work / "fifo")
            os.symlink("in.jsonl", work / "link.jsonl")
            arguments = [part.replace("{g}", str(GOLDEN)) for part in arguments]
            done = launch(binary, ranks, "", arguments, work)
            log = done.stderr.decode(errors="replace")
            if done.returncode != int(code) or not re.search(message, log):
                raise Failure(f"refusal '{line}': exit code {done.returncode}\n{log}")
            if (work / "old.jsonl").read_text() != "old\n" or not (work / "in.jsonl").read_text():
                raise Failure(f"refusal '{line}': a file was changed")


def run_stdout(binary):
    """--prompt and -o - put data on stdout, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="mpinfer-e2e-") as name:
        work = pathlib.Path(name)
        (work / "in.jsonl").write_text('{"prompt": "ab", "max_tokens": 3, "temperature": 0}\n' * 3)
        model = str(GOLDEN / DEFAULTS["model"])
        for ranks in (1, 2):
            lines = launch(binary, ranks, "", ["run", "--model", model, "-i", "in.jsonl", "-o", "-"], work)
            rows = [json.loads(line) for line in lines.stdout.decode().splitlines()]
            if lines.returncode != 0 or [row["index"] for row in rows] != [0, 1, 2]:
                raise Failure(f"-o - on {ranks} ranks: {lines.stdout!r}\n{lines.stderr.decode()}")
            text = launch(binary, ranks, "", ["run", "--model", model, "--prompt", "ab", "--max-tokens", "3",
                                              "--temperature", "0"], work)
            if text.returncode != 0 or text.stdout.decode() != rows[0]["output"] + "\n":
                raise Failure(f"--prompt on {ranks} ranks: {text.stdout!r}\n{text.stderr.decode()}")
        bad = launch(binary, 1, "", ["run", "--model", model, "--prompt", ""], work)
        if bad.returncode != 3 or bad.stdout or b"empty" not in bad.stderr:
            raise Failure(f"--prompt '': {bad.returncode} {bad.stdout!r}\n{bad.stderr.decode()}")
        if sorted(path.name for path in work.iterdir()) != ["in.jsonl"]:
            raise Failure(f"files were left: {list(work.iterdir())}")


def run_full_disk(binary):
    """No room for the journal: exit code 6, the old output stays, no temporary is left."""
    with tempfile.TemporaryDirectory(prefix="mpinfer-e2e-") as name:
        work = pathlib.Path(name)
        row = {"prompt": "ab", "max_tokens": 2, "ignore_eos": True, "data": "x" * 200_000}
        (work / "in.jsonl").write_text((json.dumps(row) + "\n") * 300)
        (work / "out.jsonl").write_text("old\n")
        arguments = ["run", "--model", str(GOLDEN / DEFAULTS["model"]), "-i", "in.jsonl", "-o", "out.jsonl", "--overwrite"]
        # Open MPI has files of its own, of a few MiB.
        done = launch(binary, 1, "", arguments, work, preexec_fn=limit_file_size(40_000_000))
        log = done.stderr.decode(errors="replace")
        if done.returncode != 6 or "File too large" not in log:
            raise Failure(f"exit code {done.returncode}\n{log}")
        state = json.loads((work / "out.jsonl.run/manifest.json").read_text())["state"]
        if state != "failed" or (work / "out.jsonl").read_text() != "old\n" or list(work.glob("*.tmp")):
            raise Failure(f"{state}: {sorted(path.name for path in work.iterdir())}")


def run_closed_stderr(binary):
    """A closed stderr changes nothing, and no file gets its number."""
    with tempfile.TemporaryDirectory(prefix="mpinfer-e2e-") as name:
        work = pathlib.Path(name)
        (work / "in.jsonl").write_text('{"prompt": "ab", "max_tokens": 3}\nbad\n' * 20)
        arguments = ["run", "--model", str(GOLDEN / DEFAULTS["model"]), "-i", "in.jsonl", "-o", "out.jsonl",
                     "--progress", "bar"]
        done = launch(binary, 1, "", arguments, work, preexec_fn=lambda: os.close(2))
        rows = [json.loads(line) for line in (work / "out.jsonl").read_text().splitlines()]
        if done.returncode != 3 or len(rows) != 40:
            raise Failure(f"closed stderr: exit code {done.returncode}, {len(rows)} rows")


SPECIAL = {"refusals": run_refusals, "stdout": run_stdout, "full-disk": run_full_disk,
           "closed-stderr": run_closed_stderr}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--most-ranks", type=int, default=1 << 20,
                        help="leave out layouts of more, such as on two GPUs (with MPINFER_BACKEND=cuda)")
    parser.add_argument("cases", nargs="*", help="folders or the special ones; none: all")
    options = parser.parse_args()
    binary = str(pathlib.Path(options.binary).resolve())
    names = options.cases or sorted(path.parent.name for path in HERE.glob("*/cmd")) + sorted(SPECIAL)
    failed = 0
    for name in names:
        try:
            SPECIAL[name](binary) if name in SPECIAL else run_case(HERE / name, binary, options.most_ranks)
            print(f"ok    {name}", flush=True)
        except (Failure, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"FAIL  {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
