"""The tables of scenarios and cancellations are whole."""

import re
from dataclasses import replace

from creduse_core import Outcome
from creduse_sandbox import FAULTS
from creduse_sandbox.conformance import CANCELLATIONS, SCENARIOS, TLS_SCENARIOS, Ending, Scenario

ALL = (*SCENARIOS, *TLS_SCENARIOS)


UNMET = {
    "endless-100": "it has no end that is the same for all; add-meets-100-too-long has one",
    "slow": "its response is a right one, and each run would wait for it",
}


def test_names() -> None:
    """A name is unique, and can be typed on a command line."""
    names = [str(scenario) for scenario in (*ALL, *CANCELLATIONS)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)


def test_every_fault_has_a_scenario() -> None:
    """Each fault is in a scenario, or has a reason why it is not."""
    met = [fault for scenario in SCENARIOS for fault in (*scenario.faults, scenario.before)]
    assert {name for name, fault in FAULTS.items() if fault not in met} == set(UNMET)


def test_endings() -> None:
    """Each scenario has endings that can be true, and more of them only with a limit."""
    assert [str(scenario) for scenario in ALL if not has_possible_endings(scenario)] == []


def has_possible_endings(scenario: Scenario) -> bool:
    names = [str(ending) for ending in scenario.endings]
    return (
        bool(names)
        and len(set(names)) == len(names)
        and (scenario.limit is not None or not scenario.endings_at_limit)
        and all(map(is_possible, (*scenario.endings, *scenario.endings_at_limit)))
    )


def is_possible(ending: Ending) -> bool:
    return ending.applied <= min(1, ending.requests) and (
        ending.outcome is not (Outcome.NOT_APPLIED if ending.applied else Outcome.APPLIED)
    )


def test_tls_scenarios() -> None:
    """The TLS scenarios are the plain ones, except where TLS changes what the client can send."""
    over_tls = {scenario.name: scenario for scenario in TLS_SCENARIOS}
    for scenario in SCENARIOS:
        twin = over_tls.pop(f"{scenario.name}-over-tls")
        assert twin.certificate == "good"
        if "-meets-connect-then-" not in scenario.name:
            assert replace(twin, name=scenario.name, certificate="") == scenario
    assert {scenario.certificate for scenario in over_tls.values()} == {
        "untrusted",
        "misnamed",
        "expired",
    }
    assert len(over_tls) == 9
