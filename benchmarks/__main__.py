"""``nox -s bench``: measures all subjects side by side in one run, and prints tables in Markdown.

Each subject runs in its own process, and only one works at a time. In a round each subject has a turn.
Subjects that are compared take turns one after the other, and the first one changes with each round.
The result is the median of the ratios of the rounds: a slow phase of the machine slows both.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.measures import MEASURES, SLOW, Measure
from benchmarks.report import picture, tables, targets
from benchmarks.subjects import SUBJECTS

ROOT: Final = Path(__file__).parents[1]
# The tree comes last on the path: it must not hide the published client of the same name.
LAUNCH: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); from benchmarks.{} import main; main()"
)
LEAST: Final = 3
"""Rounds that each subject takes part in, however slow it is."""


class Process:
    """The server, or a worker. It prints a line when it is ready, and responds to commands."""

    def __init__(self, python: str, module: str, *arguments: str) -> None:
        # Proxies and tools that watch a program would change the results.
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().endswith("_PROXY") and not name.startswith(("PYTHON", "COVERAGE"))
        }
        self._process = subprocess.Popen(
            [python, "-P", "-c", LAUNCH.format(module), str(ROOT), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.said = self.read()

    def read(self) -> Any:
        """Read a line of JSON."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process has died; above is what it said")
        return json.loads(line)

    def write(self, *command: object) -> None:
        """Write a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Bench:
    """The server, and the workers. A worker starts when it is first needed."""

    def __init__(self, published: str | None, stack: ExitStack) -> None:
        self._stack = stack
        self._pythons = {False: sys.executable, True: published}
        self._workers: dict[str, Process] = {}
        self._url = f"http://127.0.0.1:{self._start(sys.executable, 'server').said}"

    def _start(self, *arguments: str) -> Process:
        process = Process(*arguments)
        self._stack.callback(process.close)
        return process

    def _new_worker(self, subject: str) -> Process:
        python = self._pythons[SUBJECTS[subject].published]
        assert python is not None
        return self._start(python, "worker", subject, self._url)

    def worker(self, subject: str) -> Process:
        """Return the subject's process."""
        if subject not in self._workers:
            self._workers[subject] = self._new_worker(subject)
        return self._workers[subject]

    def _turn(self, measure: Measure, subject: str, times: int) -> tuple[float, float]:
        """Return what a subject's turn has measured, and the seconds that it took."""
        worker, begun = self.worker(subject), time.perf_counter()
        worker.write(*measure.command, times)
        return worker.read(), time.perf_counter() - begun

    def _calibrate(self, measure: Measure, subject: str, turn: float) -> int:
        """Return how many calls fill a turn. This also warms the subject up."""
        times = 1
        for _ in range(3):
            _, took = self._turn(measure, subject, times)
            times = max(1, int(times * turn / took))
            if took > 10 * turn:  # it has no bound
                break
        return times

    def measure(self, measure: Measure, rounds: int, turn: float) -> dict[str, list[float]]:
        """Return the results of all rounds, by subject. A turn takes ``turn`` seconds.

        A subject that is too slow takes part only in the first rounds.
        """
        families = [
            [it for it in family if self._pythons[SUBJECTS[it].published] is not None]
            for family in measure.families
        ]
        subjects = [subject for family in families for subject in family]
        if measure.times:
            # In new processes: memory that was freed before would hide a leak.
            workers = {subject: self._new_worker(subject) for subject in subjects}
            for worker in workers.values():
                worker.write(*measure.command, measure.times)
            return {subject: [worker.read()] for subject, worker in workers.items()}
        times = {it: self._calibrate(measure, it, turn) for it in subjects}
        left = dict.fromkeys(subjects, 3 * rounds * turn)
        samples: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            for family in families:
                first = number % len(family)
                for subject in family[first:] + family[:first]:
                    if number < LEAST or left[subject] > 0:
                        value, took = self._turn(measure, subject, times[subject])
                        left[subject] -= took
                        samples[subject].append(value)
        return samples


def machine() -> str:
    """Return a description of the machine, without its name."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(": ") for line in cpuinfo.read_text().splitlines())
        model = next((value for name, _, value in lines if name.startswith("model name")), model)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} x {model}, {platform.system()}, {python}"


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = ", ".join(measure.name for measure in MEASURES)
    parser = argparse.ArgumentParser(
        prog="nox -s bench --",
        description=__doc__,
        epilog=f"Measures: {names}.",
    )
    parser.add_argument("--published", metavar="PYTHON", help="that has creduse 0.1.10")
    parser.add_argument(
        "--only",
        action="append",
        metavar="MEASURE",
        help="this one, or all whose names begin so; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, help="20, or 8 if quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw one-subtract, if measured")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, and print the report."""
    arguments = _parse()
    rounds = arguments.rounds or (8 if arguments.quick else 20)
    turn = 0.02 if arguments.quick else 0.05
    begun, load = time.perf_counter(), os.getloadavg()[0]
    samples: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        bench = Bench(arguments.published, stack)
        for measure in MEASURES:
            chosen = measure.name.startswith(tuple(arguments.only or [""]))
            if chosen and not (arguments.quick and measure.name in SLOW):
                since = time.perf_counter() - begun
                print(f"{since:4.0f} s  {measure.name}", file=sys.stderr, flush=True)
                samples[measure.name] = bench.measure(measure, rounds, turn)
        libraries = bench.worker("core").said
        theirs = bench.worker("published").said if arguments.published else None
    took = f"{rounds} rounds, {time.perf_counter() - begun:.0f} seconds"
    print(f"{machine()}; {took}; load {load:.1f}, at the end {os.getloadavg()[0]:.1f}.")
    print(f"{libraries}. The published client's: {theirs}.")
    print("\n".join([*tables(samples), *targets(samples)]))
    if arguments.json:
        about = {"machine": machine(), "libraries": libraries, "published": theirs}
        arguments.json.write_text(
            json.dumps(about | {"rounds": rounds, "samples": samples}, indent=1)
        )
    if arguments.svg and "one-subtract" in samples:
        arguments.svg.write_text(picture(samples["one-subtract"]))


if __name__ == "__main__":
    main()
