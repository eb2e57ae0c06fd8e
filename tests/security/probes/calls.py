# Calls that a guest has no use for; each is a system call by number with arguments that the kernel itself would refuse
# in another way, so that the errno says who refused.
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return "ok" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), ctypes.get_errno())
BAD = -4096
X86 = {
    "ptrace": (101, 16, 1, 0, 0), "mount": (165, BAD, BAD, BAD, 0, 0), "umount2": (166, BAD, 0), "pivot_root": (155, BAD, BAD),
    "chroot": (161, BAD), "unshare": (272, 0x10000000), "unshare_net": (272, 0x40000000), "setns": (308, 0, 0), "clone_newuser": (56, 0x10000011, 0, 0, 0, 0),
    "bpf": (321, 0, BAD, 8), "perf_event_open": (298, BAD, 0, -1, -1, 0), "userfaultfd": (323, 0), "io_uring_setup": (425, 1, BAD),
    "keyctl": (250, 0, -3, 0), "add_key": (248, BAD, BAD, 0, 0, -3), "request_key": (249, BAD, BAD, 0, 0), "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, BAD, 0, BAD), "reboot": (169, 0, 0, 0, 0), "swapon": (167, BAD, 0), "acct": (163, BAD), "settimeofday": (164, BAD, 0),
    "clock_settime": (227, 0, BAD), "sethostname": (170, BAD, 1), "iopl": (172, 3), "ioperm": (173, 0, 1, 1), "syslog": (103, 2, BAD, 10),
    "process_vm_readv": (310, 1, BAD, 1, BAD, 1, 0), "pidfd_getfd": (438, 0, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0),
    "open_by_handle_at": (304, -100, BAD, 0), "name_to_handle_at": (303, -100, BAD, BAD, BAD, 0), "fsopen": (430, BAD, 0), "open_tree": (428, -100, BAD, 0),
    "move_mount": (429, -1, BAD, -1, BAD, 0), "mount_setattr": (442, -1, BAD, 0, BAD, 0), "sched_setaffinity": (203, 0, 8, BAD),
    "sched_setscheduler": (144, 0, 1, BAD), "setuid": (105, 0), "setresuid": (117, 0, 0, 0), "setgroups": (116, 0, 0), "capset": (126, BAD, BAD),
    "memfd_secret": (447, 0), "vmsplice": (278, 1, BAD, 1, 0), "fanotify_init": (300, 0, 0), "modify_ldt": (154, 0, BAD, 0), "seccomp": (317, 0, 0, 0),
    "personality": (135, 0x0040000), "prlimit_other": (302, 1, 7, 0, BAD), "quotactl": (179, 0, BAD, 0, BAD), "lookup_dcookie": (212, 0, BAD, 0),
    "mlockall": (151, 1), "inotify_init1": (294, 0), "landlock_create": (444, BAD, 8, 0), "uselib": (134, BAD), "ustat": (136, 0, BAD),
    "socket_inet": (41, 2, 1, 0), "socket_inet6": (41, 10, 2, 0), "socket_raw": (41, 2, 3, 1), "socket_packet": (41, 17, 3, 0), "socket_alg": (41, 38, 5, 0),
    "socket_netlink": (41, 16, 3, 0), "socket_netlink_xfrm": (41, 16, 3, 6), "socket_key": (41, 15, 3, 2), "socket_vsock": (41, 40, 1, 0), "socket_rxrpc": (41, 33, 2, 2),
    "socket_bluetooth": (41, 31, 3, 0), "socket_can": (41, 29, 3, 1), "socket_tipc": (41, 30, 1, 0), "socket_xdp": (41, 44, 3, 0), "socketpair_inet": (53, 2, 1, 0, BAD),
    "tiocsti": (16, 0, 0x5412, BAD), "tiocsetd": (16, 0, 0x5423, BAD), "setpriority_other": (141, 0, 1, 5),
}
print(json.dumps({name: call(*arguments) for name, arguments in X86.items()}))
