"""Breaks every Python process that has this folder on its path, as the environment says; see tests.faults.broken."""

import os

from tests.faults import broken

broken.VARIANTS[os.environ["BROKEN_VARIANT"]]()
