"""``--explain``: the whole plan of a run, as text or JSON, before anything happens."""

import json
import os
from collections.abc import Mapping
from typing import Any

from runner.content.ipns import resolve
from runner.content.ipns_name import PREFIX as IPNS
from runner.content.resolver import parse_path
from runner.content.sources import open_content
from runner.errors import EXIT_USAGE, WwError, printable
from runner.grants.plan import PlannedGrant
from runner.limits import FLAGS
from runner.spawners import cache_size
from runner.supervise import Run, exit_code
from sandbox import JailError, Outcome, Plan, check_chroot

# What every jail has; docs/security.md says more of each.
_JAIL = {
    "capabilities": "none, and no way to gain one",
    "seccomp": "an allow-list: no program, process or socket can be started or made",
}
_NAMESPACES = "user, mount, pid, network, ipc, uts, cgroup, and time where the kernel has it"
_NETWORKS = {"none": "a lo that is down", "loopback": "a lo that is up, and nobody else's"}
# Nobody has to hold a mode back where the descriptor allows no more.
_DESCRIPTOR = "the kernel (the descriptor allows no more) and the host"
_NARROWED = (
    "the host; the kernel only keeps the descriptor from being opened anew (seccomp, and Landlock "
    "where the kernel has it)"
)
_MOUNT = "the kernel (read-only mount) and the host"
_TREE = "the kernel (a mount of its own, and the permissions of its files) and the host"


def check(run: Run, environ: Mapping[str, str]) -> None:
    """Hold that a run would not be refused for what is said of it, as far as that is known here.

    Nothing is asked, and no file is looked for.

    Args:
        run: What would be run.
        environ: ww's own environment.

    Raises:
        WwError: As the run would, with code 2, or 67 for what the jail cannot be.
    """
    cache_size(environ)
    _check_address(run, environ)
    if run.isolation == "chroot":
        _check_chroot(run)


def _check_chroot(run: Run) -> None:
    """Hold that it asks for nothing that takes a namespace of its own.

    Raises:
        WwError: As the run would, with code 67.
    """
    plan = Plan(
        grants=run.grants.grants,
        argv=(),
        env=(),
        uid=run.uid,
        gid=run.gid,
        digest="0" * 64,
        limits=run.limits,
        network=run.network,
        isolation=run.isolation,
    )
    try:
        check_chroot(plan)
    except JailError as error:
        exit_code(run.address, Outcome("jail", error.errno, error.what, error.step))


def _check_address(run: Run, environ: Mapping[str, str]) -> None:
    """Hold that the cell's address is one, and those of whom it would be asked of.

    Raises:
        WwError: As the run would, with code 2.
    """
    if not run.address.startswith(("/ipfs/", IPNS)):
        return
    with open_content(environ, run.fetch, quiet=True) as blocks:
        if not run.address.startswith(IPNS):
            parse_path(run.address)
            return
        try:
            # With no memory and nobody to ask, it goes as far as the address itself.
            resolve(
                run.address,
                blocks,
                os.devnull,
                dnslink=run.fetch.dnslink,
                offline=True,
                tell=lambda _: None,
            )
        except WwError as error:
            if error.code == EXIT_USAGE:
                raise


def as_json(run: Run) -> str:
    """Return the plan as one JSON object, ending without a newline."""
    return json.dumps(_plan(run), indent=2, ensure_ascii=False)


def as_text(run: Run) -> list[str]:
    """Return the plan as lines for a person; whatever is in it, it cannot forge one."""
    plan = _plan(run)
    lines = [f"cell: {plan['cell']}"]
    lines += [f"arg: {arg}" for arg in plan["args"]]
    if run.invoke:
        lines.append(f"invoke: {run.invoke}")
    lines.append(f"unknown imports: {plan['unknown_imports']}")
    lines += [f"env: {key}={value}" for key, value in plan["env"].items()]
    for grant in plan["grants"]:
        name = grant["name"] or "(passes through)"
        source = "/dev/null" if grant["source"] is None else f"fd {grant['source']}"
        lines.append(
            f"fd {grant['target']}: {name} from {source} ({grant['what']}, {grant['origin']}) "
            f"type={grant['type']} mode={grant['mode']} of {grant['actual']}"
            + (f" at {grant['guest']} and fd {grant['preopen']}" if "guest" in grant else "")
            + "".join(f" {key}" for key in ("move", "pathlink") if grant[key])
            + ("" if grant["cloexec"] else " no-cloexec")
            + f", enforced by {grant['enforced_by']}"
        )
    lines += [f"with: {key}: {value}" for key, value in plan["with"].items()]
    lines += [f"limit: {flag.name} {flag.shown(run.limits)}" for flag in FLAGS]
    lines.append(f"grace: {run.grace:g}s")
    lines.append(f"until: {plan['until']}")
    lines += [f"jail: {key}: {value}" for key, value in plan["jail"].items()]
    lines += [f"required: {feature}" for feature in plan["required"]]
    return [printable(line) for line in lines]


def _plan(run: Run) -> dict[str, Any]:
    return {
        "cell": run.address,
        "args": list(run.args),
        "invoke": run.invoke,
        "unknown_imports": "trap when called" if run.trap_unknown else "refused",
        "env": dict(run.env),
        "grants": [_grant(entry) for entry in run.grants.entries],
        "with": _capabilities(run),
        "limits": run.limits._asdict(),
        "grace": run.grace,
        "until": f"the end of ww{' or of what started it' if run.die_with_parent else ''}",
        "network": run.network,
        "required": list(run.required),
        "jail": {
            "isolation": run.isolation,
            "namespaces": _NAMESPACES if _is_full(run) else "none: those of the host",
            **_JAIL,
            "root": _root(run) if _is_full(run) else "an empty directory (chroot)",
            "network": _NETWORKS[run.network] if _is_full(run) else "no call to reach the host's",
            "uid": run.uid,
            "gid": run.gid,
        },
    }


def _is_full(run: Run) -> bool:
    return run.isolation == "full"


def _root(run: Run) -> str:
    """Say what is in the cell's root directory."""
    holds = []
    if any(entry.is_directory for entry in run.grants.entries):
        holds.append("the granted directories")
    if any(entry.grant.pathlink for entry in run.grants.entries):
        holds.append("the pathlinks")
    if run.limits.scratch:
        holds.append("a writable /tmp")
    return "a read-only tmpfs with " + (", ".join(holds) or "nothing in it")


def _capabilities(run: Run) -> dict[str, str]:
    """Say what it may do beyond its grants."""
    found = {}
    if run.ipfs:
        found["ipfs"] = "content of the store at /ipfs, for reading, verified by ww"
    if run.terminals:
        numbers = ", ".join(map(str, run.terminals))
        found["console"] = f"it is told that these are terminals, and their size: {numbers}"
    return found


def _enforcer(entry: PlannedGrant) -> str:
    """Say who holds the cell to the mode."""
    if entry.is_directory:
        return _MOUNT if entry.grant.mode == "r" else _TREE
    return _DESCRIPTOR if entry.grant.mode == entry.actual else _NARROWED


def _grant(entry: PlannedGrant) -> dict[str, Any]:
    return {
        **entry.facts(),
        "source": entry.source,
        "what": entry.what,
        "origin": entry.origin,
        "actual": entry.actual,
        "enforced_by": _enforcer(entry),
    }
