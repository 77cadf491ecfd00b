"""Workers that share one file: each job of procrastinate sends a shard, at most once per line.

    export CREDUSE_API_KEY=your-api-key DATABASE_URL=postgresql://user@host/database
    export PYTHONPATH=. PROCRASTINATE_APP=app.app
    procrastinate schema --apply  # once
    procrastinate worker          # as many as you like, each with a copy of the file at the same path
    python -c 'import app; app.enqueue("/data/grants.csv", 4)'

Each worker sends one shard at a time. To try it without an account, run
`creduse sandbox --port 8000`, and set CREDUSE_BASE_URL=http://127.0.0.1:8000.
"""

import asyncio
import os

import psycopg
from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy
from procrastinate.exceptions import JobAborted
from procrastinate.jobs import Status

import creduse_bulk
from creduse_aiohttp import AsyncCreduseClient
from creduse_bulk import Shard
from creduse_journal import InUseError, UnavailableError

# Without a URL, the PG* variables say where the database is.
DATABASE = os.environ.get("DATABASE_URL", "postgresql:///")
# An empty one: journals beside the file, for workers on one machine.
JOURNAL = os.environ.get("BULK_JOURNAL", DATABASE) or None
# Seconds without a heartbeat, after which others take over a worker's job. It must be more than a
# client's timeout (30): a worker that stops waits so long for responses, without a heartbeat.
STALLED_AFTER = float(os.environ.get("BULK_STALLED_AFTER", "60"))
MAX_ATTEMPTS = 10

app = App(
    connector=PsycopgConnector(conninfo=DATABASE),
    worker_defaults={
        # At SIGTERM, cancel the job at once. By default, a worker waits until the whole shard is sent.
        "shutdown_graceful_timeout": 0,
        "update_heartbeat_interval": STALLED_AFTER / 5,
        "stalled_worker_timeout": STALLED_AFTER,
    },
)


class UnfinishedError(Exception):
    """Some lines can still be sent."""


class UnsettledError(Exception):
    """A person must look at some lines."""


@app.task(
    name="send_shard",
    # Waits of 2, 4, 8 … seconds, half an hour together: longer than a dead worker can own a shard.
    retry=RetryStrategy(
        max_attempts=MAX_ATTEMPTS,
        exponential_wait=2,
        retry_exceptions=[UnfinishedError, InUseError, UnavailableError, JobAborted],
    ),
)
async def send_shard(file: str, number: int, count: int) -> None:
    """Send a shard of a file, or what is left of it."""
    shard = Shard(number, count)
    async with AsyncCreduseClient() as client:
        try:
            progress = await creduse_bulk.run_async(
                client, "add", file, journal=JOURNAL, shard=shard
            )
        except asyncio.CancelledError:
            # The worker stops, or somebody aborts the job. All responses have come.
            raise JobAborted from None
    if progress.exit_status == 75:
        raise UnfinishedError(f"{file}, shard {shard}: {progress.stopped}")
    if progress.exit_status:
        raise UnsettledError(
            f"{file}, shard {shard}: {progress.refused} refused, {progress.unclear} unclear"
        )


# A lock instead of the queueing_lock would remain locked if the worker dies just here.
@app.periodic(cron="* * * * * */10")  # every ten seconds
@app.task(name="take_over", queueing_lock="take_over", priority=1, pass_context=True)
async def take_over(context: JobContext, timestamp: int) -> None:  # noqa: ARG001 - procrastinate passes it
    """Give the jobs of dead workers to others. A job that kills each worker fails in the end."""
    jobs = context.app.job_manager
    for job in await jobs.get_stalled_jobs(
        task_name=send_shard.name, seconds_since_heartbeat=STALLED_AFTER
    ):
        if job.attempts < MAX_ATTEMPTS:
            await jobs.retry_job(job)
        else:
            await jobs.finish_job(job, Status.FAILED, delete_job=False)


def enqueue(file: str, shards: int) -> None:
    """Add a job for each shard of a file: all of them or, after an error, none."""
    with psycopg.connect(DATABASE) as connection:  # one transaction
        for number in range(1, shards + 1):
            # The lock runs jobs of the same shard one after the other. A queueing_lock would let the
            # retry of a job fail while another one waits, and the job would stay "doing".
            job = send_shard.configure(lock=f"{file} {number}/{shards}", connection=connection)
            job.defer(file=file, number=number, count=shards)
