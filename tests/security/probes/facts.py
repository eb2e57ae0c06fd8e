import json, os, resource

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)


def kind(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
    except OSError:
        return None


print(
    json.dumps(
        {
            "uid": status["Uid"].split(),
            "gid": status["Gid"].split(),
            "groups": status["Groups"].split(),
            "capabilities": [status[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
            "no_new_privileges": status["NoNewPrivs"],
            "seccomp": status["Seccomp"],
            "threads": status["Threads"],
            "pids": sorted(int(n) for n in os.listdir("/proc") if n.isdigit()),
            "proc": sorted(n for n in os.listdir("/proc") if not n.isdigit()),
            "root": sorted(os.listdir("/")),
            "etc": sorted(os.listdir("/etc")),
            "dev": sorted(os.listdir("/dev")),
            "descriptors": {n: kind(n) for n in map(int, os.listdir("/proc/self/fd")) if kind(n)},
            "environment": dict(os.environ),
            "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC)],
            "sid": os.getsid(0) == os.getpid(),
            "hostname": os.uname().nodename,
            "cwd": os.getcwd(),
            "oom": open("/proc/self/oom_score_adj").read().strip(),
            "cgroup": open("/proc/self/cgroup").read(),
            "mounts": [line.split()[4] + " " + line.split()[5].split(",")[0] for line in open("/proc/self/mountinfo")],
            "mount_sources": [line.split(" - ")[1].split()[1] for line in open("/proc/self/mountinfo")],
            "mount_roots": [line.split()[3] for line in open("/proc/self/mountinfo")],
            "interfaces": os.listdir("/sys/class/net") if os.path.exists("/sys/class/net") else None,
        }
    )
)
