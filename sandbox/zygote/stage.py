"""Making the sources of the root reachable for a jail whose users may not pass through the host's directories.

nsjail mounts as the users of the jail, who own nothing and cannot search, say, the home in which an interpreter lies.
As root, and in a mount namespace of its own that dies with nsjail, this binds every source to a plain path first.
Runs on the host before nsjail; an ordinary user needs none of it, because the jail's user is that user.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from sandbox.kernel import libc, mounts, namespaces


def main(plan: str) -> NoReturn:
    """Bind each `sources[i]` to `directory/i`, then become `command`."""
    request = json.loads(plan)
    directory = request["directory"]
    libc.run(
        [
            namespaces.new_mount_namespace(),
            mounts.private("/"),
            mounts.tmpfs(directory, size_bytes=1 << 20, inodes=len(request["sources"]) + 8, mode=0o755),
        ]
    )
    for number, source in enumerate(request["sources"]):
        target = f"{directory}/{number}"
        if os.path.isdir(source):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        libc.run([mounts.bind(source, target)])
    os.execve(request["command"][0], request["command"], {})
    sys.exit(126)
