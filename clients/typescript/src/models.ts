/** Names for the types of `schemas/openapi.json`. They refer to routes, so they follow a renamed schema. */
import type { paths } from './generated/openapi.js';

type Json<Content> = Content extends { content: { 'application/json': infer Body } } ? Body : never;
type Answer<Operation> = Operation extends { responses: infer Responses }
  ? Json<Responses extends { 200: infer Ok } ? Ok : Responses extends { 201: infer Created } ? Created : never>
  : never;
type Body<Operation> = Operation extends { requestBody: infer Content } ? Json<Content> : never;
type Query<Operation> = Operation extends { parameters: { query?: infer Parameters } } ? NonNullable<Parameters> : never;
/** Parameters that the client sets itself. */
type Managed = 'min_position' | 'wait_ms' | 'cursor' | 'after';

/** The answer to a command: the order's id, its new version, and the position in the log. */
export type Accepted = Answer<paths['/v1/orders']['post']>;
/** An order to create. */
export type NewOrder = Body<paths['/v1/orders']['post']>;
/** An item to add to an order. Money is a decimal string: `"2.55"`. */
export type NewItem = Body<paths['/v1/orders/{id}/items']['post']>;
/** An order in a list, without its lines. */
export type OrderSummary = Answer<paths['/v1/orders']['get']>['items'][number];
/** Filters and sort order of a list of orders. */
export type OrderFilter = Omit<Query<paths['/v1/orders']['get']>, Managed>;
/** An event of an order's history. */
export type HistoryEvent = Answer<paths['/v1/orders/{id}/events']['get']>['items'][number];
/** A customer's figures. */
export type Customer = Answer<paths['/v1/customers/{id}']['get']>;
/** A row of the sales report. */
export type Sale = Answer<paths['/v1/reports/sales']['get']>[number];
/** Dimension and range of the sales report. */
export type SalesQuery = Omit<Query<paths['/v1/reports/sales']['get']>, Managed>;
/** A product and its sales. */
export type Product = Answer<paths['/v1/products/top']['get']>[number];
/** Ranking and length of the list of best sellers. */
export type TopQuery = Omit<Query<paths['/v1/products/top']['get']>, Managed>;
/** An event as it is stored in the log. */
export type LogEvent = Answer<paths['/v1/events']['get']>['items'][number];
/** The status of every read model, and the head of the log. */
export type Projections = Answer<paths['/v1/projections']['get']>;

/** An order with its lines. */
export type Order = Answer<paths['/v1/orders/{id}']['get']>;
/** A line of an order. */
export type Line = Order['lines'][number];

/** A change of an order, as the channels of live updates carry it. */
export interface Change {
  /** Type of the event: `ItemAdded`. */
  type: string;
  order_id: string;
  version: number;
  position: number;
  /** Time of the event, in RFC 3339. */
  occurred_at: string;
  payload: Record<string, unknown> | null;
  /** The order after the event. */
  view: Order;
}

/** Fields that every line of a bulk request may have. */
export interface BulkOptions {
  /** Repeated in the result. */
  id?: string | number;
  order_id: string;
  /** Refuses the command unless the order has this version. */
  expected_version?: number;
  /** Time of the event, in RFC 3339; staff only. */
  occurred_at?: string;
  /** Marks the event as history, which no reactor processes; staff only. */
  history?: boolean;
}

/** A command of a bulk request. */
export type BulkCommand = BulkOptions &
  (
    | ({ type: 'create_order' } & Omit<NewOrder, 'order_id'>)
    | ({ type: 'add_item' } & NewItem)
    | { type: 'change_item'; sku: string; quantity: number }
    | { type: 'remove_item'; sku: string }
    | { type: 'confirm_order' }
    | { type: 'cancel_order'; reason: string }
  );
