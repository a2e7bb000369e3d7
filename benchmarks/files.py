"""JSON files of results, compressed where their name ends in .gz: samples are kept, and a clone stays light."""

import gzip
import json
from pathlib import Path
from typing import Any


def load_json(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def save_json(path: Path, value: Any) -> None:
    """Equal values are equal files: the archive has no time in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(json.dumps(value, separators=(",", ":")).encode(), 9, mtime=0))
    else:
        path.write_text(json.dumps(value, indent=1) + "\n")
