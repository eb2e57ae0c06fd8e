"""The driver and the cgroups: a sandbox is in its groups from the start, sees no name of them, and leaves none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox import Sandbox, SandboxPool
from sandbox.drivers import zygote
from sandbox.kernel.cgroups import Cgroups
from sandbox.kernel.cgroups.owner import PREFIX, Tree, find_trees
from sandbox.kernel.cgroups.server import REQUIRED, open_trees

from ..boxes import policy, until, works
from .test_cgroups import unified_mount

pytestmark = pytest.mark.asyncio(loop_scope="session")


def members(box: Sandbox) -> list[set[int]]:
    """Who is in each of the groups of a sandbox, as the host sees it."""
    slot = box._box.slot  # type: ignore[attr-defined]
    if slot is None:
        pytest.skip("no cgroups here")
    return [set(map(int, Path(f"{group}/cgroup.procs").read_text().split())) for _, group in slot._groups]


async def roots(box: Sandbox) -> set[str]:
    """What the guest reads as the paths of its groups, and as those of its commands."""
    step = await box.run_code("print(open('/proc/self/cgroup').read() + open('/proc/1/cgroup').read())")
    command = await box.run_command(["cat", "/proc/self/cgroup"])
    return {line.split(":", 2)[2] for line in (step.stdout + command.stdout).split()}


async def test_a_sandbox_sees_its_groups_as_the_roots(box: Sandbox) -> None:
    assert await roots(box) == {"/"}


async def test_the_jail_has_a_cgroup_namespace_only_where_nobody_is_cloned_out_of_it(shared_pool: SandboxPool) -> None:
    cgroups: Cgroups | None = shared_pool.driver.cgroups  # type: ignore[attr-defined]
    own = cgroups is None or cgroups.kind == "v1"
    assert f"clone_newcgroup: {str(own).lower()}\n" in shared_pool.driver.config_text  # type: ignore[attr-defined]


@pytest.mark.root
async def test_sandboxes_are_cloned_into_v2_and_join_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture that every machine with v1 has: the v2 tree without controllers beside the others."""
    whole = Tree(mount=unified_mount(), controllers=frozenset(), own=None)
    trees = find_trees(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text(), REQUIRED)
    if any(tree.mount.version == 2 for tree in trees):
        pytest.skip("every sandbox here is cloned into v2, in the other tests too")

    def open_hybrid(*, zygote_uid: int | None) -> Cgroups:
        return open_trees([*trees, whole], PREFIX, controllers=REQUIRED, zygote_uid=zygote_uid)

    monkeypatch.setattr(zygote, "open_cgroups", open_hybrid)
    async with SandboxPool(policy()) as pool:
        cgroups: Cgroups = pool.driver.cgroups  # type: ignore[attr-defined]
        assert cgroups.kind == "hybrid"
        assert "clone_newcgroup: false\n" in pool.driver.config_text  # type: ignore[attr-defined]
        async with pool.sandbox() as box:
            await works(box)
            assert await roots(box) == {"/"}
            first, *others = members(box)
            assert len(first) == 2  # the warden and the interpreter
            assert all(group == first for group in others)
            slot = box._box.slot  # type: ignore[attr-defined]
            await box.run_code("import os\nif not os.fork():\n  while True: pass")
        assert await until(lambda: not slot.populated())
    assert not [path for path in cgroups.directories if Path(path).exists()]
