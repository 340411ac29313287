#!/usr/bin/env python3
"""Runs that are killed, stopped, repeated and refused, and what the next start makes of them. Every output is checked by
scripts/check_output.py and compared byte for byte with an undisturbed run. resume.py --binary MPINFER GROUP…
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))
import check_output  # noqa: E402

MODEL = str(ROOT / "tests/golden/llama-8h4kv")
ENVIRONMENT = {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "ASAN_OPTIONS": "detect_leaks=0"}


class Failure(Exception):
    pass


def expect(condition, what):
    if not condition:
        raise Failure(what)


def rows(count, longest=60):
    """Rows of many lengths: greedy and sampled, with stop strings and penalties, a few of them bad."""
    out = []
    for i in range(count):
        row = {"id": f"r{i}", "prompt": f"row {i} " + "ab" * (i % 9), "max_tokens": 1 + i * 7 % longest}
        if i % 3 == 0:
            row["temperature"] = 0
        if i % 4 == 1:
            row["stop"] = ["zz", "e"]
        if i % 5 == 2:
            row["repetition_penalty"] = 1.2
        if i % 11 == 10:
            row["top_p"] = 7
        out.append(row)
    return out


class Work:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, pathlib.Path(folder)

    def write_rows(self, data, name="in.jsonl"):
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in data))

    def command(self, ranks, *arguments, out="out.jsonl", model=MODEL, launcher=()):
        run = [self.binary, "run", "--model", model, "-i", "in.jsonl", "-o", out, "--progress", "none", *map(str, arguments)]
        return ["mpirun", "-n", str(ranks), "--oversubscribe", *launcher, *run] if ranks > 0 else run

    def start(self, ranks, *arguments, out="out.jsonl", environment=None, launcher=(), **popen):
        log = open(self.folder / "log", "wb")
        return subprocess.Popen(self.command(ranks, *arguments, out=out, launcher=launcher), cwd=self.folder, stderr=log,
                                stdout=log, env={**os.environ, **ENVIRONMENT, **(environment or {})},
                                start_new_session=True, **popen)

    def run(self, ranks, *arguments, code=(0, 3), out="out.jsonl", said="", timeout=120, **more):
        process = self.start(ranks, *arguments, out=out, **more)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failure(f"{arguments} on {ranks} ranks: no end after {timeout} s\n{self.log()}")
        codes = (code,) if isinstance(code, int) else code
        expect(process.returncode in codes and said in self.log(),
               f"{arguments} on {ranks} ranks: exit code {process.returncode}, expected {codes} and '{said}' in\n{self.log()}")
        return process.returncode

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def manifest(self, out="out.jsonl"):
        return json.loads((self.folder / f"{out}.run/manifest.json").read_text())

    def reference(self, *arguments):
        self.run(0, *arguments, out="reference.jsonl")
        return (self.folder / "reference.jsonl").read_bytes()

    def check(self, reference, out="out.jsonl"):
        wrong = list(check_output.check(str(self.folder / out), [str(self.folder / "in.jsonl")]))
        expect(not wrong, "\n".join(wrong[:5]))
        expect((self.folder / out).read_bytes() == reference, f"{out} differs from the undisturbed run")
        left = [p.name for p in self.folder.rglob("*.tmp")]
        expect(not left, f"left behind {left}")

    def clear(self):
        shutil.rmtree(self.folder / "out.jsonl.run", ignore_errors=True)
        (self.folder / "out.jsonl").unlink(missing_ok=True)


def ranks_of(process):
    """Process ids of the ranks that a started job has, in the order of their numbers."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)
            environment = (stat.parent / "environ").read_bytes()
        except OSError:
            continue
        if int(fields[1].split()[3]) != process.pid and int(fields[1].split()[1]) != process.pid:
            continue
        for entry in environment.split(b"\0"):
            if entry.startswith(b"OMPI_COMM_WORLD_RANK="):
                found.append((int(entry.split(b"=")[1]), int(stat.parent.name)))
    return [pid for _, pid in sorted(found)]


def journals(work):
    return sorted((work.folder / "out.jsonl.run").glob("journal-*"))


def cut_journals(work, generator, keep):
    """As a kill would have left them: every journal ends somewhere."""
    for path in journals(work):
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * keep * generator.random())])


def forget_end(work):
    """As a kill before the end would have left it."""
    path = work.folder / "out.jsonl.run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["state"], manifest["exit_code"] = "running", -1
    path.write_text(json.dumps(manifest))
    (work.folder / "out.jsonl").unlink()


def check_layouts(work):
    """Begun at one layout, cut anywhere, ended at another: the same bytes."""
    work.write_rows(rows(60))
    reference = work.reference()
    generator = random.Random(1)
    layouts = [(0, ()), (2, ("-dp", 2)), (4, ("-dp", 4, "--partition", "dynamic")), (2, ("-pp", 2)),
               (4, ("-dp", 2, "-pp", 2)), (3, ("-dp", 3, "--partition", "contiguous"))]
    for number, (ranks, arguments) in enumerate(layouts):
        work.clear()
        work.run(ranks, *arguments)
        for step in (1, 2):
            cut_journals(work, generator, 1.1 if step == 1 else 0.9)
            forget_end(work)
            ranks, arguments = layouts[(number + step) % len(layouts)]
            work.run(ranks, *arguments, said="rows are done" if step == 1 else "")
            work.check(reference)
        expect(len(work.manifest()["attempts"]) == 3, "three attempts are in the manifest")


def check_damage(work):
    """Bytes changed inside a journal cost rows, never the run."""
    work.write_rows(rows(40))
    reference = work.reference()
    generator = random.Random(2)
    work.run(2, "-dp", 2)
    for _ in range(4):
        for path in journals(work):
            data = bytearray(path.read_bytes())
            for _ in range(3):
                data[generator.randrange(len(data))] = generator.randrange(256)
            path.write_bytes(bytes(data))
        forget_end(work)
        work.run(0)
        work.check(reference)


def check_complete(work):
    """Nothing runs twice; the exit code stays; what was lost is written again; errors are retried when asked."""
    work.write_rows(rows(12))
    reference = work.reference()
    for ranks in (0, 2):
        work.clear()
        expect(work.run(ranks, "-dp", max(1, ranks)) == 3, "bad rows give 3")
        before = sorted(p.name for p in journals(work))
        expect(work.run(ranks, "-dp", max(1, ranks), said="already complete") == 3, "the exit code is the run's")
        expect(sorted(p.name for p in journals(work)) == before, "nothing was begun")
        (work.folder / "out.jsonl").unlink()
        work.run(ranks, said="12 of 12 rows are done")
        work.check(reference)
        work.run(ranks, "--retry-errors", said="11 of 12 rows are done")
        work.check(reference)


def check_refused(work):
    """Exit 2 with the difference and the command that replaces the run; nothing is changed."""
    work.write_rows(rows(6))
    work.run(0, "--temperature", 0.5)
    before = {p.name: p.read_bytes() for p in work.folder.rglob("*") if p.is_file() and p.name != "log"}
    for arguments, said in (((), "temperature was 0.5, is nothing"), (("--temperature", 0.7), "temperature was 0.5, is 0.7"),
                            (("--temperature", 0.5, "--seed", 1), "seed was 0, is 1"),
                            (("--temperature", 0.5, "--return-token-ids"), "--return-token-ids was nothing, is true"),
                            (("--temperature", 0.5, "--limit", 3), "the input had 6 rows, has 3"),
                            (("--temperature", 0.5, "--resume", "never"), "--resume never"),
                            (("--temperature", 0.7), "--temperature 0.7 --overwrite")):
        work.run(0, *arguments, code=2, said=said)
        work.run(2, *arguments, code=2, said=said)
    (work.folder / "in.jsonl").write_text((work.folder / "in.jsonl").read_text().replace("row 3", "row x"))
    work.run(2, "--temperature", 0.5, code=2, said="in.jsonl:4")
    (work.folder / "in.jsonl").write_text((work.folder / "in.jsonl").read_text().replace("row x", "row 3"))
    after = {p.name: p.read_bytes() for p in work.folder.rglob("*") if p.is_file() and p.name != "log"}
    expect(after == before, f"{[name for name in after if after.get(name) != before.get(name)]} changed")
    shutil.rmtree(work.folder / "out.jsonl.run")
    work.run(0, code=2, said="exists")
    work.run(0, "--resume", "require", code=2, said="holds no run")
    work.run(0, "--overwrite")
    work.run(0, "--overwrite", "--temperature", 0.7, environment={"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "1"}, code=2,
             said="temperature was nothing, is 0.7")


def check_lock(work):
    """A second job is refused, naming the holder; a dead one's directory is taken over."""
    work.write_rows(rows(6))
    holder = work.start(2, "-dp", 2, environment={"OMPI_MCA_mpi_yield_when_idle": "1"})
    holder.wait()
    run_dir = work.folder / "out.jsonl.run"
    lock = {"host": "far-away", "machine": "m", "pid": 4, "pid_start": 1, "job": "77", "restart_count": 0,
            "start": "2026-01-01T00:00:00Z", "nonce": "n", "lease_ms": 60000}
    (run_dir / "lock").write_text(json.dumps(lock))
    work.run(0, code=2, said="process 4 on far-away, job 77")
    old = time.time() - 3600
    os.utime(run_dir / "lock", (old, old))
    work.run(0, said="already complete")
    expect(not (run_dir / "lock").exists(), "the lock is given back")


GROUPS = {"layouts": check_layouts, "damage": check_damage, "complete": check_complete, "refused": check_refused,
          "lock": check_lock}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    binary = str(pathlib.Path(options.binary).resolve())
    failed = 0
    for name in options.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="mpinfer-resume-") as folder:
            try:
                GROUPS[name](Work(binary, folder))
                print(f"ok    {name}", flush=True)
            except Failure as failure:
                failed += 1
                print(f"FAIL  {name}: {failure}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
