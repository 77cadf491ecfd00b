"""The Chromium for tests of the sandbox's page: the system's, not one that playwright downloads."""

import os
import shutil
from typing import Final

import pytest

VARIABLE: Final = "CREDUSE_TEST_CHROMIUM"
"""An environment variable with the program's name or path. With it, its tests are not skipped."""


def find_chromium() -> str:
    """Return the program's path, or skip the test. Fail if the variable names a missing program."""
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or "chromium")
    if found is None and named:
        pytest.fail(f"{VARIABLE} names {named}, which is not installed: apt-get install chromium")
    if found is None:
        pytest.skip("Chromium is not installed")
    return found
