"""Check calls under random faults, cancellations and timeouts against a server's record.

Each client runs over plain HTTP and over TLS, in its own process. The server runs in another one.
A run prints its seed. The same seed makes the same calls, faults and cancellations, but the timing
of the machine differs. If anything is wrong, the exit status is 1, and the report shows the calls
that are wrong and the command that repeats the run.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.soak import judge
from tests.soak.drivers import CLIENTS
from tests.soak.run import ROOT, Run, Server, make_certificate

SHOWN = 10
"""How many wrong calls a report shows in full."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s soak --", description=__doc__)
    parser.add_argument("--client", action="append", choices=CLIENTS, help="may be repeated")
    parser.add_argument("--plain", action="store_true", help="only over plain HTTP")
    parser.add_argument("--tls", action="store_true", help="only over TLS")
    parser.add_argument("--calls", type=int, default=20_000, help="number of calls in each run")
    parser.add_argument("--seed", type=int, help="random by default")
    parser.add_argument(
        "--faults", type=float, default=0.15, help="share of calls that have a fault"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def soak(client: str, *, tls: bool, seed: int, calls: int, share: float) -> bool:
    """Run one client, report, and return whether nothing is wrong."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(seed, share, make_certificate(Path(folder)) if tls else None)
        with Run(
            client=CLIENTS[client].made_by, seed=seed, calls=calls, share=share, server=server
        ) as run:
            CLIENTS[client].drive(run)
            seconds = time.monotonic() - begun
            time.sleep(
                3 if share else 0
            )  # the server may apply a request after its client has stopped waiting
            stats = server.ask("stats")
            record = [judge.Entry(*row) for row in server.ask("record")]
            ends = run.judge(record, CLIENTS[client].complaints)
            server.close()
    first, last = run.samples[0], run.samples[-1]
    grown = last.calls - first.calls
    print(
        f"{client} {'tls' if tls else 'plain'}: {run.ended} calls in {seconds:.0f} s, "
        f"{run.ended / seconds:.0f} a second, seed {seed}\n"
        f"  ended in: {', '.join(f'{name} {count}' for name, count in sorted(ends.items()))}; "
        f"failed without a fault {run.healthy_failed}\n"
        f"  server: {stats['accepted']} connections, {stats['requests']} requests\n"
        f"  memory: {(last.blocks - first.blocks) / grown:.3f} blocks for each call, "
        f"{first.size / 2**20:.0f} to {last.size / 2**20:.0f} MiB\n"
        f"  faults: {', '.join(f'{name} {count}' for name, count in sorted(stats['hits'].items()))}"
    )
    for complaint in run.known:
        print(f"  known issue of the event loop: {complaint}")
    violations = [*run.wrong, *(f"call {number}" for number in run.faulty)]
    if not violations:
        return True
    print(f"\nWRONG: {len(run.faulty)} calls, and {len(run.wrong)} problems of the whole run")
    for wrong in run.wrong:
        print(f"  {wrong}")
    for number, what in [*run.faulty.items()][:SHOWN]:
        print(f"  call {number}: {'; '.join(what)}\n    {run.plan(number)}")
        print(f"    ended: {run.end_of(number)}")
        for entry in record:
            if entry.number == number:
                print(f"    server: {entry}")
                earlier = [it for it in record if it.connection == entry.connection]
                for other in earlier[: earlier.index(entry)][-2:]:
                    print(f"      before on this connection: {other}")
    where = "--tls" if tls else "--plain"
    print(
        f"to repeat: nox -s soak -- --client {client} {where} --seed {seed} --calls {calls} "
        f"--faults {share}\n"
    )
    return False


def main() -> None:
    """Run the requested clients, and exit with 1 if anything is wrong."""
    asked = _parse()
    seed = random.randrange(2**31) if asked.seed is None else asked.seed  # noqa: S311 - no secret
    wires = [it for it in (False, True) if asked.tls in (asked.plain, it)]
    runs = [(client, tls) for client in asked.client or CLIENTS for tls in wires]
    if asked.here:
        ((client, tls),) = runs
        well = soak(client, tls=tls, seed=seed, calls=asked.calls, share=asked.faults)
        sys.stdout.flush()
        os._exit(not well)  # do not wait for threads that hang
    status = 0
    for client, tls in runs:
        settings = ("--seed", seed, "--calls", asked.calls, "--faults", asked.faults)
        wire = "--tls" if tls else "--plain"
        command = ["-m", "tests.soak", "--here", "--client", client, wire, *map(str, settings)]
        status |= subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
