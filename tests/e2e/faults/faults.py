#!/usr/bin/env python3
"""Calls of the system that fail, and every case of faults and bad input: the exit code, the words, and what the next start makes
of what was left. faults.py --binary MPINFER --plain MPINFER GROUP… (--binary has armed fault points and a simulated engine,
--plain the real one)
"""
import argparse
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "resume"))
import resume  # noqa: E402
from resume import Failure, Work, expect, rows, status  # noqa: E402

MOST_CALLS = 200  # of one kind in a small run; more than that and the sweep does not end by itself


def leftovers(work):
    return [p.name for p in work.folder.rglob("*.tmp")]


def sweep(work, reference, ranks, arguments, call, codes):
    """The first, fifth, ninth, … call fails (every one with MPINFER_SWEEP_STEP=1, and of the few that a second rank makes), until
    a run makes so few that it meets no failure. Gives the number of runs that ended early."""
    rank, early = max(0, ranks - 1), 0
    step = 1 if ranks and call != "open" else int(os.environ.get("MPINFER_SWEEP_STEP", "4"))
    for number in range(1, MOST_CALLS, step):
        work.clear()
        code = work.run(ranks, *arguments, code=(0, 3, *codes), environment={"MPINFER_FAULTS": f"{call}:{number}:EIO@{rank}"})
        log = work.log()
        if f"fault {call} EIO" not in log:
            expect(number > 1, f"{call}: no such call was made")
            return early
        where = f"{call} number {number} fails with EIO: exit code {code}"
        begun = (work.folder / "out.jsonl.run/manifest.json").exists()
        if code in codes:
            early += 1
            expect(code == 6 or not begun or code == 4 and "input in.jsonl" in log, f"{where} although rows were begun\n{log}")
            expect("Input/output error" in log or "cannot be read back" in log, f"{where}, and no word why\n{log}")
            if begun:
                expect(f"exit code {code}" in status(work), f"{where}, and status says\n{status(work)}\n{log}")
        if (work.folder / "out.jsonl").exists():
            expect((work.folder / "out.jsonl").read_bytes() == reference, f"{where}, a torn output")
        expect(not leftovers(work), f"{where}, left behind {leftovers(work)}")
        work.run(0)
        work.check(reference)
    raise Failure(f"{call}: more than {MOST_CALLS} calls")


def check_calls(work):
    """open, write, fsync and rename fail in turn, on one rank and on the second of two: exit code 6, or the code of a refusal
    before a row was begun; nothing torn; the next start ends with the undisturbed bytes."""
    work.write_rows(rows(12, longest=9))
    reference = work.reference()
    for ranks, arguments, calls in ((0, (), ("open", "write", "fsync", "rename")), (2, ("-dp", 2), ("open", "write", "fsync"))):
        for call in calls:
            early = sweep(work, reference, ranks, arguments, call, (2, 4, 5, 6) if call == "open" else (6,))
            expect(early > 0, f"{call}: no run ended early")
            print(f"      {call}, {max(1, ranks)} ranks: {early} runs ended early", flush=True)


def check_writes(work):
    """Writes that end halfway or are interrupted change nothing; a journal that has no room for a while waits for it."""
    work.write_rows(rows(60, longest=9))
    reference = work.reference()
    interrupted = ";".join(f"{call}:{n}:EINTR" for call in ("write", "open") for n in range(1, 60, 2))
    for faults, said in (("write:1+:short", ""), (interrupted, ""), ("journal:1:ENOSPC", "the disk is full")):
        for ranks in (0, 2):
            work.clear()
            work.run(ranks, "-dp", max(1, ranks), environment={"MPINFER_FAULTS": faults}, said=said)
            work.check(reference)


# Cases that end before a row is begun, or whose rows are judged: number, files made first, arguments, exit code, words.
# Cases with tests of their own: 1–8 e2e/bad-rows, e2e/requests and fuzz/io; 9 unit/text template tests; 10 unit/text
# tokenizer tests; 11 e2e/no-rows, one-row, three-rows; 15 resume.py faults and kills; 16, 17 resume.py signals, interrupt,
# launcher, end-time; 18 (journal) e2e full-disk and writes above; 19 calls and writes above; 22, 23 unit/engine; 24–28
# unit/model and fuzz/model; 27 unit/text; 29 (stderr) e2e closed-stderr.
GZ = gzip.compress(b'{"prompt": "a", "max_tokens": 2}\n' * 500, mtime=0)
ONE = b'{"prompt": "a", "max_tokens": 2}\n'
CASES = [
    (12, {"in.gz": GZ}, ("-i", "in.gz"), 0, "500 rows"),
    (12, {"in.gz": GZ[:len(GZ) - 12]}, ("-i", "in.gz"), 4, f"cut short at byte {len(GZ) - 12}"),
    (12, {"in.gz": GZ[:40] + b"\xff\xff\xff" + GZ[43:]}, ("-i", "in.gz"), 4, "damaged gzip data at byte"),
    (12, {"in.gz": b"no gzip at all"}, ("-i", "in.gz"), 4, "damaged gzip data at byte"),
    (12, {"in.zst": b"no zstd at all"}, ("-i", "in.zst"), 4, "damaged zstd data at byte"),
    (14, {"in.jsonl": ONE}, ("-i", "in.jsonl", "-o", "in.jsonl"), 2, "is the input"),
    (14, {"in.jsonl": ONE, "folder/x": b""}, ("-i", "in.jsonl", "-o", "folder"), 2, "is a directory"),
    (14, {"in.jsonl": ONE, "out.jsonl": b"x"}, ("-i", "in.jsonl"), 2, "exists (1 bytes)"),
    (14, {"in.jsonl": ONE, "out.jsonl.run": b"x"}, ("-i", "in.jsonl"), 2, "is a file"),
    (14, {"in.jsonl": ONE}, ("-i", "in.jsonl", "-o", "no/where/out.jsonl"), 2, "cannot write in directory"),
]


def check_refusals(work):
    for number, files, arguments, code, said in CASES:
        for ranks in (0, 2):
            for name, data in files.items():
                path = work.folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
            command = [work.plain, "run", "--model", resume.MODEL, "--progress", "none", *arguments,
                       *(() if "-o" in arguments else ("-o", "out.jsonl"))]
            launcher = ["mpirun", "-n", "2", "--oversubscribe"] if ranks else []
            done = subprocess.run(launcher + command, cwd=work.folder, capture_output=True, timeout=120,
                                  env={**resume.clean_environment(), **resume.ENVIRONMENT})
            log = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
            expect(done.returncode == code and said in log,
                   f"case {number} {arguments} on {ranks} ranks: exit code {done.returncode}, expected {code} and '{said}' in\n{log}")
            for name, data in files.items():
                expect((work.folder / name).read_bytes() == data, f"case {number}: {name} was changed")
            for path in work.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_input_changed(work):
    """Case 13: the first line that differs is named, at any layout."""
    data = rows(30, longest=5)
    work.write_rows(data)
    work.run(0)
    for change in (lambda d: [*d[:17], {"prompt": "other"}, *d[18:]], lambda d: d[:17], lambda d: d[:17] + d[18:]):
        work.write_rows(change(data))
        for ranks in (0, 2):
            said = "the last 13 rows are gone" if change(data) == data[:17] else "in.jsonl:18"
            work.run(ranks, code=2, said=said)


def check_other_binary(work):
    """Case 20: a rank whose binary has a byte more, by mpirun's several programs (a host without the model: two_hosts)."""
    work.write_rows(rows(4))
    other = work.folder / "other-binary"
    other.write_bytes(pathlib.Path(work.binary).read_bytes() + b"x")
    other.chmod(0o755)
    command = work.command(0, "-dp", "2")
    done = subprocess.run(["mpirun", "--oversubscribe", "-n", "1", *command, ":", "-n", "1", str(other), *command[1:]],
                          cwd=work.folder, capture_output=True, timeout=60,
                          env={**resume.clean_environment(), **resume.ENVIRONMENT})
    log = done.stderr.decode(errors="replace")
    expect(done.returncode == 2 and "binary" in log and "rank 1" in log, f"other binary: exit code {done.returncode}\n{log}")
    expect(not (work.folder / "out.jsonl").exists(), "an output was written")


def check_full_merge(work):
    """Case 18: no room while the output is written: the temporary is removed, an older output stays; a full log is dropped."""
    work.write_rows(rows(40, longest=9))
    reference = work.reference()
    (work.folder / "out.jsonl").write_text("old\n")
    work.run(0, "--overwrite", code=6, said="No space left", environment={"MPINFER_FAULTS": "merge:1+:ENOSPC"})
    expect((work.folder / "out.jsonl").read_text() == "old\n" and not leftovers(work), f"{leftovers(work)} left behind")
    work.run(2, "-dp", 2, said="rows are done")
    work.check(reference)
    work.clear()
    with open("/dev/full", "wb") as full:
        done = subprocess.run(work.command(0), cwd=work.folder, stderr=full, stdout=full, timeout=60, env=resume.clean_environment())
    expect(done.returncode == 3, f"a log without room: exit code {done.returncode}")
    work.check(reference)


def check_read_only_tmp(work):
    """Case 29: /tmp read-only, in a mount namespace of its own; staged input needs a temporary file."""
    work.write_rows(rows(12, longest=9))
    reference = work.reference()
    place = pathlib.Path(tempfile.mkdtemp(prefix="mpinfer-faults-", dir="/var/tmp"))
    try:
        shutil.copy(work.folder / "in.jsonl", place)
        command = work.command(0)
        script = 'mount -t tmpfs -o ro none /tmp && exec "$@"'
        probe = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", "true"], capture_output=True)
        if probe.returncode != 0:
            print("      case 29 (/tmp read-only) skipped: no mount namespaces here", flush=True)
            return
        binary = place / "mpinfer"
        shutil.copy(work.binary, binary)
        shutil.copytree(resume.MODEL, place / "model")
        command[0], command[command.index(resume.MODEL)] = str(binary), str(place / "model")
        # mpirun makes a directory of its own before a rank starts, where TMPDIR says.
        for launcher, environment in (([], {}), (["mpirun", "-n", "2", "--oversubscribe"], {"TMPDIR": str(place)})):
            done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *launcher, *command], cwd=place, capture_output=True,
                                  timeout=60, env={**resume.clean_environment(), **resume.ENVIRONMENT, **environment})
            expect(done.returncode == 3 and (place / "out.jsonl").read_bytes() == reference,
                   f"/tmp read-only {launcher}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')}")
            shutil.rmtree(place / "out.jsonl.run")
            (place / "out.jsonl").unlink()
    finally:
        shutil.rmtree(place)


def check_small_disk(work):
    """Case 18 on a disk that is really full, in a mount namespace of its own: exit 6 once its patience of 20 s is over, nothing
    torn; on a larger one the same command ends the run."""
    out = work.folder / "out"
    out.mkdir()
    work.write_rows([{"prompt": "a" * 50, "max_tokens": 40, "filler": "x" * 2000} for _ in range(1500)])
    reference = work.reference()
    script = f"""mount -t tmpfs -o size=2m none {out} || exit 99
timeout -k 5 90 "$@"; echo "first $?"
test -e {out}/out.jsonl && echo torn
mount -o remount,size=64m {out} && timeout -k 5 90 "$@"; echo "second $?"
cp {out}/out.jsonl {work.folder}/copy.jsonl; ls {out} {out}/*.run"""
    command = work.command(0, out="out/out.jsonl")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *command], cwd=work.folder, capture_output=True, text=True,
                          timeout=240, env=resume.clean_environment())
    if done.returncode == 99 or "unshare:" in done.stderr:
        print("      case 18 (a small tmpfs) skipped: no mount namespaces here", flush=True)
        return
    said = done.stdout + done.stderr
    expect("first 6" in said and "torn" not in said and "second 0" in said and ".tmp" not in said, f"a full disk\n{said}")
    expect((work.folder / "copy.jsonl").read_bytes() == reference, "the output differs from the undisturbed run's")


def check_system_errors(work):
    """Case 19 with the system's own errors, by strace: EIO from fdatasync and from a write to the journal, ENOSPC from the output."""
    works = shutil.which("strace") and subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True).returncode == 0
    if not works:
        print("      strace (EIO, ENOSPC) skipped: it is not here or may not trace", flush=True)
        return
    work.write_rows(rows(60, longest=9))
    reference = work.reference()
    run_dir = work.folder / "out.jsonl.run"
    for what, path in (("fdatasync:error=EIO:when=1", run_dir / "journal-0001-r00000.log"),
                       ("write:error=EIO:when=1", run_dir / "journal-0001-r00000.log"),
                       ("write:error=ENOSPC", work.folder / "out.jsonl.new.tmp"),
                       ("fdatasync:error=EIO", work.folder / "out.jsonl.new.tmp")):
        work.clear()
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-e", f"inject={what}", *work.command(0)]
        command[command.index("out.jsonl")] = str(work.folder / "out.jsonl")  # strace compares names as they are given
        done = subprocess.run(command, cwd=work.folder, capture_output=True, text=True, timeout=60, env=resume.clean_environment())
        expect(done.returncode == 6, f"{what} on {path.name}: exit code {done.returncode}\n{done.stderr}")
        expect(not (work.folder / "out.jsonl").exists() and not leftovers(work), f"{what} on {path.name}: torn or left behind")
        work.run(0)
        work.check(reference)


def check_cases(work):
    """RELIABILITY's list of faults and bad input, by number."""
    for case in (check_refusals, check_input_changed, check_other_binary, check_full_merge, check_read_only_tmp,
                 check_system_errors):
        for path in work.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        case(work)


GROUPS = {"calls": check_calls, "writes": check_writes, "cases": check_cases, "small-disk": check_small_disk}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--plain")
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    failed = 0
    for name in options.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="mpinfer-faults-") as folder:
            try:
                work = Work(str(pathlib.Path(options.binary).resolve()), folder)
                work.plain = options.plain and str(pathlib.Path(options.plain).resolve())
                GROUPS[name](work)
                print(f"ok    {name}", flush=True)
            except (Failure, subprocess.TimeoutExpired) as failure:
                failed += 1
                print(f"FAIL  {name}: {failure}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
