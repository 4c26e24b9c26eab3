"""A file of finished runs, one line of JSON each, from which a script continues after an interruption."""

import json
from pathlib import Path


class Ledger:
    """The finished runs of a script, by the values of their key columns."""

    def __init__(self, path: Path, keys: tuple[str, ...]):
        self.path, self.keys = path, keys
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.runs = {tuple(line[key] for key in keys): line for line in lines}

    def __contains__(self, key: tuple) -> bool:
        return key in self.runs

    def __getitem__(self, key: tuple) -> dict:
        return self.runs[key]

    def add(self, line: dict) -> None:
        """Appends a finished run."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.runs[tuple(line[key] for key in self.keys)] = line
