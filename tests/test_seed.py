"""The first examples of the project, unchanged, run against one sandbox.

Only the indentation of one function was lost and is restored. They need only CREDUSE_BASE_URL.
"""

import os
import subprocess
import sys

from creduse_sandbox import SandboxServer

SYNC = """\
from creduse import CreduseClient
from uuid import UUID
# Initialize the client
client = CreduseClient(api_key="your-api-key")
# Add credits for an end user
end_user_id = UUID("12345678-1234-5678-1234-567812345678")
client.add(
end_user_id=end_user_id,
amount=100, # Number of credits to add
validity_days=31 # How long the credits are valid for (default: 31)
)
# Subtract credits from an end user
client.subtract(
end_user_id=end_user_id,
amount=50 # Number of credits to subtract
)
# Start a credit cycle for an end user
start_cycle_result = client.start_cycle(
end_user_id=end_user_id,
amount=1000, # Number of credits for the cycle
validity_days=31 # How long the cycle is valid for (default: 31)
)
# Stop a credit cycle for an end user
stop_cycle_result = client.stop_cycle(
end_user_id=end_user_id
)
# Check the active balance for an end user
balance = client.get_balance(
end_user_id=end_user_id
)
print(f"Current balance: {balance.active_balance}")
"""

ASYNC = """\
import asyncio
from creduse import AsyncCreduseClient
from uuid import UUID
async def manage_credits():
    # Initialize the async client
    client = AsyncCreduseClient(api_key="your-api-key")
    # Add credits for an end user
    end_user_id = UUID("12345678-1234-5678-1234-567812345678")
    await client.add(
    end_user_id=end_user_id,
    amount=100,
    validity_days=31
    )
    # Subtract credits
    await client.subtract(
    end_user_id=end_user_id,
    amount=50
    )
    # Check balance
    balance = await client.get_balance(
    end_user_id=end_user_id
    )
    print(f"Current balance: {balance.active_balance}")
# Run the async function
asyncio.run(manage_credits())
"""

FROM_ENVIRONMENT = """\
from creduse import CreduseClient
client = CreduseClient() # Will use CREDUSE_API_KEY from environment
"""


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_two_long_examples() -> None:
    """Against one sandbox, the two long examples print 1050, then 1100."""
    with SandboxServer(api_key="your-api-key") as server:
        assert run(SYNC, CREDUSE_BASE_URL=server.base_url) == "Current balance: 1050\n"
        assert run(ASYNC, CREDUSE_BASE_URL=server.base_url) == "Current balance: 1100\n"
    assert len(server.applied) == 6


def test_the_key_from_the_environment() -> None:
    """The example with a key from the environment makes a client."""
    assert run(FROM_ENVIRONMENT, CREDUSE_API_KEY="your-api-key") == ""
