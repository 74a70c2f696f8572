"""Computes sales reports with Python's zoneinfo, to compare them with Docket's.

stdin: {"orders": [{"placed_at", "currency", "store", "lines": [[category, quantity, price in cents]]}],
        "queries": [{"by", "timezone", "from", "to"}]}
stdout: a list of reports; a report is a list of [key, currency, orders, quantity, revenue in cents].
"""

import json
import sys
from collections import defaultdict
from datetime import date, datetime
from zoneinfo import ZoneInfo


def parse(time):
    return datetime.fromisoformat(time.replace("Z", "+00:00"))


def is_inside(placed, query, zone):
    local = placed.astimezone(zone).date()
    for name, too_early in (("from", True), ("to", False)):
        bound = query[name]
        if bound is None:
            continue
        if len(bound) == 10:
            day = date.fromisoformat(bound)
            if (local < day) if too_early else (local > day):
                return False
        else:
            time = parse(bound)
            if (placed < time) if too_early else (placed >= time):
                return False
    return True


def report(orders, query):
    zone = ZoneInfo(query["timezone"] or "UTC")
    sums = defaultdict(lambda: [0, 0, 0])
    for order in orders:
        placed = parse(order["placed_at"])
        if not is_inside(placed, query, zone):
            continue
        seen = set()
        for category, quantity, price in order["lines"]:
            key = {
                "day": placed.astimezone(zone).date().isoformat(),
                "category": category,
                "store": order["store"],
            }[query["by"]]
            row = sums[key, order["currency"]]
            row[0] += key not in seen
            row[1] += quantity
            row[2] += quantity * price
            seen.add(key)
    return [[key, currency, *row] for (key, currency), row in sorted(sums.items())]


asked = json.load(sys.stdin)
json.dump([report(asked["orders"], query) for query in asked["queries"]], sys.stdout)
