import json, os


def tried(work):
    try:
        return repr(work())[:60]
    except OSError as error:
        return os.strerror(error.errno)


def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)


READ = [
    "/etc/shadow",
    "/root",
    "/home",
    "/proc/1/environ",
    "/proc/1/mem",
    "/proc/1/maps",
    "/proc/1/root",
    "/proc/1/cwd",
    "/proc/1/fd",
    "/proc/1/exe",
    "/proc/1/ns/net",
    "/proc/1/io",
    "/proc/1/syscall",
    "/proc/1/stack",
    "/proc/kcore",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/keys",
    "/proc/sysrq-trigger",
    "/proc/sys",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/core_pattern",
    "/sys",
    "/sys/fs/cgroup",
    "/run",
    "/var",
    "/srv",
    "/boot",
    "/dev/mem",
    "/dev/kmsg",
    "/dev/kvm",
    "/dev/fuse",
    "/dev/ptmx",
    "/dev/tty",
    "/dev/console",
    "/dev/net/tun",
    "/var/run/docker.sock",
    "/etc/hostname",
    "/etc/resolv.conf",
]
WRITE = [
    "/x",
    "/etc/passwd",
    "/usr/bin/x",
    "/bin/sh",
    "/opt/python/x",
    "/lib/x",
    "/dev/x",
    "/proc/1/oom_score_adj",
    "/proc/self/uid_map",
    "/proc/self/gid_map",
    "/proc/self/setgroups",
    "/proc/1/comm",
    "/mnt/x",
]


def read(path):
    return os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(100)


print(
    json.dumps(
        {
            "read": {path: tried(lambda: read(path)) for path in READ},
            "write": {path: tried(lambda: write(path)) for path in WRITE},
            "exe": tried(lambda: os.open("/proc/self/exe", os.O_WRONLY)),
            "oom_lower": tried(lambda: write("/proc/self/oom_score_adj", "0")),
            "kill_warden": tried(lambda: os.kill(1, 9)),
            "stop_warden": tried(lambda: os.kill(1, 19)),
            "mknod": tried(lambda: os.mknod("/workspace/zero", 0o20666, os.makedev(1, 5))),
            "chown": tried(lambda: os.chown("/workspace", 0, 0)),
            "suid": tried(lambda: (write("/workspace/s"), os.chmod("/workspace/s", 0o6755))),
            "up": tried(lambda: (os.chdir("/"), os.chdir("../../../.."), os.getcwd())[-1]),
            "rlimit": [__import__("resource").getrlimit(n) for n in range(16)],
        }
    )
)
