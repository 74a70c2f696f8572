"""Reads the suite's reports, prints each case whose result is not plainly OK, and exits with 1 if a case failed or was not run."""
import collections
import json
import pathlib
import re
import sys

folder = pathlib.Path(sys.argv[1])
index = folder / "index.json"
servers = json.loads(index.read_text()) if index.exists() else {}
cases = {name: case for server in servers.values() for name, case in server.items()}

failed = 0
for name, case in cases.items():
    behavior, close = case["behavior"], case["behaviorClose"]
    # NON-STRICT: the server follows the protocol, but not all of its recommendations.
    good = behavior in ("OK", "NON-STRICT", "INFORMATIONAL") and close in ("OK", "INFORMATIONAL")
    failed += not good
    if (behavior, close) != ("OK", "OK"):
        print(f"{name:8} {behavior} / {close}{'' if good else '  FAILED'}")

# If the server crashes, the suite skips the remaining cases silently.
wanted = int(re.search(r"will run (\d+) test", (folder / "log").read_text())[1])
failed += wanted - len(cases)
print(dict(collections.Counter(case["behavior"] for case in cases.values())))
print(f"{wanted - failed} of {wanted} cases passed")
sys.exit(1 if failed or not wanted else 0)
