"""Judge submissions that nobody has read: each runs in a jail, with limits, on the same tests.

python examples/judge/judge.py [COUNT [WORKERS]]
"""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from statistics import median

from sandbox import Cell, CellExecutor, Limits, Result, SandboxError

SUBMISSION = Path(__file__).resolve().parent / "judge.wasm"
KINDS = ("right", "right", "wrong", "loop", "hog", "flood", "trap", "fail")

QUESTION = "".join(f"{a} {b}\n" for a in range(10) for b in range(10)).encode()
ANSWER = "".join(f"{a + b}\n" for a in range(10) for b in range(10)).encode()

# Of one submission: a second of processor time, which is fair also where the machine is busy;
# 64 MiB, of which 16 are its stack; and more output than a right answer has.
LIMITS = Limits(wall=20, cpu=1, memory=64 << 20, output=64 << 10)

_WORDS = {
    "wall": "time limit",
    "cpu": "time limit",
    "memory": "memory limit",
    "host-memory": "memory limit",
    "output": "output limit",
}


def verdict(result: Result) -> str:
    """Say what a judge says of one run."""
    if result.outcome.kind == "limit":
        return _WORDS.get(result.outcome.limit, result.describe())
    if not result.ok:
        return f"failed: {result.describe()}"
    return "accepted" if result.stdout == ANSWER else "wrong answer"


def judge(count: int, workers: int | None) -> dict[str, list[tuple[str, Result]]]:
    """Run so many submissions, and return the verdicts and results by what was submitted."""
    judged = defaultdict(list)
    with Cell.load(SUBMISSION, "submission") as cell, CellExecutor(workers) as executor:
        executor.submit(cell).result()  # it is compiled by now, and nobody's time is charged for it
        kinds = [KINDS[number % len(KINDS)] for number in range(count)]
        submitted: dict[Future[Result], str] = {
            executor.submit(cell, [kind], stdin=QUESTION, limits=LIMITS): kind for kind in kinds
        }
        for future in as_completed(submitted):
            result = future.result()
            judged[submitted[future]].append((verdict(result), result))
    return judged


def table(judged: dict[str, list[tuple[str, Result]]]) -> str:
    """Return one line for each kind of submission."""
    lines = [f"{'submitted':<10} {'count':>5} {'cpu ms':>7} {'MiB':>6}  verdict"]
    for kind in dict.fromkeys(KINDS):
        verdicts = judged.get(kind, [])
        used = [result.usage for _, result in verdicts if result.usage is not None]
        if not verdicts:
            continue
        cpu = median(usage.cpu for usage in used) * 1000
        memory = median(usage.memory for usage in used) / (1 << 20)
        words = Counter(word for word, _ in verdicts)
        said = ", ".join(word if n == len(verdicts) else f"{n} {word}" for word, n in words.items())
        lines.append(f"{kind:<10} {len(verdicts):>5} {cpu:>7.1f} {memory:>6.1f}  {said}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Be the program."""
    count = int(argv[1]) if len(argv) > 1 else 100
    workers = int(argv[2]) if len(argv) > 2 else None
    begun = time.monotonic()
    try:
        judged = judge(count, workers)
    except SandboxError as error:
        print(f"judge: error: {error}", file=sys.stderr)
        return 1
    print(table(judged))
    print(f"{count} submissions in {time.monotonic() - begun:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
