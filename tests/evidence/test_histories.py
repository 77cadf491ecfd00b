"""Evidence against random histories: no verdict is wrong where its assumption holds.

The ledger's own record decides. Each run prints its seed, and how many verdicts were right, wrong and open.
"""

from collections import Counter
from random import Random

import pytest

from creduse_core import Verdict, weigh
from tests.evidence.histories import SKEW, WORLDS, History, World, make

METHODS = ("add", "subtract", "start_cycle", "stop_cycle")
FEW, MANY = 2_000, 100_000


def judge(history: History, world: World) -> str:
    """Return how the verdict on a history compares with what was true."""
    evidence = weigh(
        history.call,
        history.after,
        known=history.known,
        clock_skew=SKEW,
        lists_empty_cycles=world.says_so,
    )
    if evidence.verdict is Verdict.OPEN:
        return "open"
    if (evidence.verdict is Verdict.APPLIED) is history.applied:
        return "right"
    # A NOT_YET assumes nothing of others.
    is_excused = evidence.verdict is Verdict.APPLIED and not history.assumption_held
    return "assumption" if is_excused else f"wrong: {evidence}"


def count(method: str, world: World, histories: int, seed: int) -> Counter[str]:
    """Return how often each judgement came out, and show a history with a wrong verdict."""
    print(f"{method}, {world.name}: seed {seed}")
    found: Counter[str] = Counter()
    for number in range(histories):
        dice = Random(f"{seed} {number}")  # noqa: S311 - nothing is secret here
        history = make(dice, method, world)
        judgement = judge(history, world)
        assert not judgement.startswith("wrong"), (number, judgement, history)
        found[judgement] += 1
    shares = ", ".join(f"{name} {found[name] / histories:.2%}" for name in sorted(found))
    print(f"{method}, {world.name}, {histories:,} histories: 0 wrong, {shares}")
    return found


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("method", METHODS)
def test_few(method: str, world: World) -> None:
    """No verdict is wrong, and where others do other things, few are open."""
    found = count(method, world, FEW, seed=1)
    assert found["right"]
    if not world.same and method in {"add", "subtract"}:
        assert found["open"] <= 0.02 * FEW


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("method", METHODS)
def test_many(method: str, world: World) -> None:
    """The same for many histories."""
    found = count(method, world, MANY, seed=2)
    if not world.same and method in {"add", "subtract"}:
        assert found["open"] <= 0.02 * MANY
