"""``--explain``: the whole plan of a run, as text or JSON, before anything happens."""

import json
from typing import Any

from runner.grants.plan import PlannedGrant
from runner.supervise import Run

# What every jail has; docs/security.md says more of each.
_JAIL = {
    "namespaces": "user, mount, pid, network, ipc, uts, cgroup, and time where the kernel has it",
    "root": "an empty read-only tmpfs, with the pathlinks if there are any",
    "network": "a lo that is down",
    "capabilities": "none, and no way to gain one",
}


def as_json(run: Run) -> str:
    """Return the plan as one JSON object, ending without a newline."""
    return json.dumps(_plan(run), indent=2, ensure_ascii=False)


def as_text(run: Run) -> list[str]:
    """Return the plan as lines for a person."""
    plan = _plan(run)
    lines = [f"cell: {plan['cell']}"]
    lines += [f"arg: {arg}" for arg in plan["args"]]
    lines += [f"env: {key}={value}" for key, value in plan["env"].items()]
    for grant in plan["grants"]:
        name = grant["name"] or "(passes through)"
        source = "/dev/null" if grant["source"] is None else f"fd {grant['source']}"
        lines.append(
            f"fd {grant['target']}: {name} from {source} ({grant['what']}, {grant['origin']}) "
            f"type={grant['type']} mode={grant['mode']} of {grant['actual']}, enforced by "
            f"{grant['enforced_by']}"
            + "".join(f" {key}" for key in ("move", "pathlink") if grant[key])
            + ("" if grant["cloexec"] else " no-cloexec")
        )
    lines += [f"jail: {key}: {value}" for key, value in plan["jail"].items()]
    return lines


def _plan(run: Run) -> dict[str, Any]:
    return {
        "cell": run.address,
        "args": list(run.args),
        "env": dict(run.env),
        "grants": [_grant(entry) for entry in run.grants.entries],
        "jail": {**_JAIL, "uid": run.uid, "gid": run.gid},
    }


def _grant(entry: PlannedGrant) -> dict[str, Any]:
    kernel = entry.kernel_enforces
    return {
        **entry.grant._asdict(),
        "source": entry.source,
        "what": entry.what,
        "origin": entry.origin,
        "actual": entry.actual,
        "enforced_by": "the kernel and the host" if kernel else "the host",
    }
