"""Writes the generated sources. `--check` fails if they are old instead.

- src/docket_client/generated/openapi.py: types of ../../schemas/openapi.json, by datamodel-code-generator.
- src/docket_client/generated/routes.py: names for the types of routes, which do not depend on names of schemas.
- src/docket_client/_sync.py: the blocking client, made from _async.py.

Needs: pip install datamodel-code-generator==0.89.0
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE / "src" / "docket_client"
DOCUMENT = HERE / "../../schemas/openapi.json"

# Name: method and path, then "body" or a status, then the members down to the type. A list is entered by [].
ROUTES = {
    "Accepted": ("post /v1/orders", "201", ""),
    "NewOrder": ("post /v1/orders", "body", ""),
    "NewItem": ("post /v1/orders/{id}/items", "body", ""),
    "OrderSummary": ("get /v1/orders", "200", "items []"),
    "Order": ("get /v1/orders/{id}", "200", ""),
    "Line": ("get /v1/orders/{id}", "200", "lines []"),
    "HistoryEvent": ("get /v1/orders/{id}/events", "200", "items []"),
    "Customer": ("get /v1/customers/{id}", "200", ""),
    "Sale": ("get /v1/reports/sales", "200", "[]"),
    "Product": ("get /v1/products/top", "200", "[]"),
    "LogEvent": ("get /v1/events", "200", "items []"),
    "Projections": ("get /v1/projections", "200", ""),
}

# Left: in _async.py. Right: in _sync.py.
BLOCKING = [
    (r"\n *# Only async\.\n.*?# End of only async\.\n", "\n"),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable", "import Callable, Iterable, Iterator"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"AsyncIterable\[([^\]]+)\] \| Iterable\[\1\]", r"Iterable[\1]"),
    (r"\bAsync(Docket|Orders|TokenProvider)\b", r"\1"),
    (r"\bhttpx\.Async(Client|BaseTransport)\b", r"httpx.\1"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basyncio\.Lock\b", "threading.Lock"),
    (r"^import asyncio\n", ""),
    (r"^import json$", "import json\nimport threading"),
    (r"\baclose\b", "close"),
    (r"\baread\b", "read"),
    (r"\baiter_lines\b", "iter_lines"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"Awaitable\[str\] \| str", "str"),
    (r"Awaitable\[Result\]", "Result"),
    (r"^import inspect\n", ""),
    (r"^from \._watch import [^\n]*\n", ""),
    (r"\A[^\n]*", '"""The blocking client. Written by generate.py from _async.py."""'),
]


def models() -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "openapi.py"
        options = "--input-file-type openapi --output-model-type typing.TypedDict --target-python-version 3.10"
        options += " --use-standard-collections --use-union-operator --use-schema-description --use-field-description"
        options += " --disable-timestamp --formatters builtin"
        command = [sys.executable, "-m", "datamodel_code_generator", "--input", str(DOCUMENT), "--output", str(output)]
        subprocess.run([*command, *options.split()], check=True)
        # PEP 728 is too new for type checkers.
        return re.sub(r"TypedDict, (closed|extra_items)=[^)]*\)", "TypedDict)", output.read_text())


def routes() -> str:
    document = json.loads(DOCUMENT.read_text())

    def resolve(schema: dict) -> tuple[str | None, dict]:
        name = None
        while "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            schema = document["components"]["schemas"][name]
        return name, schema

    lines = ['"""Types of routes. Written by generate.py."""\n', "from . import openapi\n"]
    for alias, (route, part, steps) in ROUTES.items():
        method, path = route.split()
        operation = document["paths"][path][method]
        holder = operation["requestBody"] if part == "body" else operation["responses"][part]
        name, schema = resolve(holder["content"]["application/json"]["schema"])
        for step in steps.split():
            name, schema = resolve(schema["items"] if step == "[]" else schema["properties"][step])
        lines.append(f"{alias} = openapi.{name}")
    return "\n".join(lines) + "\n"


def blocking() -> str:
    text = (PACKAGE / "_async.py").read_text()
    for pattern, replacement in BLOCKING:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE | re.DOTALL)
    return text


def main() -> None:
    files = {
        PACKAGE / "generated/openapi.py": models,
        PACKAGE / "generated/routes.py": routes,
        PACKAGE / "_sync.py": blocking,
    }
    for path, write in files.items():
        text = write()
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.relative_to(HERE)} is old. Run: python generate.py")


if __name__ == "__main__":
    main()
