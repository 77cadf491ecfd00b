"""The measures, and the targets for them."""

from typing import Final, NamedTuple

from benchmarks.promises import OF_ADAPTERS, OF_CORE

# The subjects of a family take turns, and each is compared with the first.
SYNC: Final = ("hand-httpx", "httpx", "published", "socket")
ASYNCIO: Final = ("hand-httpx-asyncio", "httpx-asyncio", "published-asyncio")
HTTPX_TRIO: Final = ("hand-httpx-trio", "httpx-trio")
AIOHTTP: Final = ("hand-aiohttp", "aiohttp")
TRIO: Final = ("hand-trio", "trio", "trio-socket")
TRIO_POOL: Final = ("hand-trio-pool", "trio")

ALL: Final = (SYNC, ASYNCIO, HTTPX_TRIO, AIOHTTP, TRIO)
SIDE_BY_SIDE: Final = (SYNC[:3], ASYNCIO, HTTPX_TRIO, AIOHTTP, TRIO_POOL)
# The published client takes 20 ms for each call, however many there are, on asyncio.
MORE: Final = (SYNC[:3], ASYNCIO[:2], HTTPX_TRIO, AIOHTTP, TRIO_POOL)
# A thousand threads would measure threads.
MANY: Final = MORE[1:]
CORE: Final = (("published-models", "core", "core-client"),)
IMPORTS: Final = (
    ("published", "httpx", "core", "aiohttp", "trio", "hand-httpx", "hand-aiohttp", "hand-trio"),
)
OURS: Final = (("httpx",), ("httpx-asyncio",), ("httpx-trio",), ("aiohttp",), ("trio",))


class Unit(NamedTuple):
    """How to show a figure."""

    name: str
    scale: float
    digits: int


US: Final = Unit("µs", 1e6, 0)
FINE_US: Final = Unit("µs", 1e6, 1)
MS: Final = Unit("ms", 1e3, 1)
FINE_MS: Final = Unit("ms", 1e3, 2)
KIB: Final = Unit("KiB", 1 / 1024, 1)
BLOCKS: Final = Unit("blocks", 1, 4)


class Measure(NamedTuple):
    """A command for each subject of each family, once in each round."""

    name: str
    table: str
    column: str
    command: tuple[str | int, ...]
    families: tuple[tuple[str, ...], ...]
    unit: Unit
    times: int = 0
    """How many calls or clients, all subjects at the same time and once only: of what is not
    timed. What is timed gets as many as fill a turn."""


ONE: Final = "One call after another"
TOGETHER: Final = "Side by side, time per call"
CLIENT: Final = "A client"
ALONE: Final = "Without the network"
COSTS: Final = "What each promise costs"
IMPORT: Final = "Import"
GROWTH: Final = "Growth"

MEASURES: Final = (
    Measure("one-subtract", ONE, "subtract", ("one", "subtract", 1), ALL, US),
    Measure("one-balance-1", ONE, "balance of 1 cycle", ("one", "get_balance", 1), ALL, US),
    Measure("one-balance-100", ONE, "of 100", ("one", "get_balance", 100), ALL, US),
    Measure("one-balance-5000", ONE, "of 5,000", ("one", "get_balance", 5_000), ALL, MS),
    Measure("together-10", TOGETHER, "10", ("together", 10), SIDE_BY_SIDE, US),
    Measure("together-100", TOGETHER, "100", ("together", 100), MORE, US),
    Measure("together-1000", TOGETHER, "1,000", ("together", 1000), MANY, US),
    Measure("core-subtract", ALONE, "subtract", ("one", "subtract", 1), CORE, FINE_US),
    Measure(
        "core-balance-3", ALONE, "balance of 3 cycles", ("one", "get_balance", 3), CORE, FINE_US
    ),
    *(
        Measure(f"promise-{promise}", COSTS, promise, ("promise", promise), families, FINE_US)
        for promises, families in ((OF_CORE, (("core-client",),)), (OF_ADAPTERS, OURS))
        for promise in promises
    ),
    Measure("client-make", CLIENT, "make", ("make",), ALL, FINE_MS),
    Measure("client-first", CLIENT, "first call", ("first",), ALL, FINE_MS),
    Measure("client-memory", CLIENT, "memory", ("client_memory",), ALL, KIB, 50),
    Measure("call-memory", CLIENT, "of a call in flight", ("call_memory",), SIDE_BY_SIDE, KIB, 20),
    Measure("import", IMPORT, "", ("imports",), IMPORTS, MS),
    Measure("growth", GROWTH, "warm calls", ("growth", "1"), OURS, BLOCKS, 100_000),
    *(
        Measure(f"growth-{fate}", GROWTH, fate, ("growth", fate), OURS, BLOCKS, 20_000)
        for fate in ("closed", "reset", "cancelled")
    ),
)
GROWTHS: Final = [measure.name for measure in MEASURES if measure.table == GROWTH]
SLOW: Final = {"together-1000", *GROWTHS}
"""What a quick run leaves out."""


class Target(NamedTuple):
    """The most that a subject may cost, as a multiple of another subject, or as a figure."""

    measure: str
    subject: str
    reference: str | None
    at_most: float


TARGETS: Final = (
    Target("one-subtract", "httpx", "hand-httpx", 0.65),
    Target("one-subtract", "httpx-asyncio", "hand-httpx-asyncio", 0.8),
    Target("one-subtract", "httpx-trio", "hand-httpx-trio", 0.8),
    Target("one-subtract", "aiohttp", "hand-aiohttp", 1.0),
    Target("one-subtract", "trio", "hand-trio", 0.75),
    Target("one-balance-5000", "httpx", "published", 1.0),
    Target("together-100", "httpx", "hand-httpx", 0.5),
    Target("together-100", "httpx-asyncio", "hand-httpx-asyncio", 0.5),
    Target("together-100", "httpx-trio", "hand-httpx-trio", 0.5),
    *(
        Target(f"together-{number}", subject, reference, 1.0)
        for subject, reference in (("aiohttp", "hand-aiohttp"), ("trio", "hand-trio-pool"))
        for number in (100, 1000)
    ),
    Target("together-1000", "httpx-asyncio", "hand-httpx-asyncio", 1.0),
    Target("together-1000", "httpx-trio", "hand-httpx-trio", 1.0),
    Target("core-subtract", "core", "published-models", 0.75),
    Target("core-balance-3", "core", "published-models", 0.85),
    Target("import", "core", "published", 0.15),
    Target("import", "httpx", "published", 0.55),
    *(
        Target(memory, family[1], family[0], 1.0)
        for memory in ("client-memory", "call-memory")
        for family in (*ALL[:-1], TRIO_POOL if memory == "call-memory" else TRIO)
    ),
    # A leak of the smallest object in each call would make 1.
    *(Target(growth, family[0], None, 0.1) for growth in GROWTHS for family in OURS),
)
