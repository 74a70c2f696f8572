"""Runs the examples of a page as one program."""

import re
import subprocess
import sys
from pathlib import Path


def run_page(page: Path) -> None:
    """Runs the `python` blocks of a page. Each `text` block is what the block before it prints."""
    program, output, last = [], [], ""
    for kind, text in re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            program.append(text)
        if kind == "text" and last == "python":
            output.append(text)
        last = kind
    command = [sys.executable, "-c", "\n".join(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    assert result.stdout == "".join(output), result.stdout
