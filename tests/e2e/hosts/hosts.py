#!/usr/bin/env python3
"""mpirun over two hosts: network, mount and host name namespaces of their own, joined by a veth pair, and an rsh agent that starts
a command in the other one with an empty environment, as a login would. hosts.py --binary MPINFER --simulated MPINFER_SIMULATED.
Exit 77: namespaces are refused here.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests/e2e/resume"))
from resume import ENVIRONMENT, MODEL, Failure, Work, clean_environment, expect, journalled, rows, status, wait_for  # noqa: E402

ADDRESSES = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
AGENT = """#!/bin/sh
# HOST COMMAND…, as mpirun calls ssh.
host="$1"
shift
exec {enter} -t "$(cat {folder}/$host.pid)" -n -u -m env -i PATH="{path}" HOME="{home}" sh -c "$*"
"""


class Refused(Exception):
    pass


def tool(*command, check=True):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=20)
    if check and done.returncode != 0:
        raise Refused(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done


class Hosts:
    """alpha, where mpirun starts, and beta."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.holders = {}

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        for name in ("ip", "unshare", "nsenter", "mount"):
            if not shutil.which(name):
                raise Refused(f"no {name} here")
        for host, address in ADDRESSES.items():
            ready = self.folder / f"{host}.ready"
            script = f"hostname {host} && mount -t tmpfs none /dev/shm && ip link set lo up && touch {ready} && exec sleep 600"
            self.holders[host] = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", script],
                                                  stderr=subprocess.PIPE, text=True)
            end = time.time() + 10
            while not ready.exists():
                if self.holders[host].poll() is not None or time.time() > end:
                    self.holders[host].kill()
                    raise Refused(self.holders[host].communicate()[1].strip())
                time.sleep(0.02)
            for name in (host, address):
                (self.folder / f"{name}.pid").write_text(str(self.holders[host].pid))
        alpha, beta = (self.holders[host].pid for host in ADDRESSES)
        self.on("alpha", "ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", beta)
        for host, address in ADDRESSES.items():
            self.on(host, "ip", "address", "add", f"{address}/24", "dev", "wire")
            self.on(host, "ip", "link", "set", "wire", "up")
        agent = self.folder / "agent"
        agent.write_text(AGENT.format(enter=shutil.which("nsenter"), folder=self.folder, path=os.environ["PATH"],
                                      home=self.folder))
        agent.chmod(0o755)

    def entered(self, host):
        return ["nsenter", "-t", str(self.holders[host].pid), "-n", "-u", "-m"]

    def on(self, host, *command):
        return tool(*self.entered(host), *command)

    def processes_of(self, host):
        """All but the holder."""
        holder = self.holders[host].pid
        home = os.readlink(f"/proc/{holder}/ns/uts")
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(entry / "ns/uts") == home and int(entry.name) != holder:
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    def kill(self, host):
        for pid in self.processes_of(host):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def stop(self):
        for host, holder in self.holders.items():
            if holder.poll() is None:
                self.kill(host)
            holder.kill()
            holder.wait()


class Job(Work):
    """Runs of Work on 2 or 4 ranks, half of them on each host; on 0 ranks without mpirun, outside."""

    def __init__(self, hosts, binary, folder):
        super().__init__(binary, folder)
        self.hosts = hosts

    def command(self, ranks, *arguments, out="out.jsonl", model=MODEL, launcher=()):
        command = super().command(ranks, *arguments, out=out, model=model)
        if ranks == 0:
            return command
        where = ",".join(f"{address}:{ranks // 2}" for address in ADDRESSES.values())
        return [*self.hosts.entered("alpha"), f"--wd={self.folder}", *command[:3], "--host", where, "--bind-to", "none",
                "--mca", "plm_rsh_agent", str(self.hosts.folder / "agent"), *launcher, *command[3:]]


def check_run(job):
    """Both hosts take part; what is set on rank 0's host alone (a login of the other lacks it) holds everywhere."""
    job.write_rows(rows(60))
    environment = {"MPINFER_TEMPERATURE": "0.4"}
    job.run(0, out="reference.jsonl", environment=environment)
    reference = (job.folder / "reference.jsonl").read_bytes()
    for ranks, arguments in ((2, ("-dp", 2)), (4, ("-dp", 2, "-pp", 2)), (2, ("-tp", 2))):
        job.clear()
        job.run(ranks, *arguments, environment=environment)
        job.check(reference)
        report = (job.folder / "out.jsonl.run/report.json").read_text()
        expect(all(host in report for host in ADDRESSES), f"report.json names not both hosts\n{report[:2000]}")


def check_dynamic(job):
    """The counter that hands out rows is memory of a rank behind TCP."""
    job.write_rows(rows(300))
    reference = job.reference()
    job.run(4, "-dp", 4, "--partition", "dynamic")
    job.check(reference)
    records = json.loads((job.folder / "out.jsonl.run/report.json").read_text())
    expect("beta" in json.dumps(records), "beta took no part")


def check_no_model(job):
    """The other host has no model there: exit 2 before anything is made, naming rank, host and field."""
    job.write_rows(rows(6))
    model = job.folder / "model"
    shutil.copytree(MODEL, model)
    job.hosts.on("beta", "mount", "-t", "tmpfs", "none", model)
    job.run(2, "-dp", 2, "--model", model, code=2, said="beta")
    log = job.log()
    expect(f"rank 1 on beta differs from rank 0 on alpha in model directory: nothing at {model}" in log, log)
    expect(not (job.folder / "out.jsonl").exists(), "OUT was written")
    job.hosts.on("beta", "umount", model)
    job.run(2, "-dp", 2, "--model", model)


def lost(job, lose, what):
    job.write_rows(rows(600, longest=100))
    reference = job.reference()
    process = job.start(4, "-dp", 4, "--max-num-seqs", 4, "--step-timeout", "2s",
                        environment={"MPINFER_SIMULATED_STEP_US": "8000"})
    wait_for(lambda: journalled(job) > 20 or process.poll() is not None, f"rows in the journal\n{job.log()}")
    before = journalled(job)
    lose()
    started = time.time()
    # mpirun that cannot reach its daemon stays for minutes: then the ranks' verdict is the end.
    verdict = "gave no sign of life"
    wait_for(lambda: process.poll() is not None or verdict in job.log(), f"the end after {what}\n{job.log()}", seconds=20)
    took = time.time() - started
    if process.poll() is None:
        wait_for(lambda: "exit_code" in status(job, "--json") and "running since" not in status(job), "the ranks' end", seconds=10)
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait(20)
    expect(code != 0, f"{what}: exit code 0\n{job.log()}")
    job.hosts.kill("beta")
    job.hosts.kill("alpha")
    expect(not (job.folder / "out.jsonl").exists() and journalled(job) >= before, f"{what}: finished rows were lost")
    # mpirun that sees the end sends TERM to the others, which may come before their own verdict.
    manifest = json.loads(status(job, "--json", "--exit-code", code=None))
    expect(manifest["exit_code"] in (7, 75), f"{what}: {manifest}\n{job.log()}")
    print(f"      {what}: the verdict or the end after {took:.1f} s", flush=True)
    job.run(0, said="rows are done")
    job.check(reference)


def check_dead_host(job):
    """Every process of a host dies at once: the job ends, and one rank on the other host does the rest."""
    lost(job, lambda: job.hosts.kill("beta"), "beta died")


def check_cut_wire(job):
    """The wire is cut and nobody dies: mpirun sees nothing for minutes, the step deadline does."""
    lost(job, lambda: job.hosts.on("beta", "ip", "link", "set", "wire", "down"), "the wire was cut")


GROUPS = {"run": check_run, "dynamic": check_dynamic, "no-model": check_no_model, "dead-host": check_dead_host,
          "cut-wire": check_cut_wire}
SIMULATED = ("dead-host", "cut-wire")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--simulated", required=True)
    parser.add_argument("groups", nargs="*")
    options = parser.parse_args()
    if os.geteuid() != 0:
        done = subprocess.run(["unshare", "--user", "--map-root-user", sys.executable, *sys.argv])
        return 77 if done.returncode not in (0, 77) and tool("unshare", "--user", "true", check=False).returncode else done.returncode
    failed = 0
    for name in options.groups or GROUPS:
        binary = str(pathlib.Path(options.simulated if name in SIMULATED else options.binary).resolve())
        with tempfile.TemporaryDirectory(prefix="mpinfer-hosts-") as folder:
            try:
                with Hosts(folder) as hosts:
                    (pathlib.Path(folder) / "work").mkdir()
                    GROUPS[name](Job(hosts, binary, pathlib.Path(folder) / "work"))
                print(f"ok    {name}", flush=True)
            except Refused as reason:
                print(f"skipped: no namespaces here: {reason}")
                return 77
            except Failure as failure:
                failed += 1
                print(f"FAIL  {name}: {failure}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
