"""Types of routes. Written by generate.py."""

from . import openapi

Accepted = openapi.Accepted
NewOrder = openapi.CreateOrder
NewItem = openapi.AddItem
OrderSummary = openapi.OrderSummary
Order = openapi.Order
Line = openapi.Line
HistoryEvent = openapi.HistoryEvent
Customer = openapi.Customer
Sale = openapi.Sale
Product = openapi.Product
LogEvent = openapi.LogEvent
Projections = openapi.Projections
