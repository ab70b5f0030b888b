"""`python -m dicom_node.statement FILE`: the marked regions of the page hold what the program says now."""

from __future__ import annotations

import sys
from pathlib import Path

from dicom_node.statement.page import filled

_ARGUMENTS = 2

if len(sys.argv) != _ARGUMENTS:
    sys.exit(f"usage: {sys.argv[0]} FILE")
_file = Path(sys.argv[1])
_file.write_text(filled(_file.read_text()))
