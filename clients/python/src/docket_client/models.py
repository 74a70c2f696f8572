"""Types of requests and answers. They are dictionaries, as JSON has them. Money is a decimal string."""

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

from .generated.routes import (
    Accepted,
    Customer,
    HistoryEvent,
    Line,
    LogEvent,
    NewItem,
    NewOrder,
    Order,
    OrderSummary,
    Product,
    Projections,
    Sale,
)

__all__ = [
    "Accepted", "BulkCommand", "Change", "Customer", "HistoryEvent", "Line", "LogEvent", "NewItem", "NewOrder", "Order",
    "OrderSummary", "Product", "Projections", "Sale",
]  # fmt: skip


class Change(TypedDict):
    """A change of an order, as the channels of live updates carry it."""

    type: str
    order_id: str
    version: int
    position: int
    occurred_at: str
    payload: dict[str, Any] | None
    view: Order
    """The order after the event."""


class BulkCommand(TypedDict):
    """A command of a bulk request: `type` and `order_id`, and the fields of the command's own body."""

    type: Literal["create_order", "add_item", "change_item", "remove_item", "confirm_order", "cancel_order"]
    order_id: str
    id: NotRequired[str | int]
    """Repeated in the result."""
    expected_version: NotRequired[int]
    """Refuses the command unless the order has this version."""
    occurred_at: NotRequired[str]
    """Time of the event, in RFC 3339; staff only."""
    history: NotRequired[bool]
    """Marks the event as history, which no reactor processes; staff only."""
    customer_id: NotRequired[str]
    currency: NotRequired[str]
    items: NotRequired[list[NewItem]]
    attributes: NotRequired[dict[str, str]]
    sku: NotRequired[str]
    quantity: NotRequired[int]
    unit_price: NotRequired[str]
    name: NotRequired[str | None]
    category: NotRequired[str | None]
    reason: NotRequired[str]
