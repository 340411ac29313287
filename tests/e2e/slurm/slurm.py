#!/usr/bin/env python3
"""The recipes of scripts/launch under a real Slurm of one node that this test starts and ends: drained, requeued and completed,
with the bytes of an undisturbed run. slurm.py --binary MPINFER --simulated MPINFER_SIMULATED. Exit 77: it cannot start here.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests/e2e/resume"), str(pathlib.Path(__file__).parent)]
from cluster import CannotStart, Cluster  # noqa: E402
from resume import ENVIRONMENT, MODEL, Failure, Work, clean_environment, expect, journalled, rows, status, wait_for  # noqa: E402

RECIPES = ROOT / "scripts/launch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Job:
    def __init__(self, cluster, work, recipe, *options, binary, **variables):
        self.cluster, self.work = cluster, work
        self.log_path = work.folder / f"{recipe}.log"
        environment = {"MODEL": MODEL, "IN": "in.jsonl", "OUT": "out.jsonl", "MPINFER": binary, **variables}
        self.id = cluster.ask("sbatch", "--parsable", "--export=ALL", f"--chdir={work.folder}", f"--output={self.log_path}",
                              *options, RECIPES / recipe, environment=environment).strip()

    def state(self):
        return self.cluster.job(self.id)["JobState"]

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else "no log"

    def wait(self, what, condition, seconds=60):
        try:
            wait_for(condition, what, seconds)
        except Failure as failure:
            raise Failure(f"{failure}\n{self.cluster.job(self.id)}\n{self.log()}\n{self.cluster.logs()}")

    def end(self, code=0):
        self.wait("the job's end", lambda: self.state() in ENDED)
        expect(self.cluster.job(self.id)["ExitCode"] == f"{code}:0", f"{self.cluster.job(self.id)}\n{self.log()}")


def small(recipe):
    """The recipe on this one node."""
    return ["--nodes=1", "--ntasks-per-node=2", "--oversubscribe"] if recipe != "merge.sbatch" else []


def check_syntax(cluster, _, binary, __):
    """bash and sbatch take every recipe as it is, but for the cluster's size."""
    for path in sorted(RECIPES.iterdir()):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
        expect(done.returncode == 0, f"{path.name}: {done.stderr}")
        if path.suffix == ".sbatch":
            done = subprocess.run(["sbatch", "--test-only", *small(path.name), path], capture_output=True, text=True,
                                  env=cluster.environment)
            expect(done.returncode == 0, f"{path.name}: {done.stderr}")


def cycle(cluster, work, recipe, binary, simulated, scancel):
    """Drained in the middle: 75, back in the queue, and done by the second start."""
    work.binary = simulated
    work.write_rows([row for row in rows(400, longest=100) if "top_p" not in row])
    reference = work.reference()
    job = Job(cluster, work, recipe, *small(recipe), binary=simulated, ARGS="-dp 2 --max-num-seqs 8 --stop-before 0.2s",
              MPINFER_SIMULATED_STEP_US="8000")
    job.wait("rows in the journal", lambda: journalled(work) > 20 or job.state() in ENDED)
    cluster.ask("scancel", "--signal=USR1", *scancel, job.id)
    job.wait("a requeue", lambda: cluster.job(job.id)["Restarts"] == "1" or job.state() in ENDED)
    expect("ended with 75: requeue 1" in job.log(), job.log())
    expect(not (work.folder / "out.jsonl").exists(), "OUT was written by a drained start")
    status(work, "--exit-code", code=75)
    job.end()
    expect("rows are done" in job.log() and cluster.job(job.id)["Restarts"] == "1", job.log())
    expect(len(work.manifest()["attempts"]) == 2, f"{work.manifest()['attempts']}")
    status(work, "--exit-code", code=0)
    work.check(reference)
    return job


def check_mpirun(cluster, work, binary, simulated):
    """The cycle; a bound on restarts; a refusal of a stopped run is not sent again and again."""
    cycle(cluster, work, "mpirun.sbatch", binary, simulated, ["--batch"])
    work.clear()
    job = Job(cluster, work, "mpirun.sbatch", *small("mpirun.sbatch"), binary=simulated, MAX_RESTARTS="0",
              ARGS="-dp 2 --max-num-seqs 8 --stop-before 0.2s", MPINFER_SIMULATED_STEP_US="8000")
    job.wait("rows in the journal", lambda: journalled(work) > 20 or job.state() in ENDED)
    cluster.ask("scancel", "--signal=USR1", "--batch", job.id)
    job.end(75)
    expect("after 0 restarts: no more" in job.log(), job.log())
    job = Job(cluster, work, "mpirun.sbatch", *small("mpirun.sbatch"), binary=simulated, ARGS="--temperature 0.3")
    job.end(2)
    expect("temperature was nothing, is 0.3" in job.log() and "requeue" not in job.log().rsplit("no more", 1)[-1], job.log())


def check_srun(cluster, work, binary, simulated):
    listed = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, env=cluster.environment)
    if "pmix" not in listed.stdout + listed.stderr:
        print("      srun: this Slurm has no PMIx plugin", flush=True)
        return
    cycle(cluster, work, "srun.sbatch", binary, simulated, [])


# What apptainer and pyxis would do with an image, without one: their options are noted and dropped, the program runs outside.
APPTAINER = """#!/usr/bin/env bash
echo "apptainer $*" >>"$NOTES"
[ "$1" = exec ] && [ "$2" = --bind ] || exit 64
for path in ${3//,/ }; do [ -e "$path" ] || exit 65; done
shift 4
exec "$@"
"""
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$NOTES"
rest=()
for word in "$@"; do
  case "$word" in --container-*|--no-container-*) ;; *) rest+=("$word") ;; esac
done
exec %s "${rest[@]}"
"""


def check_containers(cluster, work, binary, simulated):
    """The recipes for Apptainer and pyxis with stand-ins for both: drained in the middle they end with 75, the same command ends
    with 0 and the bytes of an undisturbed run; image and folders are handed over."""
    listed = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, env=cluster.environment)
    if "pmix" not in listed.stdout + listed.stderr:
        print("      containers: this Slurm has no PMIx plugin", flush=True)
        return
    work.binary = simulated
    work.write_rows([row for row in rows(300, longest=100) if "top_p" not in row])
    reference = work.reference()
    tools, notes = work.folder / "tools", work.folder / "notes"
    tools.mkdir()
    for name, text in (("apptainer", APPTAINER), ("srun", SRUN % shutil.which("srun"))):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for recipe, image in (("apptainer.sbatch", "mpinfer.sif"), ("pyxis.sbatch", "mpinfer.sqsh")):
        work.clear()
        notes.unlink(missing_ok=True)

        def start():
            return Job(cluster, work, recipe, *small(recipe), binary=simulated, IMAGE=image, NOTES=str(notes),
                       PATH=f"{tools}:{os.environ['PATH']}", ARGS="-dp 2 --max-num-seqs 8 --stop-before 0.2s",
                       MPINFER_SIMULATED_STEP_US="8000")
        job = start()
        job.wait("rows in the journal", lambda: journalled(work) > 20 or job.state() in ENDED)
        cluster.ask("scancel", "--signal=USR1", job.id)
        job.end(75)
        start().end()
        work.check(reference)
        told = notes.read_text()
        expect(image in told and MODEL in told and str(work.folder.resolve()) in told, told)


def check_array(cluster, work, binary, _):
    """Three shards and the job that waits for them, with the real engine."""
    work.binary = binary
    work.write_rows(rows(40))
    reference = work.reference()
    job = Job(cluster, work, "array.sbatch", *small("array.sbatch"), "--array=0-2", binary=binary, ARGS="-dp 2")
    merge = Job(cluster, work, "merge.sbatch", f"--dependency=afterany:{job.id}", binary=binary)
    merge.end(3)  # rows() has bad ones
    expect("40 rows of 3 shards" in merge.log(), merge.log())
    work.check(reference)


def check_chain(cluster, work, binary, _):
    """Two jobs, the second behind the first: the first does all, the second finds it done."""
    work.binary = binary
    work.write_rows([row for row in rows(20) if "top_p" not in row])
    reference = work.reference()
    variables = {"MODEL": MODEL, "IN": "in.jsonl", "OUT": "out.jsonl", "MPINFER": binary}
    options = [*small(""), f"--chdir={work.folder}", f"--output={work.folder}/chain.log"]
    ids = cluster.ask(RECIPES / "chain", 2, RECIPES / "mpirun.sbatch", *options, environment=variables).split()
    expect(len(ids) == 2, f"job ids {ids}")
    expect(cluster.job(ids[1])["Dependency"].startswith(f"afterany:{ids[0]}"), f"{cluster.job(ids[1])}")
    wait_for(lambda: cluster.job(ids[1])["JobState"] in ENDED, "the chain's end")
    log = (work.folder / "chain.log").read_text()
    expect(all(cluster.job(i)["ExitCode"] == "0:0" for i in ids) and "already complete" in log, log)
    work.check(reference)
    refused = subprocess.run([RECIPES / "chain", "0", "x"], capture_output=True, text=True)
    expect(refused.returncode == 2 and "COUNT" in refused.stderr, refused.stderr)


def check_limit(cluster, work, binary, simulated):
    """The job's own time limit, and nobody's hand: Slurm's USR1, 75, back in the queue, as often as it takes. Limits are minutes
    and Slurm's USR1 may come up to a minute early, hence not among the tests: scripts/bench/slurm_limit."""
    work.binary = simulated
    work.write_rows([row for row in rows(1500, longest=100) if "top_p" not in row])
    reference = work.reference()
    job = Job(cluster, work, "mpirun.sbatch", *small("mpirun.sbatch"), "--time=1", "--signal=B:USR1@30", binary=simulated,
              ARGS="-dp 2 --max-num-seqs 8 --stop-before 0.2s", MPINFER_SIMULATED_STEP_US="10000")
    job.wait("the job's end", lambda: job.state() in ENDED, 400)
    found = cluster.job(job.id)
    expect(found["ExitCode"] == "0:0" and int(found["Restarts"]) >= 1, f"{found}\n{job.log()}")
    expect(job.log().count("ended with 75: requeue") == int(found["Restarts"]), job.log())
    work.check(reference)
    attempts = work.manifest()["attempts"]
    print("      starts ended with rows done: " + ", ".join(f"{a['exit_code']} with {a['rows_after']}" for a in attempts), flush=True)


GROUPS = {"syntax": check_syntax, "mpirun": check_mpirun, "srun": check_srun, "containers": check_containers, "array": check_array, "chain": check_chain}
SLOW = {"limit": check_limit}  # only when asked for


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--simulated", required=True)
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    binary, simulated = (str(pathlib.Path(path).resolve()) for path in (options.binary, options.simulated))
    failed = 0
    try:
        with tempfile.TemporaryDirectory(prefix="mpinfer-slurm-") as folder, \
                Cluster(folder, {**clean_environment(), **ENVIRONMENT}) as cluster:
            for name in options.groups or GROUPS:
                with tempfile.TemporaryDirectory(prefix="mpinfer-slurm-job-") as work_folder:
                    try:
                        {**GROUPS, **SLOW}[name](cluster, Work(binary, work_folder), binary, simulated)
                        print(f"ok    {name}", flush=True)
                    except Failure as failure:
                        failed += 1
                        print(f"FAIL  {name}: {failure}", flush=True)
    except CannotStart as reason:
        print(f"skipped: Slurm does not start here: {reason}")
        return 77
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
