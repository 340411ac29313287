"""A Slurm of one node in a folder of its own: munged, slurmctld and slurmd with their own ports, key and configuration, without
systemd, cgroups or accounting. with Cluster(folder) as cluster: … ends all three, whatever happens."""
import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

CONFIGURATION = """
ClusterName=mpinfer
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
# A requeued job waits until the credential of its last start has expired: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")


class CannotStart(Exception):
    pass


def which(program):
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    def __init__(self, folder, environment):
        self.folder = pathlib.Path(folder)
        self.environment = {**environment, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons = []

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
        missing = [name for name in PROGRAMS if not which(name)]
        if missing:
            raise CannotStart(f"no {', '.join(missing)} here (Debian: slurm-wlm, munge)")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(
            host=host, user=getpass.getuser(), folder=self.folder, controller_port=free_port(), node_port=free_port()))
        # Only loaded: no plugin above uses it.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}",
                    f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
                    f"--seed-file={self.folder}/munged.seed")
        self.wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self.daemon("slurmctld", "-D", "-c")
        self.daemon("slurmd", "-D", "-N", host)
        self.wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t", check=False).split(), "an idle node")

    def daemon(self, program, *arguments):
        log = open(self.folder / f"{program}.out", "wb")
        self.daemons.append(subprocess.Popen([which(program), *arguments], env=self.environment, stdout=log, stderr=log,
                                             cwd=self.folder, start_new_session=True))

    def wait(self, condition, what, seconds=20):
        end = time.time() + seconds
        while not condition():
            if time.time() > end or any(daemon.poll() is not None for daemon in self.daemons):
                raise CannotStart(f"no {what}:\n{self.logs()}")
            time.sleep(0.1)

    def logs(self):
        return "\n".join(f"{path.name}: …{path.read_text(errors='replace')[-1500:]}"
                         for path in sorted(self.folder.glob("*.out")))

    def ask(self, program, *arguments, check=True, environment=None):
        done = subprocess.run([which(program) or program, *map(str, arguments)], capture_output=True, text=True, timeout=30,
                              env={**self.environment, **(environment or {})})
        if check and done.returncode != 0:
            raise RuntimeError(f"{program} {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def job(self, job_id):
        """What scontrol says of a job, by name. Of an array: of its first record."""
        fields = self.ask("scontrol", "show", "job", "--oneliner", job_id).split("\n")[0].split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def stop(self):
        if len(self.daemons) == 3:
            try:  # jobs are no children of the daemons: they would outlive them
                self.ask("scancel", f"--user={getpass.getuser()}", check=False)
                end = time.time() + 10
                while self.ask("squeue", "--noheader", check=False).strip() and time.time() < end:
                    time.sleep(0.2)
            except subprocess.TimeoutExpired:
                pass
        for daemon in reversed(self.daemons):
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(8)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
