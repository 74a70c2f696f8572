"""Client of the Docket order backend. `AsyncDocket` and `Docket` have the same methods; live updates are async only."""

from . import models, problems
from ._async import AsyncDocket, AsyncOrders
from ._shared import BulkInterrupted, BulkResult
from ._sync import Docket, Orders
from ._watch import OrderUpdate, Place, Update, WatchEnded, WatchOverflow
from .problems import DocketError, NoAnswer, Problem

__all__ = [
    "AsyncDocket", "AsyncOrders", "BulkInterrupted", "BulkResult", "Docket", "DocketError", "NoAnswer", "OrderUpdate",
    "Orders", "Place", "Problem", "Update", "WatchEnded", "WatchOverflow", "models", "problems",
]  # fmt: skip
