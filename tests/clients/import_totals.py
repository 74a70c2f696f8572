"""Computes the totals of order files with pandas, independently of Docket.

stdin: a JSON list of {"name", "path", "format", "separator", "encoding", "decimal", "thousands", "skip", "columns",
"refused", "currency"}. `columns` names the columns of a layout; `skip` are lines (from 1) that are left out, because they cannot be
read; `refused` are orders that must not be imported. stdout: a JSON object of name -> {"orders", "pieces", "totals"}.
"""

import json
import sys
from decimal import Decimal

import pandas


def number(text, case):
    text = text.strip().strip("€$ \u00a0").replace("\u00a0", "").replace(" ", "")
    return Decimal(text.replace(case["thousands"], "").replace(case["decimal"], "."))


def frame(case):
    if case["format"] == "ndjson":
        with open(case["path"], encoding=case["encoding"]) as lines:
            kept = [line for number, line in enumerate(lines, 1) if number not in case["skip"]]
        return pandas.DataFrame([json.loads(line, parse_float=str, parse_int=str) for line in kept]).fillna("")
    return pandas.read_csv(
        case["path"],
        sep=case["separator"],
        encoding=case["encoding"],
        encoding_errors="replace",
        compression="gzip" if case["format"] == "csv.gz" else None,
        skiprows=[line - 1 for line in case["skip"]],
        dtype=str,
        keep_default_na=False,
    )


def totals(case):
    rows = frame(case)
    column = case["columns"].get
    rows["order"] = rows[column("order_ref")].astype(str).str.strip().str.lstrip("#")
    if column("currency") in rows:
        # A column of the order may be filled in its first line only.
        filled = rows[column("currency")].replace("", None).groupby(rows["order"]).transform("first")
        rows["in"] = filled.fillna(case["currency"]).str.upper()
    else:
        rows["in"] = case["currency"]
    rows = rows[~rows["order"].isin(["", *case["refused"]])]
    pieces = [number(text, case) for text in rows[column("quantity")]]
    if column("line_total"):
        values = [number(text, case) for text in rows[column("line_total")]]
    else:
        values = [price * count for price, count in zip((number(t, case) for t in rows[column("unit_price")]), pieces)]
    sums = pandas.Series(values, dtype=object).groupby(rows["in"].to_numpy()).sum()
    return {
        "orders": int(rows["order"].nunique()),
        "pieces": int(sum(pieces)),
        "totals": {currency: str(value.quantize(Decimal("0.01"))) for currency, value in sums.items()},
    }


print(json.dumps({case["name"]: totals(case) for case in json.load(sys.stdin)}))
