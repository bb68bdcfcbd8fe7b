"""The bench: this mesh beside its rivals, on this machine, in one session. `python -m bench --list` tells the rows.

Read `measure` first (how two things are compared), then `rows/` (what is compared with what), then `paper` (what is
written of it). Anybody can rerun it: `make bench`, or one row with the command that stands in its line of the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Rows start etcd, Envoy and PostgreSQL as the tests do, with the same code, which is not installed.
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))
