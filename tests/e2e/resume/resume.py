#!/usr/bin/env python3
"""Runs that are killed, stopped, repeated and refused, and what the next start makes of them. Every output is checked by
scripts/check_output.py and compared byte for byte with an undisturbed run. resume.py --binary MPINFER GROUP…
"""
import argparse
import contextlib
import json
import os
import pathlib
import random
import re
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
        if i % 7 == 3:
            row["guided_regex"] = "([a-c]{2}-){5,}[0-9]{9}"
        if i % 11 == 10:
            row["top_p"] = 7
        out.append(row)
    return out


def clean_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("MPINFER_", "SLURM_"))}


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
                                stdout=log, env={**clean_environment(), **ENVIRONMENT, **(environment or {})},
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


def wait_for(condition, what, seconds=60):
    end = time.time() + seconds
    while not condition():
        if time.time() > end:
            raise Failure(f"waited {seconds} s for {what}")
        time.sleep(0.005)


def journalled(work, out="out.jsonl"):
    """Results in the journals, as a reader sees them now."""
    count = 0
    for path in (work.folder / f"{out}.run").rglob("journal-*"):
        count += sum(line.startswith((b"A ", b"E ")) for line in path.read_bytes().split(b"\n")[:-1])
    return count


SLOW = {"MPINFER_SIMULATED_STEP_US": "2000"}


def status(work, *arguments, out="out.jsonl", code=None):
    done = subprocess.run([work.binary, "status", out, *arguments], cwd=work.folder, capture_output=True, timeout=60,
                          env=clean_environment())
    expect(code is None or done.returncode == code,
           f"status {arguments}: {done.returncode}, expected {code}\n{done.stdout.decode()}{done.stderr.decode()}")
    return done.stdout.decode()


def check_signals(work):
    """USR1, TERM, INT in the middle: 75, and the rest is done by the same command; begun rows go on. There are rows for ten
    seconds: a loaded machine is late with the signal. Where tokens must be left, the signal comes about the 33rd step of rows
    of a hundred (the longest go first, side by side) and leaves them 50 ms, two steps at most."""
    work.write_rows(rows(1600, longest=100))
    reference = work.reference()
    for ranks, arguments in ((0, ()), (2, ("-dp", 2, "--max-num-seqs", 8))):
        for name, more in (("USR1", ("--stop-before", "0.1s")), ("USR1", ()), ("TERM", ()), ("INT", ())):
            if ranks and name in ("TERM", "INT"):
                continue  # mpirun ends its ranks by itself: see check_launcher
            work.clear()
            slow = {"MPINFER_SIMULATED_STEP_US": "30000"} if more else SLOW
            process = work.start(ranks, *arguments, "--max-num-seqs", 8, *more, environment=slow)
            wait_for(lambda: journalled(work) > 20 or process.poll() is not None, "rows in the journal")
            expect(process.poll() is None, f"{name} {more} on {ranks} ranks: ended before the signal\n{work.log()}")
            os.kill(process.pid, getattr(signal, "SIG" + name))
            code = process.wait(60)
            expect(code == 75, f"{name} {more} on {ranks} ranks: exit code {code}\n{work.log()}")
            manifest = work.manifest()
            expect((manifest["state"], manifest["exit_code"]) == ("stopped", 75), f"{name}: {manifest}")
            expect(not (work.folder / "out.jsonl").exists(), f"{name}: OUT was written")
            status(work, "--exit-code", code=75)
            partials = sum(path.read_bytes().count(b"\nP ") for path in journals(work))
            expect(partials > 0 or not more, f"{name}: no tokens of running rows were kept\n{work.log()}")
            work.run(1 if ranks else 2, *arguments[:0], said="rows are done")
            work.check(reference)
            status(work, "--exit-code", code=3)


FORM = r"([a-c]{2}-){30,}[0-9]{9}"
LIST = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 14, "maxItems": 15}


def check_structured(work):
    """The real engine, killed and drained while values of a form are half drawn: what goes on behind their tokens ends as if
    nothing had happened. Drained rows are left 50 ms of the 300 that 256 of them need side by side."""
    short = [{"prompt": f"s{i}", "guided_choice": ["yes", "no"]} for i in range(40)]
    long = [{"prompt": f"f{i}", "max_tokens": 110, **({"guided_regex": FORM} if i % 2 else {"guided_json": LIST})} for i in range(1600)]
    work.write_rows([row for i in range(40) for row in (short[i], *long[i::40])])
    reference = work.reference()
    ended = [row for row in map(json.loads, reference.splitlines()) if row["finish_reason"] == "stop"]
    for row in ended:
        text = row["output"]
        fits = (re.fullmatch(FORM, text) if "guided_regex" in row else text in ("yes", "no") if "guided_choice" in row
                else 14 <= len(json.loads(text)) <= 15 and set(json.loads(text)) <= {"red", "green"})
        expect(fits, f"{text!r} of {row}")
    expect(len(ended) > 200, f"only {len(ended)} values ended")
    alone, replicas, stages = (0, ()), (2, ("-dp", 2)), (2, ("-pp", 2))
    for (ranks, arguments), (ranks_now, arguments_now) in ((alone, replicas), (replicas, alone), (stages, replicas)):
        for name in ("KILL", "USR1"):
            work.clear()
            process = work.start(ranks, *arguments, "--max-num-seqs", 128 if "-dp" in arguments else 256, "--stop-before", "0.1s")
            wait_for(lambda: journalled(work) > 0 or process.poll() is not None, "rows in the journal")
            first = journalled(work)  # perhaps not committed yet; with more behind them they are
            wait_for(lambda: journalled(work) > first or process.poll() is not None, "more rows in the journal")
            for pid in ranks_of(process) if ranks and name == "KILL" else [process.pid]:
                with contextlib.suppress(ProcessLookupError):  # mpirun ends the others
                    os.kill(pid, getattr(signal, "SIG" + name))
            code = process.wait(60)
            wait_for(lambda: not ranks_of(process), "the ranks to end")
            before = journalled(work)
            partials = sum(path.read_bytes().count(b"\nP ") for path in journals(work))
            expect(code != 0 and 0 < before < len(short) + len(long), f"{name} at {arguments}: {before} rows done\n{work.log()}")
            expect(name == "KILL" or code == 75 and partials > 8, f"{name} at {arguments}: {code}, {partials} begun rows kept\n{work.log()}")
            work.run(ranks_now, *arguments_now, said="rows are done")
            work.check(reference)


def check_interrupt(work):
    """A second interrupt leaves at once, with a valid journal; the running rows would have needed twelve seconds more."""
    work.write_rows(rows(5, longest=5) + [{"prompt": "long", "max_tokens": 120}] * 6)
    reference = work.reference()
    process = work.start(0, "--max-num-seqs", 2, environment={"MPINFER_SIMULATED_STEP_US": "100000"})
    wait_for(lambda: journalled(work) > 3, "rows in the journal")
    status(work, "--exit-code", code=1)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "interrupted" in work.log(), "its answer")
    os.kill(process.pid, signal.SIGINT)
    expect(process.wait(7) == 75, "exit code after two interrupts")
    status(work, "--exit-code", code=75)
    work.run(0)
    work.check(reference)


def check_launcher(work):
    """Ctrl-C and scancel under mpirun: what was finished before the signal is durable, and the manifest says stopped whatever
    the launcher returns. mpirun gives its ranks a second, here three for loaded machines; scripts/bench/durability times them."""
    work.write_rows(rows(600, longest=100))
    reference = work.reference()
    for name in ("INT", "TERM"):
        work.clear()
        process = work.start(4, "-dp", 4, "--max-num-seqs", 4,
                             environment={"MPINFER_SIMULATED_STEP_US": "4000", "OMPI_MCA_odls_base_sigkill_timeout": "3"})
        wait_for(lambda: journalled(work) > 20 or process.poll() is not None, "rows in the journal")
        before = journalled(work)
        os.kill(process.pid, getattr(signal, "SIG" + name))
        process.wait(30)
        wait_for(lambda: not (work.folder / "out.jsonl.run/lock").exists()
                 or "alive" not in status(work) and "running since" not in status(work), "the ranks to end")
        manifest = work.manifest()
        expect(manifest["state"] == "stopped" and journalled(work) >= before, f"{name}: {manifest['state']}")
        status(work, "--exit-code", code=75)
        work.run(2, "-dp", 2)
        work.check(reference)


def check_end_time(work):
    """The end of the Slurm job comes near: drained in time."""
    work.write_rows(rows(400, longest=100))
    reference = work.reference()
    end = int(time.time()) + 11
    ends = {**SLOW, "SLURM_JOB_ID": "9", "SLURM_JOB_END_TIME": str(end)}
    work.run(0, "--max-num-seqs", 2, "--stop-before", "8s", code=75, environment=ends)
    expect(time.time() < end, "it ended after the job's end")
    work.run(0, said="rows are done")
    work.check(reference)
    work.clear()
    work.run(0, "--stop-before", "3s", said="SLURM_JOB_END_TIME is not set")


def check_faults(work):
    """Killed at every named place, on rank 0 and another, then resumed elsewhere."""
    work.write_rows(rows(300, longest=30))
    reference = work.reference()
    generator = random.Random(3)
    places = ("opened", "turn", "commit-write", "commit-sync", "commit-done", "gather", "before-rename", "after-rename")
    for place in places:
        for rank in ((0, 1) if place in ("turn", "commit-write", "commit-sync", "gather") else (0,)):
            work.clear()
            process = work.start(2, "-dp", 2, environment={"MPINFER_FAULTS": f"{place}:1:kill@{rank}"})
            code = process.wait(60)
            expect(code != 0, f"{place}@{rank}: nobody was killed")
            wait_for(lambda: "running since" not in status(work), "the ranks to end")
            expect(status(work, "--exit-code", code=None) is not None, "")
            ranks = generator.choice((0, 2, 3))
            work.run(ranks, *(("-dp", ranks) if ranks else ()))
            work.check(reference)


def check_kills(work):
    """Random kills, at random layouts: MPINFER_KILLS of them (default 12). scripts/bench/kills asks for a thousand. Some jobs end
    by mpirun's own TERM and KILL a second later, some at once. A fault point may be passed less often than asked for: such a run
    completes, is compared, and does not count."""
    number = int(os.environ.get("MPINFER_KILLS", "12"))
    seed = int(os.environ.get("MPINFER_KILLS_SEED", "1"))
    generator = random.Random(seed)
    work.write_rows(rows(700, longest=40))
    reference = work.reference()
    killed, completed = {}, 0
    layouts = ((0, ()), (2, ("-dp", 2)), (3, ("-dp", 3)), (4, ("-dp", 2, "-pp", 2)), (4, ("-dp", 4, "--partition", "dynamic")),
               (2, ("-tp", 2)), (2, ("-dp", 2, "--partition", "contiguous")))
    most = {"turn": 30, "commit-write": 4, "commit-sync": 4, "gather": 1, "before-rename": 1, "after-rename": 1}
    while sum(killed.values()) < number:
        ranks, arguments = generator.choice(layouts)
        environment = {"MPINFER_SIMULATED_STEP_US": str(generator.choice((0, 200, 1000))),
                       "OMPI_MCA_odls_base_sigkill_timeout": str(generator.choice((0, 0, 0, 1)))}
        place = generator.choice(("time", "time", "turn", "commit-write", "commit-sync", *most))
        # Only rank 0 renames.
        victim = 0 if place.endswith("rename") else generator.randrange(max(1, ranks))
        if place != "time":
            environment["MPINFER_FAULTS"] = f"{place}:{generator.randint(1, most[place])}:kill@{victim}"
        process = work.start(ranks, *arguments, "--max-num-seqs", 16, environment=environment)
        what = f"{place}@{victim} {arguments} on {ranks} ranks"
        if place == "time":
            time.sleep(generator.random() * 1.2)
            pids = ranks_of(process) if ranks else [process.pid]
            chosen = pids if generator.random() < 0.3 else [generator.choice(pids)] if pids else []
            what = "one rank at any time" if len(chosen) < len(pids) else "all ranks at any time"
            for pid in chosen:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        try:
            code = process.wait(300)  # minutes, for machines that others keep busy
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failure(f"kill {killed}: {what} hangs (seed {seed})\n{work.log()}")
        if code not in (0, 3):
            kind = what if place == "time" else f"{'rank 0' if victim == 0 else 'another rank'} in {place}"
            killed[kind] = killed.get(kind, 0) + 1
        wait_for(lambda: not any(str(pid) in os.listdir("/proc") for pid in ranks_of(process)), "the ranks to end")
        expect(code not in (2, 70), f"kill {killed}: {what}: exit code {code} (seed {seed})\n{work.log()}")
        if code in (0, 3):
            work.check(reference)
            completed += 1
            work.clear()
    work.run(2, "-dp", 2)
    work.check(reference)
    print(f"{sum(killed.values())} kills, seed {seed}, {completed + 1} complete outputs, each equal to the undisturbed one: "
          f"0 violations; {', '.join(f'{kind} {count}' for kind, count in sorted(killed.items()))}", flush=True)


def check_stopped_rank(work):
    """SIGSTOP of one rank: its neighbour names it, its host and its rows within the deadline and ten seconds; exit 7; what was
    finished is kept."""
    work.write_rows(rows(900, longest=100))
    reference = work.reference()
    for ranks, arguments, victim in ((3, ("-dp", 3), 1), (3, ("-dp", 3), 0), (4, ("-dp", 2, "-pp", 2), 3)):
        work.clear()
        process = work.start(ranks, *arguments, "--max-num-seqs", 4, "--step-timeout", "3s",
                             environment={"MPINFER_SIMULATED_STEP_US": "8000"})
        wait_for(lambda: journalled(work) > 10 or process.poll() is not None, "rows in the journal")
        os.kill(ranks_of(process)[victim], signal.SIGSTOP)
        started, before = time.time(), journalled(work)
        code = process.wait(40)
        took = time.time() - started
        log = work.log()
        expect(code == 7 and f"rank {victim} on " in log and "no sign of life" in log and "holds rows" in log,
               f"{arguments}, rank {victim} stopped: exit code {code} after {took:.1f} s\n{log}")
        expect(took < 3 + 10, f"the verdict took {took:.1f} s")
        wait_for(lambda: "running since" not in status(work), "the ranks to end")
        status(work, "--exit-code", code=7)
        expect(journalled(work) >= before, "finished rows were lost")
        work.run(2, "-dp", 2, said="rows are done")
        work.check(reference)


def check_shards(work):
    """Shards as jobs of their own, whatever way they are named; merged, once all are there."""
    data = rows(60)
    work.write_rows(data)
    reference = work.reference()
    for arguments in ((), ("--partition", "contiguous")):
        work.clear()
        work.run(0, "--shard", "0/3", *arguments, said="shard 0 of 3: 20 of 60 rows")
        work.run(2, *arguments, "-dp", 1, "-pp", 2, environment={"MPINFER_DP_RANK": "2", "MPINFER_DP_SIZE": "3"}, said="shard 2 of 3")
        merge = [work.binary, "merge", "out.jsonl"]

        def merged(code, said, *more):
            done = subprocess.run([*merge, *more], cwd=work.folder, capture_output=True, timeout=60)
            log = done.stderr.decode()
            expect(done.returncode == code and said in log, f"merge: {done.returncode}, expected {code} and '{said}' in\n{log}")

        expect("output out.jsonl" not in work.log() and "run directory out.jsonl.run/shard-2-of-3" in work.log(),
               f"a shard says that it wrote the output\n{work.log()}")
        merged(75, "rows 20 to 39 (20 of them)" if arguments else "(20 of them)")
        expect(not (work.folder / "out.jsonl").exists(), "OUT was touched")
        status(work, "--exit-code", code=75)
        of_one = status(work, "--shard", "2/3", "--exit-code", code=3)
        expect(of_one.startswith("shard 2 of 3: complete: 20 of 20 rows done"), of_one)
        status(work, "--shard", "1/3", "--exit-code", code=2)
        merged(0, "40 of 60 rows", "--partial")
        part = [json.loads(line)["index"] for line in (work.folder / "out.jsonl.partial").read_text().splitlines()]
        expect(len(part) == 40 and part == sorted(set(part)), f"partial rows {part}")
        work.run(0, "--shard", "1/3", "--temperature", 0.3, *arguments)
        merged(2, "temperature was nothing, is 0.3")
        work.run(0, "--shard", "1/3", *arguments, code=2, said="temperature was 0.3")
        work.run(0, "--shard", "1/3", "--overwrite", *arguments, environment={"VLLM_DP_RANK": "1", "VLLM_DP_SIZE": "3"})
        work.run(0, "--shard", "1/3", *arguments, said="already complete")
        work.run(0, "--shard", "0/4", *arguments, code=2, said="cut alike")
        for ranks in (0, 2):
            work.run(ranks, *arguments, code=2, said="holds shard-0-of-3; give --shard")
        work.run(2, "--shard", "1/3", *arguments, "-dp", 2, code=2, said="dp was 1, is 2")
        merged(3, "60 rows of 3 shards")
        work.check(reference)
        found = json.loads(status(work, "--json", "--exit-code", code=3))
        expect([shard["state"] for shard in found["shards"]] == ["complete"] * 3, f"{found}")
    for environment, said in (({"MPINFER_DP_RANK": "1"}, "MPINFER_DP_SIZE is not"), ({"VLLM_DP_SIZE": "2"}, "MPINFER_DP_RANK is not"),
                              ({"MPINFER_DP_RANK": "2", "MPINFER_DP_SIZE": "2"}, "MPINFER_DP_RANK 2"),
                              ({"MPINFER_DP_RANK": "1", "MPINFER_DP_SIZE": "2", "VLLM_DP_RANK": "0"}, "differ"),
                              ({"MPINFER_DP_RANK": "x", "MPINFER_DP_SIZE": "2"}, "MPINFER_DP_RANK x")):
        for ranks in (0, 2):
            work.run(ranks, code=2, said=said, out="other.jsonl", environment=environment)
    work.run(0, "--shard", "0/3", code=2, said="say another", out="other.jsonl",
             environment={"MPINFER_DP_RANK": "1", "MPINFER_DP_SIZE": "3"})
    work.run(0, "--shard", "3/3", code=2, said="--shard", out="other.jsonl")


def check_coordinates(work):
    """Ranks whose DP_RANK covers 0…size−1 are put in its order; others are refused."""
    work.write_rows(rows(20))
    reference = work.reference()
    script = work.folder / "rank.sh"
    script.write_text('#!/bin/sh\nexport MPINFER_DP_SIZE=2 MPINFER_DP_RANK=$((OMPI_COMM_WORLD_RANK $1 2))\nshift\nexec "$@"\n')
    script.chmod(0o755)
    for operation, arguments, code, said in (("%", (), (0, 3), "dp 1"), ("%", ("-dp", 4), 2, "MPINFER_DP_SIZE is 2"),
                                             ("*", (), 2, "MPINFER_DP_")):
        work.clear()
        plain = work.command(0, *arguments)
        command = ["mpirun", "-n", "4", "--oversubscribe", str(script), operation, *plain]
        done = subprocess.run(command, cwd=work.folder, capture_output=True, timeout=60, env={**clean_environment(), **ENVIRONMENT})
        log = done.stderr.decode()
        codes = code if isinstance(code, tuple) else (code,)
        expect(done.returncode in codes and said in log, f"{operation} {arguments}: {done.returncode}\n{log}")
    work.run(0, "--overwrite")
    work.check(reference)


GROUPS = {"signals": check_signals, "interrupt": check_interrupt, "launcher": check_launcher, "structured": check_structured, "end-time": check_end_time,
          "stopped-rank": check_stopped_rank,
          "faults": check_faults, "kills": check_kills, "shards": check_shards, "coordinates": check_coordinates, "layouts": check_layouts, "damage": check_damage, "complete": check_complete, "refused": check_refused,
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
