#!/usr/bin/env python3
"""Checks the rules of lib/README.md that a reader would otherwise have to: include order, who may talk to other ranks, where
mpi.h and CUDA headers may stand, no feature #if in lib and apps. Prints sizes; exit 1 names each breach.
"""
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOST_COMM = {"heartbeat", "mpi", "mesh", "watch", "affinity", "mpi_handle", "pause", "ulfm"}  # below the backend

# room → rooms it may include; "comm_host" is lib/comm's lower half.
MAY = {
    "core": set(),
    "kernels": {"core"},
    "text": {"core"},
    "comm_host": {"core"},
    "backend": {"core", "kernels"},
    "comm": {"core", "kernels", "comm_host", "backend"},
    "model": {"core", "backend", "comm"},
    "engine": {"core", "backend", "comm", "comm_host", "model"},
    "io": {"core", "comm_host"},
    "planner": {"core", "comm_host", "model"},
    "job": {"core", "io", "text", "engine", "model", "comm_host"},
    "apps": {"core", "kernels", "text", "comm_host", "comm", "backend", "model", "engine", "io", "job", "planner"},
}
PLANNER_MODEL = {"config", "params", "loader", "kv_cache"}
# Files that may use a communicator (tensors) or HostComm (host data); lib/comm itself aside.
TENSORS = {"model/boundary", "model/embedding", "model/lm_head", "model/moe", "engine/runner"}
HOST_DATA = {"engine/control", "engine/lockstep", "io/exchange", "io/gather", "job/session", "job/session_run",
             "job/earlier_results", "apps/main", "apps/commands/run", "apps/commands/run_setup"}
TENSOR_CALL = re.compile(r"(?:\.|->)(?:all_reduce_sum|all_gather_v?|reduce_scatter_sum_v|all_to_all|sum_add_norm|begin_pieces|start_send_recv)\(")
HOST_CALL = re.compile(r"(?:\.|->)(?:start_broadcast|start_send|start_receive|start_all_gather|try_receive|gather_v|fetch_and_add)\(")
FEATURE_IF = re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*(?:CUDA|NCCL|WITH_|USE_|HAVE_)")
CUDA_HEADER = re.compile(r'#include [<"](?:cuda|cublas|nccl|cub/|cute/|cutlass)')


def room_of(path):
    parts = path.split("/")
    if parts[0] == "lib":
        if parts[1] == "comm":
            return "comm_host" if os.path.splitext(parts[2])[0] in HOST_COMM else "comm"
        return parts[1]
    return parts[0]


def sources():
    for top in ("apps", "lib", "kernels"):
        for folder, _, files in os.walk(os.path.join(ROOT, top)):
            for name in sorted(files):
                if name.endswith((".h", ".cpp", ".cu", ".cuh")):
                    yield os.path.relpath(os.path.join(folder, name), ROOT)


def breaches(path, lines):
    room = room_of(path)
    stem = os.path.splitext(path)[0].removeprefix("lib/")
    cuda_file = path.startswith("kernels/cuda") or os.path.basename(path).startswith(("cuda_", "nccl_"))
    for number, line in enumerate(lines, 1):
        where = "%s:%d" % (path, number)
        included = re.match(r'\s*#\s*include "((?:lib|apps|kernels)/[^"]+)"', line)
        if included:
            target = included.group(1)
            other = room_of(target)
            if other != room and other not in MAY[room]:
                yield "%s: %s may not include %s (%s)" % (where, room, other, target)
            if room == "planner" and other == "model" and os.path.splitext(os.path.basename(target))[0] not in PLANNER_MODEL:
                yield "%s: planner sees model/{config, params, loader, kv_cache} only" % where
        if re.match(r'\s*#\s*include [<"]mpi\.h', line) and not path.startswith("lib/comm/"):
            yield "%s: mpi.h stays in lib/comm" % where
        if CUDA_HEADER.search(line) and not cuda_file:
            yield "%s: CUDA headers stay in cuda_*, nccl_* and kernels/cuda" % where
        if path.startswith(("lib/", "apps/")) and FEATURE_IF.search(line):
            yield "%s: feature #if; choose a stub file in CMake instead" % where
        if room in ("comm", "comm_host"):
            continue
        if TENSOR_CALL.search(line) and stem not in TENSORS and stem not in HOST_DATA:
            yield "%s: only %s may move tensors between ranks" % (where, ", ".join(sorted(TENSORS)))
        if HOST_CALL.search(line) and stem not in HOST_DATA:
            yield "%s: only %s may move host data between ranks" % (where, ", ".join(sorted(HOST_DATA)))


def main():
    found, sizes = [], []
    for path in sources():
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            lines = f.read().split("\n")
        sizes.append((len(lines), path))
        found.extend(breaches(path, lines))
    sizes.sort(reverse=True)
    print("%d files, %d lines; longest: %s" % (len(sizes), sum(n for n, _ in sizes),
                                              ", ".join("%s %d" % (p, n) for n, p in sizes[:3])))
    for breach in found:
        print(breach)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
