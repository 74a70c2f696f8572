--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: docket_assign_position(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.docket_assign_position() RETURNS trigger
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    AS $$
begin
    -- First the lock, then the update: a statement sees what was committed before it began.
    perform from log_head order by position desc limit 1 for update;
    update log_head set position = position + 1
    where position = (select position from log_head order by position desc limit 1)
    returning position into new.position;
    new.recorded_at := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    return new;
end $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: _sqlx_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);


--
-- Name: checkpoints; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.checkpoints (
    projection text NOT NULL,
    generation bigint NOT NULL,
    version bigint NOT NULL,
    state text NOT NULL,
    "position" bigint NOT NULL,
    epoch bigint NOT NULL,
    updated_at bigint NOT NULL,
    last_error text,
    event text
);


--
-- Name: customers_g2; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.customers_g2 (
    customer_id text NOT NULL,
    currency text NOT NULL,
    orders bigint NOT NULL,
    confirmed bigint NOT NULL,
    cancelled bigint NOT NULL,
    spend bigint NOT NULL,
    first_order_at bigint NOT NULL,
    last_order_at bigint NOT NULL
);


--
-- Name: customers; Type: VIEW; Schema: public; Owner: -
--

CREATE VIEW public.customers AS
 SELECT customers_g2.customer_id,
    customers_g2.currency,
    customers_g2.orders,
    customers_g2.confirmed,
    customers_g2.cancelled,
    customers_g2.spend,
    customers_g2.first_order_at,
    customers_g2.last_order_at
   FROM public.customers_g2;


--
-- Name: customers_g1; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.customers_g1 (
    customer_id text NOT NULL,
    currency text NOT NULL,
    orders bigint NOT NULL,
    confirmed bigint NOT NULL,
    cancelled bigint NOT NULL,
    spend bigint NOT NULL,
    first_order_at bigint NOT NULL,
    last_order_at bigint NOT NULL
);


--
-- Name: dead_letters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.dead_letters (
    "position" bigint NOT NULL,
    aggregate_id text NOT NULL,
    sequence bigint NOT NULL,
    event_type text NOT NULL,
    reason text NOT NULL,
    attempts bigint NOT NULL,
    parked_at bigint NOT NULL,
    state text NOT NULL,
    event text
);


--
-- Name: events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.events (
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    sequence bigint NOT NULL,
    event_type text NOT NULL,
    event_version text NOT NULL,
    payload json NOT NULL,
    metadata json NOT NULL,
    "position" bigint,
    recorded_at bigint,
    CONSTRAINT events_sequence_check CHECK ((sequence >= 0))
);


--
-- Name: idempotency; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.idempotency (
    scope text NOT NULL,
    key text NOT NULL,
    request_hash text NOT NULL,
    status bigint NOT NULL,
    aggregate_id text NOT NULL,
    version bigint NOT NULL,
    "position" bigint NOT NULL,
    created_at bigint NOT NULL
);


--
-- Name: log_head; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.log_head (
    only_row boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    incarnation text NOT NULL,
    CONSTRAINT log_head_only_row_check CHECK (only_row)
);


--
-- Name: order_details_g2; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.order_details_g2 (
    order_id text NOT NULL,
    customer_id text NOT NULL,
    version bigint NOT NULL,
    "position" bigint NOT NULL,
    view text NOT NULL
);


--
-- Name: order_details; Type: VIEW; Schema: public; Owner: -
--

CREATE VIEW public.order_details AS
 SELECT order_details_g2.order_id,
    order_details_g2.customer_id,
    order_details_g2.version,
    order_details_g2."position",
    order_details_g2.view
   FROM public.order_details_g2;


--
-- Name: order_details_g1; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.order_details_g1 (
    order_id text NOT NULL,
    customer_id text NOT NULL,
    version bigint NOT NULL,
    "position" bigint NOT NULL,
    view text NOT NULL
);


--
-- Name: order_summaries_g2; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.order_summaries_g2 (
    order_id text NOT NULL,
    customer_id text NOT NULL,
    status text NOT NULL,
    currency text NOT NULL,
    total_milli bigint NOT NULL,
    quantity bigint NOT NULL,
    line_count bigint NOT NULL,
    categories text NOT NULL,
    search text NOT NULL,
    store_id text,
    placed_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    version bigint NOT NULL,
    "position" bigint NOT NULL
);


--
-- Name: order_summaries; Type: VIEW; Schema: public; Owner: -
--

CREATE VIEW public.order_summaries AS
 SELECT order_summaries_g2.order_id,
    order_summaries_g2.customer_id,
    order_summaries_g2.status,
    order_summaries_g2.currency,
    order_summaries_g2.total_milli,
    order_summaries_g2.quantity,
    order_summaries_g2.line_count,
    order_summaries_g2.categories,
    order_summaries_g2.search,
    order_summaries_g2.store_id,
    order_summaries_g2.placed_at,
    order_summaries_g2.updated_at,
    order_summaries_g2.version,
    order_summaries_g2."position"
   FROM public.order_summaries_g2;


--
-- Name: order_summaries_g1; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.order_summaries_g1 (
    order_id text NOT NULL,
    customer_id text NOT NULL,
    status text NOT NULL,
    currency text NOT NULL,
    total_milli bigint NOT NULL,
    quantity bigint NOT NULL,
    line_count bigint NOT NULL,
    categories text NOT NULL,
    search text NOT NULL,
    store_id text,
    placed_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    version bigint NOT NULL,
    "position" bigint NOT NULL
);


--
-- Name: products_g2; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.products_g2 (
    sku text NOT NULL,
    currency text NOT NULL,
    name text,
    category text,
    orders bigint NOT NULL,
    quantity bigint NOT NULL,
    revenue bigint NOT NULL,
    "position" bigint NOT NULL
);


--
-- Name: products; Type: VIEW; Schema: public; Owner: -
--

CREATE VIEW public.products AS
 SELECT products_g2.sku,
    products_g2.currency,
    products_g2.name,
    products_g2.category,
    products_g2.orders,
    products_g2.quantity,
    products_g2.revenue,
    products_g2."position"
   FROM public.products_g2;


--
-- Name: products_g1; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.products_g1 (
    sku text NOT NULL,
    currency text NOT NULL,
    name text,
    category text,
    orders bigint NOT NULL,
    quantity bigint NOT NULL,
    revenue bigint NOT NULL,
    "position" bigint NOT NULL
);


--
-- Name: revocations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.revocations (
    kind text NOT NULL,
    value text NOT NULL,
    revoked_at bigint NOT NULL,
    actor text NOT NULL
);


--
-- Name: sales_g2; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sales_g2 (
    dimension text NOT NULL,
    key text NOT NULL,
    day text NOT NULL,
    currency text NOT NULL,
    orders bigint NOT NULL,
    quantity bigint NOT NULL,
    revenue bigint NOT NULL
);


--
-- Name: sales; Type: VIEW; Schema: public; Owner: -
--

CREATE VIEW public.sales AS
 SELECT sales_g2.dimension,
    sales_g2.key,
    sales_g2.day,
    sales_g2.currency,
    sales_g2.orders,
    sales_g2.quantity,
    sales_g2.revenue
   FROM public.sales_g2;


--
-- Name: sales_g1; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sales_g1 (
    dimension text NOT NULL,
    key text NOT NULL,
    day text NOT NULL,
    currency text NOT NULL,
    orders bigint NOT NULL,
    quantity bigint NOT NULL,
    revenue bigint NOT NULL
);


--
-- Name: snapshots; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.snapshots (
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    last_sequence bigint NOT NULL,
    current_snapshot bigint NOT NULL,
    payload json NOT NULL,
    CONSTRAINT snapshots_current_snapshot_check CHECK ((current_snapshot >= 0)),
    CONSTRAINT snapshots_last_sequence_check CHECK ((last_sequence >= 0))
);


--
-- Name: tickets; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.tickets (
    hash text NOT NULL,
    principal text NOT NULL,
    expires_at bigint NOT NULL
);


--
-- Data for Name: _sqlx_migrations; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public._sqlx_migrations (version, description, installed_on, success, checksum, execution_time) FROM stdin;
1	event log	2026-11-27 14:44:38.701854+00	t	\\xa91e78be13ea3d45bcc89001075f3dd6191c45d9f53286f3baeb84f23b466caace7b4540bbfde3fa6b51ae07f554c774	18865743
2	time of foreign events	2026-11-27 14:44:38.720968+00	t	\\x4f01811614d75cab15a64ecd3f288f19cf4450c901ce39ff690f8fb3375c3ac62d93d00cad8418b14d74b7dbed080438	187972
3	head index	2026-11-27 14:44:38.721194+00	t	\\x6d0f68d364af7c33f0b426ed2c16c41abf56ea1171c11e53603858d669d799897b7b2e55a5df295c58ed3000014ea3e6	1354562
101	read models	2026-11-27 14:44:38.722671+00	t	\\x3eb0ccb3b42480824779fe2478711118a33bada1ed9e43f8896ea5148a2ac64540b2f6352ea6ea6b95b93488f7ee95a9	23255691
102	generations	2026-11-27 14:44:38.746023+00	t	\\xabdc12c0ceb2007a4d84acbcfaef9744b36d84b0be8bb42008e1310052af2d3c4a18b4187542121a5701bd95286395e4	7890912
103	access	2026-11-27 14:44:38.754191+00	t	\\x25b7cfcba686f750d3468b2029588ba886312cebc0d1e8ba788d98fec1967b425dcf768a5ceb1f7966f1d7d14e3dcf26	7222379
104	known event	2026-11-27 14:44:38.761664+00	t	\\x711387ecd83e966c7b190f3eeffc094afd2459b5f67e1915534d2f351f3a7fcfe40dcdb648e2ecd766da14da83f8921c	483756
105	known dead letter	2026-11-27 14:44:38.761949+00	t	\\xe3d9c387d8bf9ab05789d921defa4e18bbbb7d93a46e8e88eb3344eb1dae36e8f2fc62981c7eecaf59d0f05dc077a1f5	163535
106	checkpoint index	2026-11-27 14:44:38.762466+00	t	\\x3b865d55d7973de21ab4a3d75b69c132dc9ef58f98756367d483b4019185183173118e1e69d8e25737631d8d224f5549	1168053
\.


--
-- Data for Name: checkpoints; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.checkpoints (projection, generation, version, state, "position", epoch, updated_at, last_error, event) FROM stdin;
order_summaries	1	1	old	113	3	1795790680400320	\N	113 01a21d77-314b-7465-8a6c-067d76e7b5bd
order_details	1	1	old	113	3	1795790680400320	\N	113 01a21d77-314b-7465-8a6c-067d76e7b5bd
customers	1	1	old	113	3	1795790680400320	\N	113 01a21d77-314b-7465-8a6c-067d76e7b5bd
sales	1	1	old	113	3	1795790680400320	\N	113 01a21d77-314b-7465-8a6c-067d76e7b5bd
products	1	2	old	113	3	1795790680400320	\N	113 01a21d77-314b-7465-8a6c-067d76e7b5bd
customers	2	1	live	131	5	1795790693896149	\N	131 01a21d77-6604-76cc-a326-f063ec0e9ee1
order_details	2	1	live	131	5	1795790693896149	\N	131 01a21d77-6604-76cc-a326-f063ec0e9ee1
order_summaries	2	1	live	131	5	1795790693896149	\N	131 01a21d77-6604-76cc-a326-f063ec0e9ee1
products	2	2	live	131	5	1795790693896149	\N	131 01a21d77-6604-76cc-a326-f063ec0e9ee1
sales	2	1	live	131	5	1795790693896149	\N	131 01a21d77-6604-76cc-a326-f063ec0e9ee1
\.


--
-- Data for Name: customers_g1; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.customers_g1 (customer_id, currency, orders, confirmed, cancelled, spend, first_order_at, last_order_at) FROM stdin;
olga	JPY	1	0	0	0	1795790678705840	1795790678705840
bob	JPY	1	1	0	960	1795790680325369	1795790680325369
carol	KWD	1	0	0	0	1795790680326566	1795790680326566
carol	USD	2	0	1	0	1795790680327698	1795790680328309
dora	USD	1	0	0	0	1795790680329303	1795790680329303
eve	USD	2	1	0	23075	1795790680332154	1795790680346432
olga	EUR	2	2	0	2198	1795790678705782	1795790680363865
frank	EUR	1	0	0	0	1795790680383789	1795790680383789
frank	USD	1	1	0	555	1795790680383758	1795790680383758
grace	USD	2	2	0	2342	1483271606000000	1483434000000000
bob	USD	1	0	0	0	1795790680395079	1795790680395079
bob	EUR	2	0	1	0	1795790680323664	1795790680394067
ada	USD	4	1	0	1100	1795790680300766	1795790680394579
\.


--
-- Data for Name: customers_g2; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.customers_g2 (customer_id, currency, orders, confirmed, cancelled, spend, first_order_at, last_order_at) FROM stdin;
frank	USD	1	1	0	555	1795790680383758	1795790680383758
bob	USD	1	0	0	0	1795790680395079	1795790680395079
dora	USD	1	0	0	0	1795790680329303	1795790680329303
grace	USD	2	2	0	2342	1483271606000000	1483434000000000
olga	JPY	1	0	0	0	1795790678705840	1795790678705840
carol	KWD	1	0	0	0	1795790680326566	1795790680326566
carol	USD	2	0	1	0	1795790680327698	1795790680328309
eve	USD	2	1	0	23075	1795790680332154	1795790680346432
frank	EUR	1	0	0	0	1795790680383789	1795790680383789
olga	EUR	2	2	0	2198	1795790678705782	1795790680363865
bob	JPY	1	1	0	960	1795790680325369	1795790680325369
hugo	USD	2	0	0	0	1795790687092682	1795790690221531
ada	USD	5	2	1	1700	1795790680300766	1795790693452645
bob	EUR	2	1	1	1200	1795790680323664	1795790680394067
\.


--
-- Data for Name: dead_letters; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.dead_letters ("position", aggregate_id, sequence, event_type, reason, attempts, parked_at, state, event) FROM stdin;
116	discarded	3	ItemAdded	invalid type: string "two", expected a whole number from 1 to 1000000 at line 1 column 42	3	1795790689188052	discarded	order/discarded/3
120	parked	3	ItemAdded	invalid type: string "two", expected a whole number from 1 to 1000000 at line 1 column 42	3	1795790692729318	parked	order/parked/3
\.


--
-- Data for Name: events; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata, "position", recorded_at) FROM stdin;
order	stock-1	1	OrderCreated	1	{"OrderCreated": {"customer_id": "olga", "currency": "EUR", "attributes": {"store_id": "3"}}}	{"source": "stock"}	1	1795790678705782
order	stock-1	2	ItemAdded	1	{"ItemAdded": {"sku": "quill", "quantity": 3, "unit_price": 250}}	{"source": "stock"}	2	1795790678705837
order	stock-2	1	OrderCreated	1	{"OrderCreated": {"customer_id": "olga", "currency": "JPY"}}	{"source": "stock"}	3	1795790678705840
order	stock-1	3	ItemAdded	1	{"ItemAdded": {"sku": "ink", "quantity": 3, "unit_price": 250, "name": "Ink", "category": "OFFICE"}}	{"source": "stock"}	4	1795790678705842
order	stock-2	2	ItemAdded	1	{"ItemAdded": {"sku": "quill", "quantity": 3, "unit_price": 7}}	{"source": "stock"}	5	1795790678705844
order	stock-1	4	OrderConfirmed	1	{"OrderConfirmed": {"total": 1500, "currency": "EUR"}}	{"source": "stock"}	6	1795790678705845
order	usd-draft	1	OrderCreated	1	{"OrderCreated":{"customer_id":"ada","currency":"USD","attributes":{"note":"für später","store_id":"7"}}}	{"event_id":"01a21d77-30ec-7770-94ce-168a53501c6b","correlation_id":"01a21d77-30ec-7770-94ce-1688f0b3e276","causation_id":"01a21d77-30ec-7770-94ce-1689af74aabb","actor":"tests","request_id":"01a21d77-30ec-7770-94ce-1688f0b3e276","occurred_at":"2026-11-27T14:44:40.300766Z"}	7	1795790680316627
order	usd-draft	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":150,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-30ec-7770-94ce-168b9914b296","correlation_id":"01a21d77-30ec-7770-94ce-1688f0b3e276","causation_id":"01a21d77-30ec-7770-94ce-1689af74aabb","actor":"tests","request_id":"01a21d77-30ec-7770-94ce-1688f0b3e276","occurred_at":"2026-11-27T14:44:40.300766Z"}	8	1795790680316627
order	usd-draft	3	ItemAdded	2	{"ItemAdded":{"sku":"ink","quantity":1,"unit_price":255,"name":null,"category":null}}	{"event_id":"01a21d77-30ec-7770-94ce-168c03ff249c","correlation_id":"01a21d77-30ec-7770-94ce-1688f0b3e276","causation_id":"01a21d77-30ec-7770-94ce-1689af74aabb","actor":"tests","request_id":"01a21d77-30ec-7770-94ce-1688f0b3e276","occurred_at":"2026-11-27T14:44:40.300766Z"}	9	1795790680316627
order	usd-confirmed	1	OrderCreated	1	{"OrderCreated":{"customer_id":"ada","currency":"USD","attributes":{"store_id":"7"}}}	{"event_id":"01a21d77-3101-70f0-b8e5-c2459c2e1e6f","correlation_id":"01a21d77-3101-70f0-b8e5-c243d2ff7144","causation_id":"01a21d77-3101-70f0-b8e5-c244256e7c87","actor":"tests","request_id":"01a21d77-3101-70f0-b8e5-c243d2ff7144","occurred_at":"2026-11-27T14:44:40.321833Z"}	10	1795790680321889
order	usd-confirmed	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":150,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-3101-70f0-b8e5-c2461f65c37a","correlation_id":"01a21d77-3101-70f0-b8e5-c243d2ff7144","causation_id":"01a21d77-3101-70f0-b8e5-c244256e7c87","actor":"tests","request_id":"01a21d77-3101-70f0-b8e5-c243d2ff7144","occurred_at":"2026-11-27T14:44:40.321833Z"}	11	1795790680321889
order	usd-confirmed	3	ItemAdded	2	{"ItemAdded":{"sku":"mug","quantity":1,"unit_price":800,"name":"Mug","category":null}}	{"event_id":"01a21d77-3101-70f0-b8e5-c24754217954","correlation_id":"01a21d77-3101-70f0-b8e5-c243d2ff7144","causation_id":"01a21d77-3101-70f0-b8e5-c244256e7c87","actor":"tests","request_id":"01a21d77-3101-70f0-b8e5-c243d2ff7144","occurred_at":"2026-11-27T14:44:40.321833Z"}	12	1795790680321889
order	usd-confirmed	4	OrderConfirmed	1	{"OrderConfirmed":{"total":1100,"currency":"USD"}}	{"event_id":"01a21d77-3102-72f8-8d5b-0af652dfed1c","correlation_id":"01a21d77-3102-72f8-8d5b-0af4a6cca4ec","causation_id":"01a21d77-3102-72f8-8d5b-0af599b7e3ad","actor":"tests","request_id":"01a21d77-3102-72f8-8d5b-0af4a6cca4ec","occurred_at":"2026-11-27T14:44:40.322767Z"}	13	1795790680322819
order	eur-cancelled	1	OrderCreated	1	{"OrderCreated":{"customer_id":"bob","currency":"EUR"}}	{"event_id":"01a21d77-3103-77c3-87d9-bb581364d2a9","correlation_id":"01a21d77-3103-77c3-87d9-bb56d4d04cf1","causation_id":"01a21d77-3103-77c3-87d9-bb5799de43f8","actor":"tests","request_id":"01a21d77-3103-77c3-87d9-bb56d4d04cf1","occurred_at":"2026-11-27T14:44:40.323664Z"}	14	1795790680323693
order	eur-cancelled	2	ItemAdded	2	{"ItemAdded":{"sku":"tea","quantity":4,"unit_price":99,"name":null,"category":"GROCERY"}}	{"event_id":"01a21d77-3103-77c3-87d9-bb59780b0308","correlation_id":"01a21d77-3103-77c3-87d9-bb56d4d04cf1","causation_id":"01a21d77-3103-77c3-87d9-bb5799de43f8","actor":"tests","request_id":"01a21d77-3103-77c3-87d9-bb56d4d04cf1","occurred_at":"2026-11-27T14:44:40.323664Z"}	15	1795790680323693
order	eur-cancelled	3	OrderCancelled	1	{"OrderCancelled":{"reason":"changed my mind"}}	{"event_id":"01a21d77-3104-71e3-9cea-12738da88b51","correlation_id":"01a21d77-3104-71e3-9cea-12712b5232b4","causation_id":"01a21d77-3104-71e3-9cea-1272768ea7e6","actor":"tests","request_id":"01a21d77-3104-71e3-9cea-12712b5232b4","occurred_at":"2026-11-27T14:44:40.324594Z"}	16	1795790680324628
order	jpy-confirmed	1	OrderCreated	1	{"OrderCreated":{"customer_id":"bob","currency":"JPY"}}	{"event_id":"01a21d77-3105-7521-98ac-6b5902747e7a","correlation_id":"01a21d77-3105-7521-98ac-6b579a4d280a","causation_id":"01a21d77-3105-7521-98ac-6b58a92d26c4","actor":"tests","request_id":"01a21d77-3105-7521-98ac-6b579a4d280a","occurred_at":"2026-11-27T14:44:40.325369Z"}	17	1795790680325403
order	jpy-confirmed	2	ItemAdded	2	{"ItemAdded":{"sku":"tea","quantity":2,"unit_price":480,"name":"緑茶","category":"GROCERY"}}	{"event_id":"01a21d77-3105-7521-98ac-6b5aff8e8008","correlation_id":"01a21d77-3105-7521-98ac-6b579a4d280a","causation_id":"01a21d77-3105-7521-98ac-6b58a92d26c4","actor":"tests","request_id":"01a21d77-3105-7521-98ac-6b579a4d280a","occurred_at":"2026-11-27T14:44:40.325369Z"}	18	1795790680325403
order	jpy-confirmed	3	ItemAdded	2	{"ItemAdded":{"sku":"free","quantity":1,"unit_price":0,"name":null,"category":null}}	{"event_id":"01a21d77-3105-7521-98ac-6b5b67225a35","correlation_id":"01a21d77-3105-7521-98ac-6b579a4d280a","causation_id":"01a21d77-3105-7521-98ac-6b58a92d26c4","actor":"tests","request_id":"01a21d77-3105-7521-98ac-6b579a4d280a","occurred_at":"2026-11-27T14:44:40.325369Z"}	19	1795790680325403
order	jpy-confirmed	4	OrderConfirmed	1	{"OrderConfirmed":{"total":960,"currency":"JPY"}}	{"event_id":"01a21d77-3106-718b-8ee5-5ebd609cd628","correlation_id":"01a21d77-3106-718b-8ee5-5ebb012e2042","causation_id":"01a21d77-3106-718b-8ee5-5ebc3089f048","actor":"tests","request_id":"01a21d77-3106-718b-8ee5-5ebb012e2042","occurred_at":"2026-11-27T14:44:40.326033Z"}	20	1795790680326064
order	kwd-draft	1	OrderCreated	1	{"OrderCreated":{"customer_id":"carol","currency":"KWD"}}	{"event_id":"01a21d77-3106-718b-8ee5-5ec0e90118cc","correlation_id":"01a21d77-3106-718b-8ee5-5ebec05388d5","causation_id":"01a21d77-3106-718b-8ee5-5ebf35d1882a","actor":"tests","request_id":"01a21d77-3106-718b-8ee5-5ebec05388d5","occurred_at":"2026-11-27T14:44:40.326566Z"}	21	1795790680326594
order	kwd-draft	2	ItemAdded	2	{"ItemAdded":{"sku":"oud","quantity":1,"unit_price":12345,"name":"Oud","category":"MUSIC"}}	{"event_id":"01a21d77-3106-718b-8ee5-5ec10caef7e4","correlation_id":"01a21d77-3106-718b-8ee5-5ebec05388d5","causation_id":"01a21d77-3106-718b-8ee5-5ebf35d1882a","actor":"tests","request_id":"01a21d77-3106-718b-8ee5-5ebec05388d5","occurred_at":"2026-11-27T14:44:40.326566Z"}	22	1795790680326594
order	empty-draft	1	OrderCreated	1	{"OrderCreated":{"customer_id":"carol","currency":"USD"}}	{"event_id":"01a21d77-3107-7023-b75b-9eaf1efd1138","correlation_id":"01a21d77-3107-7023-b75b-9ead75699b57","causation_id":"01a21d77-3107-7023-b75b-9eae68641fe0","actor":"tests","request_id":"01a21d77-3107-7023-b75b-9ead75699b57","occurred_at":"2026-11-27T14:44:40.327698Z"}	23	1795790680327727
order	empty-cancelled	1	OrderCreated	1	{"OrderCreated":{"customer_id":"carol","currency":"USD"}}	{"event_id":"01a21d77-3108-732f-a575-a8684e03c66e","correlation_id":"01a21d77-3108-732f-a575-a866ab8253fc","causation_id":"01a21d77-3108-732f-a575-a867554efd7f","actor":"tests","request_id":"01a21d77-3108-732f-a575-a866ab8253fc","occurred_at":"2026-11-27T14:44:40.328309Z"}	24	1795790680328339
order	empty-cancelled	2	OrderCancelled	1	{"OrderCancelled":{"reason":"nothing in it"}}	{"event_id":"01a21d77-3108-732f-a575-a86b3b0c0a19","correlation_id":"01a21d77-3108-732f-a575-a8699023b949","causation_id":"01a21d77-3108-732f-a575-a86acaaadc0e","actor":"tests","request_id":"01a21d77-3108-732f-a575-a8699023b949","occurred_at":"2026-11-27T14:44:40.328828Z"}	25	1795790680328855
order	changed	1	OrderCreated	1	{"OrderCreated":{"customer_id":"dora","currency":"USD"}}	{"event_id":"01a21d77-3109-76f6-8243-8e936d93601a","correlation_id":"01a21d77-3109-76f6-8243-8e91f65ce15a","causation_id":"01a21d77-3109-76f6-8243-8e9275586b6f","actor":"tests","request_id":"01a21d77-3109-76f6-8243-8e91f65ce15a","occurred_at":"2026-11-27T14:44:40.329303Z"}	26	1795790680329331
order	changed	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":1,"unit_price":150,"name":null,"category":null}}	{"event_id":"01a21d77-3109-76f6-8243-8e94a229eac7","correlation_id":"01a21d77-3109-76f6-8243-8e91f65ce15a","causation_id":"01a21d77-3109-76f6-8243-8e9275586b6f","actor":"tests","request_id":"01a21d77-3109-76f6-8243-8e91f65ce15a","occurred_at":"2026-11-27T14:44:40.329303Z"}	27	1795790680329331
order	changed	3	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":1,"unit_price":150,"name":"Crème brûlée 🍮","category":"DESSERT"}}	{"event_id":"01a21d77-3109-76f6-8243-8e97ac46cf47","correlation_id":"01a21d77-3109-76f6-8243-8e95df0ed3ee","causation_id":"01a21d77-3109-76f6-8243-8e968dc33a28","actor":"tests","request_id":"01a21d77-3109-76f6-8243-8e95df0ed3ee","occurred_at":"2026-11-27T14:44:40.329849Z"}	28	1795790680329877
order	changed	4	ItemAdded	2	{"ItemAdded":{"sku":"ink","quantity":1,"unit_price":255,"name":null,"category":null}}	{"event_id":"01a21d77-310a-705c-b552-a0e7c11c2f9b","correlation_id":"01a21d77-310a-705c-b552-a0e55e88323f","causation_id":"01a21d77-310a-705c-b552-a0e64c0280ed","actor":"tests","request_id":"01a21d77-310a-705c-b552-a0e55e88323f","occurred_at":"2026-11-27T14:44:40.330349Z"}	29	1795790680330379
order	changed	5	ItemRemoved	1	{"ItemRemoved":{"sku":"pen"}}	{"event_id":"01a21d77-310a-705c-b552-a0ead0f37845","correlation_id":"01a21d77-310a-705c-b552-a0e8bfa5ca1b","causation_id":"01a21d77-310a-705c-b552-a0e945cf1f15","actor":"tests","request_id":"01a21d77-310a-705c-b552-a0e8bfa5ca1b","occurred_at":"2026-11-27T14:44:40.330834Z"}	30	1795790680330861
order	changed	6	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":5,"unit_price":175,"name":null,"category":null}}	{"event_id":"01a21d77-310b-762b-9105-8b9d5cedef3e","correlation_id":"01a21d77-310b-762b-9105-8b9ba7f32e43","causation_id":"01a21d77-310b-762b-9105-8b9ceae34bb8","actor":"tests","request_id":"01a21d77-310b-762b-9105-8b9ba7f32e43","occurred_at":"2026-11-27T14:44:40.331301Z"}	31	1795790680331325
order	changed	7	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"ink","quantity":12}}	{"event_id":"01a21d77-310b-762b-9105-8ba04c5d2aa1","correlation_id":"01a21d77-310b-762b-9105-8b9e6eba4925","causation_id":"01a21d77-310b-762b-9105-8b9f4fd03d53","actor":"tests","request_id":"01a21d77-310b-762b-9105-8b9e6eba4925","occurred_at":"2026-11-27T14:44:40.331725Z"}	32	1795790680331749
order	long-draft	1	OrderCreated	1	{"OrderCreated":{"customer_id":"eve","currency":"USD","attributes":{"store_id":"9"}}}	{"event_id":"01a21d77-310c-75b7-91a9-21d8850b5760","correlation_id":"01a21d77-310c-75b7-91a9-21d6709c45ca","causation_id":"01a21d77-310c-75b7-91a9-21d79f978c14","actor":"tests","request_id":"01a21d77-310c-75b7-91a9-21d6709c45ca","occurred_at":"2026-11-27T14:44:40.332154Z"}	33	1795790680332179
order	long-draft	2	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":1,"unit_price":325,"name":"Thing 0","category":"THINGS"}}	{"event_id":"01a21d77-310c-75b7-91a9-21dbc8ba634f","correlation_id":"01a21d77-310c-75b7-91a9-21d941e739a9","causation_id":"01a21d77-310c-75b7-91a9-21da3b51a384","actor":"tests","request_id":"01a21d77-310c-75b7-91a9-21d941e739a9","occurred_at":"2026-11-27T14:44:40.332575Z"}	34	1795790680332600
order	long-draft	3	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":2,"unit_price":325,"name":"Thing 1","category":"THINGS"}}	{"event_id":"01a21d77-310d-71cc-8fdc-3eb08a501c6c","correlation_id":"01a21d77-310d-71cc-8fdc-3eaea84a90e3","causation_id":"01a21d77-310d-71cc-8fdc-3eaf252ec6c7","actor":"tests","request_id":"01a21d77-310d-71cc-8fdc-3eaea84a90e3","occurred_at":"2026-11-27T14:44:40.333054Z"}	35	1795790680333075
order	long-draft	4	ItemAdded	2	{"ItemAdded":{"sku":"sku-2","quantity":3,"unit_price":325,"name":"Thing 2","category":"THINGS"}}	{"event_id":"01a21d77-310d-71cc-8fdc-3eb3ac2ccf62","correlation_id":"01a21d77-310d-71cc-8fdc-3eb11dd240ef","causation_id":"01a21d77-310d-71cc-8fdc-3eb28201c92a","actor":"tests","request_id":"01a21d77-310d-71cc-8fdc-3eb11dd240ef","occurred_at":"2026-11-27T14:44:40.333557Z"}	36	1795790680333580
order	long-draft	5	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":4,"unit_price":325,"name":"Thing 3","category":"THINGS"}}	{"event_id":"01a21d77-310e-75e7-b723-6d78fa4a355a","correlation_id":"01a21d77-310e-75e7-b723-6d763419410a","causation_id":"01a21d77-310e-75e7-b723-6d770bca0c72","actor":"tests","request_id":"01a21d77-310e-75e7-b723-6d763419410a","occurred_at":"2026-11-27T14:44:40.334129Z"}	37	1795790680334159
order	long-draft	6	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":1,"unit_price":325,"name":"Thing 4","category":"THINGS"}}	{"event_id":"01a21d77-310e-75e7-b723-6d7b4180327f","correlation_id":"01a21d77-310e-75e7-b723-6d79f3e8b13d","causation_id":"01a21d77-310e-75e7-b723-6d7ab3db1db8","actor":"tests","request_id":"01a21d77-310e-75e7-b723-6d79f3e8b13d","occurred_at":"2026-11-27T14:44:40.334632Z"}	38	1795790680334659
order	long-draft	7	ItemAdded	2	{"ItemAdded":{"sku":"sku-5","quantity":2,"unit_price":325,"name":"Thing 5","category":"THINGS"}}	{"event_id":"01a21d77-310f-7660-b92b-3e99f03e0aa2","correlation_id":"01a21d77-310f-7660-b92b-3e974bb44cfe","causation_id":"01a21d77-310f-7660-b92b-3e98530f00fe","actor":"tests","request_id":"01a21d77-310f-7660-b92b-3e974bb44cfe","occurred_at":"2026-11-27T14:44:40.335135Z"}	39	1795790680335157
order	long-draft	8	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":3,"unit_price":325,"name":"Thing 6","category":"THINGS"}}	{"event_id":"01a21d77-310f-7660-b92b-3e9c786bd99a","correlation_id":"01a21d77-310f-7660-b92b-3e9a064bf888","causation_id":"01a21d77-310f-7660-b92b-3e9b911b2d41","actor":"tests","request_id":"01a21d77-310f-7660-b92b-3e9a064bf888","occurred_at":"2026-11-27T14:44:40.335636Z"}	40	1795790680335665
order	long-draft	9	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":4,"unit_price":325,"name":"Thing 7","category":"THINGS"}}	{"event_id":"01a21d77-3110-7442-a790-bcffe4e6a768","correlation_id":"01a21d77-3110-7442-a790-bcfdbf7f6626","causation_id":"01a21d77-3110-7442-a790-bcfe0e88892e","actor":"tests","request_id":"01a21d77-3110-7442-a790-bcfdbf7f6626","occurred_at":"2026-11-27T14:44:40.336102Z"}	41	1795790680336127
order	long-draft	10	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":18}}	{"event_id":"01a21d77-3110-7442-a790-bd027760c31b","correlation_id":"01a21d77-3110-7442-a790-bd0052ace7c9","causation_id":"01a21d77-3110-7442-a790-bd01b2f85f1a","actor":"tests","request_id":"01a21d77-3110-7442-a790-bd0052ace7c9","occurred_at":"2026-11-27T14:44:40.336526Z"}	42	1795790680336550
order	long-draft	11	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":2,"unit_price":325,"name":"Thing 9","category":"THINGS"}}	{"event_id":"01a21d77-3111-72ae-9634-b3a88209748a","correlation_id":"01a21d77-3111-72ae-9634-b3a6fb6b7170","causation_id":"01a21d77-3111-72ae-9634-b3a79d0719d2","actor":"tests","request_id":"01a21d77-3111-72ae-9634-b3a6fb6b7170","occurred_at":"2026-11-27T14:44:40.337788Z"}	43	1795790680337818
order	long-draft	12	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":3,"unit_price":325,"name":"Thing 10","category":"THINGS"}}	{"event_id":"01a21d77-3112-7235-956d-b0d1cf198427","correlation_id":"01a21d77-3112-7235-956d-b0cf00a69237","causation_id":"01a21d77-3112-7235-956d-b0d0071d43d1","actor":"tests","request_id":"01a21d77-3112-7235-956d-b0cf00a69237","occurred_at":"2026-11-27T14:44:40.338291Z"}	44	1795790680338316
order	long-draft	13	ItemRemoved	1	{"ItemRemoved":{"sku":"sku-4"}}	{"event_id":"01a21d77-3112-7235-956d-b0d46318ebeb","correlation_id":"01a21d77-3112-7235-956d-b0d28a807a76","causation_id":"01a21d77-3112-7235-956d-b0d35424c0f5","actor":"tests","request_id":"01a21d77-3112-7235-956d-b0d28a807a76","occurred_at":"2026-11-27T14:44:40.338691Z"}	45	1795790680338715
order	long-draft	14	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":1,"unit_price":325,"name":"Thing 12","category":"THINGS"}}	{"event_id":"01a21d77-3113-71b5-8e0f-fb63009a6a74","correlation_id":"01a21d77-3113-71b5-8e0f-fb61ccbf6b58","causation_id":"01a21d77-3113-71b5-8e0f-fb6270fca8d7","actor":"tests","request_id":"01a21d77-3113-71b5-8e0f-fb61ccbf6b58","occurred_at":"2026-11-27T14:44:40.339192Z"}	46	1795790680339212
order	long-draft	15	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":2,"unit_price":325,"name":"Thing 13","category":"THINGS"}}	{"event_id":"01a21d77-3113-71b5-8e0f-fb66911ef065","correlation_id":"01a21d77-3113-71b5-8e0f-fb644144e514","causation_id":"01a21d77-3113-71b5-8e0f-fb6575462a06","actor":"tests","request_id":"01a21d77-3113-71b5-8e0f-fb644144e514","occurred_at":"2026-11-27T14:44:40.339698Z"}	47	1795790680339721
order	long-draft	16	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":24}}	{"event_id":"01a21d77-3114-7350-8757-d379f0b18f8f","correlation_id":"01a21d77-3114-7350-8757-d3772183d0ca","causation_id":"01a21d77-3114-7350-8757-d37853c155d3","actor":"tests","request_id":"01a21d77-3114-7350-8757-d3772183d0ca","occurred_at":"2026-11-27T14:44:40.340118Z"}	48	1795790680340144
order	long-draft	17	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":4,"unit_price":325,"name":"Thing 15","category":"THINGS"}}	{"event_id":"01a21d77-3114-7350-8757-d37c593047af","correlation_id":"01a21d77-3114-7350-8757-d37ac39cdaa7","causation_id":"01a21d77-3114-7350-8757-d37bf5f2f0ea","actor":"tests","request_id":"01a21d77-3114-7350-8757-d37ac39cdaa7","occurred_at":"2026-11-27T14:44:40.340633Z"}	49	1795790680340657
order	long-draft	18	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":1,"unit_price":325,"name":"Thing 16","category":"THINGS"}}	{"event_id":"01a21d77-3115-714b-b2ea-3ca39a24e508","correlation_id":"01a21d77-3115-714b-b2ea-3ca1c8d1ae39","causation_id":"01a21d77-3115-714b-b2ea-3ca2023534ac","actor":"tests","request_id":"01a21d77-3115-714b-b2ea-3ca1c8d1ae39","occurred_at":"2026-11-27T14:44:40.341166Z"}	50	1795790680341190
order	long-draft	19	ItemRemoved	1	{"ItemRemoved":{"sku":"sku-4"}}	{"event_id":"01a21d77-3115-714b-b2ea-3ca6e7cfa0e3","correlation_id":"01a21d77-3115-714b-b2ea-3ca475cff640","causation_id":"01a21d77-3115-714b-b2ea-3ca57f6f51ad","actor":"tests","request_id":"01a21d77-3115-714b-b2ea-3ca475cff640","occurred_at":"2026-11-27T14:44:40.341667Z"}	51	1795790680341690
order	long-draft	20	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":3,"unit_price":325,"name":"Thing 18","category":"THINGS"}}	{"event_id":"01a21d77-3116-773b-b73a-4b82c8110090","correlation_id":"01a21d77-3116-773b-b73a-4b80de5029bc","causation_id":"01a21d77-3116-773b-b73a-4b81692db04a","actor":"tests","request_id":"01a21d77-3116-773b-b73a-4b80de5029bc","occurred_at":"2026-11-27T14:44:40.342123Z"}	52	1795790680342149
order	long-draft	21	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":4,"unit_price":325,"name":"Thing 19","category":"THINGS"}}	{"event_id":"01a21d77-3117-705d-b45d-935dce23f2d5","correlation_id":"01a21d77-3117-705d-b45d-935bc7a6b7cf","causation_id":"01a21d77-3117-705d-b45d-935c0096106c","actor":"tests","request_id":"01a21d77-3117-705d-b45d-935bc7a6b7cf","occurred_at":"2026-11-27T14:44:40.343171Z"}	53	1795790680343195
order	long-draft	22	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":30}}	{"event_id":"01a21d77-3117-705d-b45d-93609bb0ba27","correlation_id":"01a21d77-3117-705d-b45d-935e7c7e8b5f","causation_id":"01a21d77-3117-705d-b45d-935f768e0325","actor":"tests","request_id":"01a21d77-3117-705d-b45d-935e7c7e8b5f","occurred_at":"2026-11-27T14:44:40.343606Z"}	54	1795790680343630
order	long-draft	23	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":2,"unit_price":325,"name":"Thing 21","category":"THINGS"}}	{"event_id":"01a21d77-3118-7448-8775-bdfacc188c97","correlation_id":"01a21d77-3117-705d-b45d-9361e5ac96f9","causation_id":"01a21d77-3118-7448-8775-bdf9521010bc","actor":"tests","request_id":"01a21d77-3117-705d-b45d-9361e5ac96f9","occurred_at":"2026-11-27T14:44:40.344043Z"}	55	1795790680344068
order	long-draft	24	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":3,"unit_price":325,"name":"Thing 22","category":"THINGS"}}	{"event_id":"01a21d77-3118-7448-8775-bdfd06478b60","correlation_id":"01a21d77-3118-7448-8775-bdfb5db68a5f","causation_id":"01a21d77-3118-7448-8775-bdfc16b57933","actor":"tests","request_id":"01a21d77-3118-7448-8775-bdfb5db68a5f","occurred_at":"2026-11-27T14:44:40.344473Z"}	56	1795790680344497
order	long-draft	25	ItemRemoved	1	{"ItemRemoved":{"sku":"sku-4"}}	{"event_id":"01a21d77-3118-7448-8775-be009b90d1ab","correlation_id":"01a21d77-3118-7448-8775-bdfedfbe2c82","causation_id":"01a21d77-3118-7448-8775-bdff0e6a1935","actor":"tests","request_id":"01a21d77-3118-7448-8775-bdfedfbe2c82","occurred_at":"2026-11-27T14:44:40.344872Z"}	57	1795790680344898
order	long-draft	26	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":1,"unit_price":325,"name":"Thing 24","category":"THINGS"}}	{"event_id":"01a21d77-3119-70c7-8b9c-9d47305eb283","correlation_id":"01a21d77-3119-70c7-8b9c-9d45cd1e94f0","causation_id":"01a21d77-3119-70c7-8b9c-9d4664995040","actor":"tests","request_id":"01a21d77-3119-70c7-8b9c-9d45cd1e94f0","occurred_at":"2026-11-27T14:44:40.345298Z"}	58	1795790680345323
order	long-draft	27	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":2,"unit_price":325,"name":"Thing 25","category":"THINGS"}}	{"event_id":"01a21d77-3119-70c7-8b9c-9d4ae72fbe2c","correlation_id":"01a21d77-3119-70c7-8b9c-9d48b7efbd02","causation_id":"01a21d77-3119-70c7-8b9c-9d49f85df10d","actor":"tests","request_id":"01a21d77-3119-70c7-8b9c-9d48b7efbd02","occurred_at":"2026-11-27T14:44:40.345823Z"}	59	1795790680345849
order	long-confirmed	1	OrderCreated	1	{"OrderCreated":{"customer_id":"eve","currency":"USD","attributes":{"store_id":"9"}}}	{"event_id":"01a21d77-311a-7110-95ce-e7b632b304c7","correlation_id":"01a21d77-311a-7110-95ce-e7b49c241f19","causation_id":"01a21d77-311a-7110-95ce-e7b56e7507e8","actor":"tests","request_id":"01a21d77-311a-7110-95ce-e7b49c241f19","occurred_at":"2026-11-27T14:44:40.346432Z"}	60	1795790680346460
order	long-confirmed	2	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":1,"unit_price":325,"name":"Thing 0","category":"THINGS"}}	{"event_id":"01a21d77-311a-7110-95ce-e7b9cca5626f","correlation_id":"01a21d77-311a-7110-95ce-e7b77699900e","causation_id":"01a21d77-311a-7110-95ce-e7b8f901ad33","actor":"tests","request_id":"01a21d77-311a-7110-95ce-e7b77699900e","occurred_at":"2026-11-27T14:44:40.346925Z"}	61	1795790680346937
order	long-confirmed	3	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":2,"unit_price":325,"name":"Thing 1","category":"THINGS"}}	{"event_id":"01a21d77-311b-700c-b2bd-4cda21da22ed","correlation_id":"01a21d77-311b-700c-b2bd-4cd891f090c8","causation_id":"01a21d77-311b-700c-b2bd-4cd9d21bd063","actor":"tests","request_id":"01a21d77-311b-700c-b2bd-4cd891f090c8","occurred_at":"2026-11-27T14:44:40.347477Z"}	62	1795790680347509
order	long-confirmed	4	ItemAdded	2	{"ItemAdded":{"sku":"sku-2","quantity":3,"unit_price":325,"name":"Thing 2","category":"THINGS"}}	{"event_id":"01a21d77-311b-700c-b2bd-4cdd59816c27","correlation_id":"01a21d77-311b-700c-b2bd-4cdb63a689b7","causation_id":"01a21d77-311b-700c-b2bd-4cdc46d64115","actor":"tests","request_id":"01a21d77-311b-700c-b2bd-4cdb63a689b7","occurred_at":"2026-11-27T14:44:40.347989Z"}	63	1795790680348036
order	long-confirmed	5	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":4,"unit_price":325,"name":"Thing 3","category":"THINGS"}}	{"event_id":"01a21d77-311c-74b1-9097-7b6ee35a5f6d","correlation_id":"01a21d77-311c-74b1-9097-7b6ce5616c6f","causation_id":"01a21d77-311c-74b1-9097-7b6d98432a6d","actor":"tests","request_id":"01a21d77-311c-74b1-9097-7b6ce5616c6f","occurred_at":"2026-11-27T14:44:40.348532Z"}	64	1795790680348563
order	long-confirmed	6	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":1,"unit_price":325,"name":"Thing 4","category":"THINGS"}}	{"event_id":"01a21d77-311d-7136-9bcc-91d619a7ce9d","correlation_id":"01a21d77-311d-7136-9bcc-91d43a0c4d12","causation_id":"01a21d77-311d-7136-9bcc-91d57b525bad","actor":"tests","request_id":"01a21d77-311d-7136-9bcc-91d43a0c4d12","occurred_at":"2026-11-27T14:44:40.34903Z"}	65	1795790680349059
order	long-confirmed	7	ItemAdded	2	{"ItemAdded":{"sku":"sku-5","quantity":2,"unit_price":325,"name":"Thing 5","category":"THINGS"}}	{"event_id":"01a21d77-311d-7136-9bcc-91d9de381edc","correlation_id":"01a21d77-311d-7136-9bcc-91d7b3830f40","causation_id":"01a21d77-311d-7136-9bcc-91d8514db43d","actor":"tests","request_id":"01a21d77-311d-7136-9bcc-91d7b3830f40","occurred_at":"2026-11-27T14:44:40.349577Z"}	66	1795790680349604
order	long-confirmed	8	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":3,"unit_price":325,"name":"Thing 6","category":"THINGS"}}	{"event_id":"01a21d77-311e-7748-9f9f-899bc28402de","correlation_id":"01a21d77-311e-7748-9f9f-8999ccdaf019","causation_id":"01a21d77-311e-7748-9f9f-899a3822d53d","actor":"tests","request_id":"01a21d77-311e-7748-9f9f-8999ccdaf019","occurred_at":"2026-11-27T14:44:40.350032Z"}	67	1795790680350058
order	long-confirmed	9	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":4,"unit_price":325,"name":"Thing 7","category":"THINGS"}}	{"event_id":"01a21d77-311e-7748-9f9f-899e8815295a","correlation_id":"01a21d77-311e-7748-9f9f-899c16223fdc","causation_id":"01a21d77-311e-7748-9f9f-899da02ff569","actor":"tests","request_id":"01a21d77-311e-7748-9f9f-899c16223fdc","occurred_at":"2026-11-27T14:44:40.350478Z"}	68	1795790680350504
order	long-confirmed	10	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":18}}	{"event_id":"01a21d77-311e-7748-9f9f-89a15c0b9377","correlation_id":"01a21d77-311e-7748-9f9f-899f999cc27c","causation_id":"01a21d77-311e-7748-9f9f-89a0dab732db","actor":"tests","request_id":"01a21d77-311e-7748-9f9f-899f999cc27c","occurred_at":"2026-11-27T14:44:40.350929Z"}	69	1795790680350957
order	long-confirmed	11	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":2,"unit_price":325,"name":"Thing 9","category":"THINGS"}}	{"event_id":"01a21d77-3120-76fa-85fe-bd6450ee6aab","correlation_id":"01a21d77-3120-76fa-85fe-bd62f3d034e6","causation_id":"01a21d77-3120-76fa-85fe-bd63a0b2b055","actor":"tests","request_id":"01a21d77-3120-76fa-85fe-bd62f3d034e6","occurred_at":"2026-11-27T14:44:40.352912Z"}	70	1795790680352942
order	long-confirmed	12	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":3,"unit_price":325,"name":"Thing 10","category":"THINGS"}}	{"event_id":"01a21d77-3121-700c-bbb6-13011554b4c8","correlation_id":"01a21d77-3121-700c-bbb6-12ff25c42eba","causation_id":"01a21d77-3121-700c-bbb6-13007770082c","actor":"tests","request_id":"01a21d77-3121-700c-bbb6-12ff25c42eba","occurred_at":"2026-11-27T14:44:40.353375Z"}	71	1795790680353402
order	long-confirmed	13	ItemRemoved	1	{"ItemRemoved":{"sku":"sku-4"}}	{"event_id":"01a21d77-3121-700c-bbb6-130426a44e47","correlation_id":"01a21d77-3121-700c-bbb6-1302268ec30e","causation_id":"01a21d77-3121-700c-bbb6-1303b1798dcb","actor":"tests","request_id":"01a21d77-3121-700c-bbb6-1302268ec30e","occurred_at":"2026-11-27T14:44:40.353823Z"}	72	1795790680353849
order	long-confirmed	14	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":1,"unit_price":325,"name":"Thing 12","category":"THINGS"}}	{"event_id":"01a21d77-3122-723d-ae46-3efa8a8229c0","correlation_id":"01a21d77-3122-723d-ae46-3ef8a480232e","causation_id":"01a21d77-3122-723d-ae46-3ef9d257d0c9","actor":"tests","request_id":"01a21d77-3122-723d-ae46-3ef8a480232e","occurred_at":"2026-11-27T14:44:40.354282Z"}	73	1795790680354308
order	long-confirmed	15	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":2,"unit_price":325,"name":"Thing 13","category":"THINGS"}}	{"event_id":"01a21d77-3122-723d-ae46-3efd8fae4507","correlation_id":"01a21d77-3122-723d-ae46-3efb86afe828","causation_id":"01a21d77-3122-723d-ae46-3efc9beb00b1","actor":"tests","request_id":"01a21d77-3122-723d-ae46-3efb86afe828","occurred_at":"2026-11-27T14:44:40.354733Z"}	74	1795790680354759
order	long-confirmed	16	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":24}}	{"event_id":"01a21d77-3123-70a7-b8a4-43065457b1d1","correlation_id":"01a21d77-3123-70a7-b8a4-43046cc0f808","causation_id":"01a21d77-3123-70a7-b8a4-43056068df9d","actor":"tests","request_id":"01a21d77-3123-70a7-b8a4-43046cc0f808","occurred_at":"2026-11-27T14:44:40.355261Z"}	75	1795790680355282
order	long-confirmed	17	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":4,"unit_price":325,"name":"Thing 15","category":"THINGS"}}	{"event_id":"01a21d77-3123-70a7-b8a4-4309f01ce045","correlation_id":"01a21d77-3123-70a7-b8a4-4307ab01c673","causation_id":"01a21d77-3123-70a7-b8a4-4308561e2cfc","actor":"tests","request_id":"01a21d77-3123-70a7-b8a4-4307ab01c673","occurred_at":"2026-11-27T14:44:40.355828Z"}	76	1795790680355852
order	long-confirmed	18	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":1,"unit_price":325,"name":"Thing 16","category":"THINGS"}}	{"event_id":"01a21d77-3124-7518-a5be-a20bb119c627","correlation_id":"01a21d77-3124-7518-a5be-a2091fada49a","causation_id":"01a21d77-3124-7518-a5be-a20a174889d9","actor":"tests","request_id":"01a21d77-3124-7518-a5be-a2091fada49a","occurred_at":"2026-11-27T14:44:40.356334Z"}	77	1795790680356357
order	long-confirmed	19	ItemRemoved	1	{"ItemRemoved":{"sku":"sku-4"}}	{"event_id":"01a21d77-3124-7518-a5be-a20e016bd88a","correlation_id":"01a21d77-3124-7518-a5be-a20c70a715ec","causation_id":"01a21d77-3124-7518-a5be-a20d66b62144","actor":"tests","request_id":"01a21d77-3124-7518-a5be-a20c70a715ec","occurred_at":"2026-11-27T14:44:40.356755Z"}	78	1795790680356776
order	long-confirmed	20	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":3,"unit_price":325,"name":"Thing 18","category":"THINGS"}}	{"event_id":"01a21d77-3125-72d4-98f5-4763cbf1c2f8","correlation_id":"01a21d77-3125-72d4-98f5-4761c08d7e28","causation_id":"01a21d77-3125-72d4-98f5-4762d54c2f4f","actor":"tests","request_id":"01a21d77-3125-72d4-98f5-4761c08d7e28","occurred_at":"2026-11-27T14:44:40.357235Z"}	79	1795790680357256
order	long-confirmed	21	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":4,"unit_price":325,"name":"Thing 19","category":"THINGS"}}	{"event_id":"01a21d77-3126-7528-a5f0-5805fbeb06c0","correlation_id":"01a21d77-3126-7528-a5f0-58033fb33919","causation_id":"01a21d77-3126-7528-a5f0-58041c2be4a7","actor":"tests","request_id":"01a21d77-3126-7528-a5f0-58033fb33919","occurred_at":"2026-11-27T14:44:40.358647Z"}	80	1795790680358676
order	long-confirmed	22	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":30}}	{"event_id":"01a21d77-3127-75e9-801f-4800f9b0bef3","correlation_id":"01a21d77-3127-75e9-801f-47fe5d44bb35","causation_id":"01a21d77-3127-75e9-801f-47ffdcbad121","actor":"tests","request_id":"01a21d77-3127-75e9-801f-47fe5d44bb35","occurred_at":"2026-11-27T14:44:40.359211Z"}	81	1795790680359235
order	long-confirmed	23	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":2,"unit_price":325,"name":"Thing 21","category":"THINGS"}}	{"event_id":"01a21d77-3127-75e9-801f-4803ed28e22a","correlation_id":"01a21d77-3127-75e9-801f-4801762283f0","causation_id":"01a21d77-3127-75e9-801f-48023f3c10af","actor":"tests","request_id":"01a21d77-3127-75e9-801f-4801762283f0","occurred_at":"2026-11-27T14:44:40.35965Z"}	82	1795790680359676
order	long-confirmed	24	ItemAdded	2	{"ItemAdded":{"sku":"sku-4","quantity":3,"unit_price":325,"name":"Thing 22","category":"THINGS"}}	{"event_id":"01a21d77-3128-73ca-8b3c-1d95a80c07df","correlation_id":"01a21d77-3128-73ca-8b3c-1d932c553cee","causation_id":"01a21d77-3128-73ca-8b3c-1d94c1908d8c","actor":"tests","request_id":"01a21d77-3128-73ca-8b3c-1d932c553cee","occurred_at":"2026-11-27T14:44:40.360097Z"}	83	1795790680360122
order	long-confirmed	25	ItemRemoved	1	{"ItemRemoved":{"sku":"sku-4"}}	{"event_id":"01a21d77-3128-73ca-8b3c-1d985c700dac","correlation_id":"01a21d77-3128-73ca-8b3c-1d96cf804fe3","causation_id":"01a21d77-3128-73ca-8b3c-1d974f8af9fb","actor":"tests","request_id":"01a21d77-3128-73ca-8b3c-1d96cf804fe3","occurred_at":"2026-11-27T14:44:40.360515Z"}	84	1795790680360538
order	long-confirmed	26	ItemAdded	2	{"ItemAdded":{"sku":"sku-0","quantity":1,"unit_price":325,"name":"Thing 24","category":"THINGS"}}	{"event_id":"01a21d77-3128-73ca-8b3c-1d9bd3f6275a","correlation_id":"01a21d77-3128-73ca-8b3c-1d99bf038a23","causation_id":"01a21d77-3128-73ca-8b3c-1d9a9881ecc8","actor":"tests","request_id":"01a21d77-3128-73ca-8b3c-1d99bf038a23","occurred_at":"2026-11-27T14:44:40.360986Z"}	85	1795790680361011
order	long-confirmed	27	ItemAdded	2	{"ItemAdded":{"sku":"sku-1","quantity":2,"unit_price":325,"name":"Thing 25","category":"THINGS"}}	{"event_id":"01a21d77-3129-75f4-b94f-d587ba0a95c2","correlation_id":"01a21d77-3129-75f4-b94f-d5853481a1d4","causation_id":"01a21d77-3129-75f4-b94f-d5866696a500","actor":"tests","request_id":"01a21d77-3129-75f4-b94f-d5853481a1d4","occurred_at":"2026-11-27T14:44:40.361463Z"}	86	1795790680361489
order	long-confirmed	28	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"sku-0","quantity":36}}	{"event_id":"01a21d77-3129-75f4-b94f-d58a3f5cf38d","correlation_id":"01a21d77-3129-75f4-b94f-d588dc5ca76b","causation_id":"01a21d77-3129-75f4-b94f-d5894ac3e77c","actor":"tests","request_id":"01a21d77-3129-75f4-b94f-d588dc5ca76b","occurred_at":"2026-11-27T14:44:40.361903Z"}	87	1795790680361926
order	long-confirmed	29	ItemAdded	2	{"ItemAdded":{"sku":"sku-3","quantity":4,"unit_price":325,"name":"Thing 27","category":"THINGS"}}	{"event_id":"01a21d77-312a-7367-a70d-643a4d5cc2b4","correlation_id":"01a21d77-312a-7367-a70d-64381aa2899e","causation_id":"01a21d77-312a-7367-a70d-643914c46fbd","actor":"tests","request_id":"01a21d77-312a-7367-a70d-64381aa2899e","occurred_at":"2026-11-27T14:44:40.362323Z"}	88	1795790680362347
order	long-confirmed	30	OrderConfirmed	1	{"OrderConfirmed":{"total":23075,"currency":"USD"}}	{"event_id":"01a21d77-312a-7367-a70d-643db12f3525","correlation_id":"01a21d77-312a-7367-a70d-643b9594855e","causation_id":"01a21d77-312a-7367-a70d-643c46778d4e","actor":"tests","request_id":"01a21d77-312a-7367-a70d-643b9594855e","occurred_at":"2026-11-27T14:44:40.362751Z"}	89	1795790680362776
order	mixed	1	OrderCreated	1	{"OrderCreated":{"customer_id":"olga","currency":"EUR"}}	{"event_id":"01a21d77-312b-7303-9456-f3e89f78399d","correlation_id":"01a21d77-312b-7303-9456-f3e657c7e50b","causation_id":"01a21d77-312b-7303-9456-f3e74a1e0ade","actor":"tests","request_id":"01a21d77-312b-7303-9456-f3e657c7e50b","occurred_at":"2026-11-27T14:44:40.363865Z"}	90	1795790680363893
order	mixed	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":150,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-312b-7303-9456-f3e94b345d9d","correlation_id":"01a21d77-312b-7303-9456-f3e657c7e50b","causation_id":"01a21d77-312b-7303-9456-f3e74a1e0ade","actor":"tests","request_id":"01a21d77-312b-7303-9456-f3e657c7e50b","occurred_at":"2026-11-27T14:44:40.363865Z"}	91	1795790680363893
order	mixed	3	ItemAdded	1	{"ItemAdded": {"sku": "quill", "quantity": 1, "unit_price": 199}}	{"source": "stock"}	92	1795790680378803
order	mixed	4	ItemAdded	2	{"ItemAdded":{"sku":"quill","quantity":1,"unit_price":199,"name":"Quill","category":"OFFICE"}}	{"event_id":"01a21d77-313d-76ba-bbb1-668b580b7927","correlation_id":"01a21d77-313c-74be-8908-b1e5afd3279a","causation_id":"01a21d77-313d-76ba-bbb1-668a0ba9b7bd","actor":"tests","request_id":"01a21d77-313c-74be-8908-b1e5afd3279a","occurred_at":"2026-11-27T14:44:40.381977Z"}	93	1795790680382078
order	mixed	5	OrderConfirmed	1	{"OrderConfirmed":{"total":698,"currency":"EUR"}}	{"event_id":"01a21d77-313e-752c-afa7-7be77344c8d4","correlation_id":"01a21d77-313e-752c-afa7-7be5c0f5c9ba","causation_id":"01a21d77-313e-752c-afa7-7be6ae1e9f09","actor":"tests","request_id":"01a21d77-313e-752c-afa7-7be5c0f5c9ba","occurred_at":"2026-11-27T14:44:40.382827Z"}	94	1795790680382860
order	bulk-1	1	OrderCreated	1	{"OrderCreated":{"customer_id":"frank","currency":"USD"}}	{"event_id":"01a21d77-313f-7113-9d13-4d88707347b6","correlation_id":"01a21d77-313f-7113-9d13-4d8699bd130b","causation_id":"01a21d77-313f-7113-9d13-4d876e87cb01","actor":"tests","request_id":"01a21d77-313f-7113-9d13-4d8699bd130b","occurred_at":"2026-11-27T14:44:40.383758Z"}	95	1795790680383786
order	bulk-1	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":150,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-313f-7113-9d13-4d89fbb1d931","correlation_id":"01a21d77-313f-7113-9d13-4d8699bd130b","causation_id":"01a21d77-313f-7113-9d13-4d876e87cb01","actor":"tests","request_id":"01a21d77-313f-7113-9d13-4d8699bd130b","occurred_at":"2026-11-27T14:44:40.383758Z"}	96	1795790680383786
order	bulk-2	1	OrderCreated	1	{"OrderCreated":{"customer_id":"frank","currency":"EUR"}}	{"event_id":"01a21d77-313f-7113-9d13-4d8bae88caa3","correlation_id":"01a21d77-313f-7113-9d13-4d8699bd130b","causation_id":"01a21d77-313f-7113-9d13-4d8a18f293cb","actor":"tests","request_id":"01a21d77-313f-7113-9d13-4d8699bd130b","occurred_at":"2026-11-27T14:44:40.383789Z"}	97	1795790680383911
order	bulk-1	3	ItemAdded	2	{"ItemAdded":{"sku":"ink","quantity":1,"unit_price":255,"name":null,"category":null}}	{"event_id":"01a21d77-313f-7113-9d13-4d8d8f9f732f","correlation_id":"01a21d77-313f-7113-9d13-4d8699bd130b","causation_id":"01a21d77-313f-7113-9d13-4d8c1362a788","actor":"tests","request_id":"01a21d77-313f-7113-9d13-4d8699bd130b","occurred_at":"2026-11-27T14:44:40.383945Z"}	98	1795790680383995
order	bulk-1	4	OrderConfirmed	1	{"OrderConfirmed":{"total":555,"currency":"USD"}}	{"event_id":"01a21d77-3140-7716-bd24-fcc560493bb1","correlation_id":"01a21d77-313f-7113-9d13-4d8699bd130b","causation_id":"01a21d77-3140-7716-bd24-fcc437e85ca9","actor":"tests","request_id":"01a21d77-313f-7113-9d13-4d8699bd130b","occurred_at":"2026-11-27T14:44:40.384085Z"}	99	1795790680384106
order	imported-1	1	OrderCreated	1	{"OrderCreated":{"customer_id":"grace","currency":"USD","attributes":{"store_id":"42"}}}	{"event_id":"01a21d77-3147-71d8-834c-5ebaafc27661","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3147-71d8-834c-5eb94ec64973","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-01T11:53:26Z"}	100	1795790680391547
order	imported-1	2	ItemAdded	2	{"ItemAdded":{"sku":"995242","quantity":2,"unit_price":109,"name":"FLUID MILK","category":"GROCERY"}}	{"event_id":"01a21d77-3147-71d8-834c-5ebb7a394378","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3147-71d8-834c-5eb94ec64973","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-01T11:53:26Z"}	101	1795790680391547
order	imported-1	3	ItemAdded	2	{"ItemAdded":{"sku":"6534178","quantity":1,"unit_price":2015,"name":"GASOLINE","category":"FUEL"}}	{"event_id":"01a21d77-3147-71d8-834c-5ebc8ed17467","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3147-71d8-834c-5eb94ec64973","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-01T11:53:26Z"}	102	1795790680391547
order	imported-2	1	OrderCreated	1	{"OrderCreated":{"customer_id":"grace","currency":"USD","attributes":{"store_id":"42"}}}	{"event_id":"01a21d77-3147-71d8-834c-5ebef560d154","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3147-71d8-834c-5ebd23987dcc","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-03T09:00:00Z"}	103	1795790680391787
order	imported-2	2	ItemAdded	2	{"ItemAdded":{"sku":"995242","quantity":1,"unit_price":109,"name":"FLUID MILK","category":"GROCERY"}}	{"event_id":"01a21d77-3147-71d8-834c-5ebfe8ea8419","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3147-71d8-834c-5ebd23987dcc","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-03T09:00:00Z"}	104	1795790680391787
order	imported-1	4	OrderConfirmed	1	{"OrderConfirmed":{"total":2233,"currency":"USD"}}	{"event_id":"01a21d77-3147-71d8-834c-5ec11af8bade","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3147-71d8-834c-5ec0a87c353a","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-01T11:53:26Z"}	105	1795790680391975
order	imported-2	3	OrderConfirmed	1	{"OrderConfirmed":{"total":109,"currency":"USD"}}	{"event_id":"01a21d77-3148-7459-a4a6-318cdbf5acd7","correlation_id":"01a21d77-3145-778c-9138-5573bedad2df","causation_id":"01a21d77-3148-7459-a4a6-318b06d2aedf","actor":"tests","request_id":"01a21d77-3145-778c-9138-5573bedad2df","occurred_at":"2017-01-03T09:00:00Z"}	106	1795790680392094
order	live-1	1	OrderCreated	1	{"OrderCreated":{"customer_id":"ada","currency":"USD"}}	{"event_id":"01a21d77-3149-72d7-ac09-2532755595ae","correlation_id":"01a21d77-3149-72d7-ac09-253075887bac","causation_id":"01a21d77-3149-72d7-ac09-253149cac806","actor":"tests","request_id":"01a21d77-3149-72d7-ac09-253075887bac","occurred_at":"2026-11-27T14:44:40.393506Z"}	107	1795790680393534
order	live-2	1	OrderCreated	1	{"OrderCreated":{"customer_id":"bob","currency":"EUR"}}	{"event_id":"01a21d77-314a-70cf-9f58-d21719fce121","correlation_id":"01a21d77-314a-70cf-9f58-d215a4cf503a","causation_id":"01a21d77-314a-70cf-9f58-d21613469279","actor":"tests","request_id":"01a21d77-314a-70cf-9f58-d215a4cf503a","occurred_at":"2026-11-27T14:44:40.394067Z"}	108	1795790680394097
order	live-3	1	OrderCreated	1	{"OrderCreated":{"customer_id":"ada","currency":"USD"}}	{"event_id":"01a21d77-314a-70cf-9f58-d21a82a22ab9","correlation_id":"01a21d77-314a-70cf-9f58-d218de77cad4","causation_id":"01a21d77-314a-70cf-9f58-d219217100bc","actor":"tests","request_id":"01a21d77-314a-70cf-9f58-d218de77cad4","occurred_at":"2026-11-27T14:44:40.394579Z"}	109	1795790680394611
order	live-3	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":150,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-314a-70cf-9f58-d21b65f97333","correlation_id":"01a21d77-314a-70cf-9f58-d218de77cad4","causation_id":"01a21d77-314a-70cf-9f58-d219217100bc","actor":"tests","request_id":"01a21d77-314a-70cf-9f58-d218de77cad4","occurred_at":"2026-11-27T14:44:40.394579Z"}	110	1795790680394611
order	live-3	3	ItemAdded	2	{"ItemAdded":{"sku":"ink","quantity":1,"unit_price":255,"name":null,"category":null}}	{"event_id":"01a21d77-314a-70cf-9f58-d21cc19dc3e6","correlation_id":"01a21d77-314a-70cf-9f58-d218de77cad4","causation_id":"01a21d77-314a-70cf-9f58-d219217100bc","actor":"tests","request_id":"01a21d77-314a-70cf-9f58-d218de77cad4","occurred_at":"2026-11-27T14:44:40.394579Z"}	111	1795790680394611
order	live-4	1	OrderCreated	1	{"OrderCreated":{"customer_id":"bob","currency":"USD"}}	{"event_id":"01a21d77-314b-7465-8a6c-067c57998e47","correlation_id":"01a21d77-314b-7465-8a6c-067a4052f1f1","causation_id":"01a21d77-314b-7465-8a6c-067b19f9a4f5","actor":"tests","request_id":"01a21d77-314b-7465-8a6c-067a4052f1f1","occurred_at":"2026-11-27T14:44:40.395079Z"}	112	1795790680395104
order	live-4	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":150,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-314b-7465-8a6c-067d76e7b5bd","correlation_id":"01a21d77-314b-7465-8a6c-067a4052f1f1","causation_id":"01a21d77-314b-7465-8a6c-067b19f9a4f5","actor":"tests","request_id":"01a21d77-314b-7465-8a6c-067a4052f1f1","occurred_at":"2026-11-27T14:44:40.395079Z"}	113	1795790680395104
order	discarded	1	OrderCreated	1	{"OrderCreated":{"customer_id":"hugo","currency":"USD"}}	{"event_id":"01a21d77-4b74-7699-a115-55c1a7c063c0","correlation_id":"01a21d77-4b74-7699-a115-55bf3857d148","causation_id":"01a21d77-4b74-7699-a115-55c0f314da20","actor":"tests","request_id":"01a21d77-4b74-7699-a115-55bf3857d148","occurred_at":"2026-11-27T14:44:47.092682Z"}	114	1795790687117990
order	discarded	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":1,"unit_price":100,"name":null,"category":null}}	{"event_id":"01a21d77-4b74-7699-a115-55c296e202a7","correlation_id":"01a21d77-4b74-7699-a115-55bf3857d148","causation_id":"01a21d77-4b74-7699-a115-55c0f314da20","actor":"tests","request_id":"01a21d77-4b74-7699-a115-55bf3857d148","occurred_at":"2026-11-27T14:44:47.092682Z"}	115	1795790687117990
order	discarded	3	ItemAdded	1	{"ItemAdded": {"sku": "ink", "quantity": "two", "unit_price": 300}}	{"source": "stock"}	116	1795790687158499
order	discarded	4	ItemAdded	1	{"ItemAdded": {"sku": "cup", "quantity": 2, "unit_price": 300}}	{"source": "stock"}	117	1795790687158809
order	parked	1	OrderCreated	1	{"OrderCreated":{"customer_id":"hugo","currency":"USD"}}	{"event_id":"01a21d77-57ad-7266-9cea-187f36b88ae9","correlation_id":"01a21d77-57ad-7266-9cea-187dfccb0b0a","causation_id":"01a21d77-57ad-7266-9cea-187eb1cc11c0","actor":"tests","request_id":"01a21d77-57ad-7266-9cea-187dfccb0b0a","occurred_at":"2026-11-27T14:44:50.221531Z"}	118	1795790690225537
order	parked	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":1,"unit_price":100,"name":null,"category":null}}	{"event_id":"01a21d77-57ad-7266-9cea-1880722038be","correlation_id":"01a21d77-57ad-7266-9cea-187dfccb0b0a","causation_id":"01a21d77-57ad-7266-9cea-187eb1cc11c0","actor":"tests","request_id":"01a21d77-57ad-7266-9cea-187dfccb0b0a","occurred_at":"2026-11-27T14:44:50.221531Z"}	119	1795790690225537
order	parked	3	ItemAdded	1	{"ItemAdded": {"sku": "ink", "quantity": "two", "unit_price": 300}}	{"source": "stock"}	120	1795790690242422
order	parked	4	ItemAdded	1	{"ItemAdded": {"sku": "cup", "quantity": 2, "unit_price": 300}}	{"source": "stock"}	121	1795790690242708
order	01a21d77-644c-76e9-a690-02fdca1e44ca	1	OrderCreated	1	{"OrderCreated":{"customer_id":"ada","currency":"USD"}}	{"event_id":"01a21d77-644c-76e9-a690-02ff80cfeee9","correlation_id":"01a21d77-644b-71fc-84bb-b26b6e801227","causation_id":"01a21d77-644c-76e9-a690-02fe2851d2a8","actor":"ada","request_id":"01a21d77-644b-71fc-84bb-b26b6e801227","occurred_at":"2026-11-27T14:44:53.452645Z"}	122	1795790693456198
order	01a21d77-644c-76e9-a690-02fdca1e44ca	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":1,"unit_price":100,"name":"Pen","category":null}}	{"event_id":"01a21d77-644c-76e9-a690-0300c69924fd","correlation_id":"01a21d77-644b-71fc-84bb-b26b6e801227","causation_id":"01a21d77-644c-76e9-a690-02fe2851d2a8","actor":"ada","request_id":"01a21d77-644b-71fc-84bb-b26b6e801227","occurred_at":"2026-11-27T14:44:53.452645Z"}	123	1795790693456198
order	live-1	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":2,"unit_price":100,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-646a-7069-b36d-df7870680382","correlation_id":"01a21d77-6467-7475-928a-280648b7ccd9","causation_id":"01a21d77-646a-7069-b36d-df77d33d2e61","actor":"clerk","request_id":"01a21d77-6467-7475-928a-280648b7ccd9","occurred_at":"2026-11-27T14:44:53.482803Z"}	124	1795790693483041
order	live-2	2	ItemAdded	2	{"ItemAdded":{"sku":"tea","quantity":1,"unit_price":400,"name":null,"category":null}}	{"event_id":"01a21d77-6483-77f8-91b2-4a25e2aca1bf","correlation_id":"01a21d77-6482-72ec-8720-51fb8eb72a5c","causation_id":"01a21d77-6483-77f8-91b2-4a24a9466427","actor":"clerk","request_id":"01a21d77-6482-72ec-8720-51fb8eb72a5c","occurred_at":"2026-11-27T14:44:53.507659Z"}	125	1795790693507716
order	live-1	3	ItemQuantityChanged	1	{"ItemQuantityChanged":{"sku":"pen","quantity":6}}	{"event_id":"01a21d77-6499-75c3-8930-3019ed62a149","correlation_id":"01a21d77-6499-75c3-8930-30174f372ff6","causation_id":"01a21d77-6499-75c3-8930-30183e6d3ce5","actor":"clerk","request_id":"01a21d77-6499-75c3-8930-30174f372ff6","occurred_at":"2026-11-27T14:44:53.529903Z"}	126	1795790693529973
order	live-3	4	ItemRemoved	1	{"ItemRemoved":{"sku":"ink"}}	{"event_id":"01a21d77-64b6-7390-bde9-42af2513e150","correlation_id":"01a21d77-64b6-7390-bde9-42ad12838a3f","causation_id":"01a21d77-64b6-7390-bde9-42aef3f0e627","actor":"clerk","request_id":"01a21d77-64b6-7390-bde9-42ad12838a3f","occurred_at":"2026-11-27T14:44:53.55871Z"}	127	1795790693558747
order	live-1	4	OrderConfirmed	1	{"OrderConfirmed":{"total":600,"currency":"USD"}}	{"event_id":"01a21d77-64d5-7677-acb2-355f72c947a7","correlation_id":"01a21d77-64d5-7677-acb2-355d2104b404","causation_id":"01a21d77-64d5-7677-acb2-355e0751981a","actor":"clerk","request_id":"01a21d77-64d5-7677-acb2-355d2104b404","occurred_at":"2026-11-27T14:44:53.589356Z"}	128	1795790693589397
order	live-3	5	OrderCancelled	1	{"OrderCancelled":{"reason":"too late"}}	{"event_id":"01a21d77-65b1-7175-b48e-abc3e844c38b","correlation_id":"01a21d77-65af-77df-ae5c-da4b686019da","causation_id":"01a21d77-65b1-7175-b48e-abc2b0cdafa4","actor":"clerk","request_id":"01a21d77-65af-77df-ae5c-da4b686019da","occurred_at":"2026-11-27T14:44:53.809097Z"}	129	1795790693809162
order	live-2	3	ItemAdded	2	{"ItemAdded":{"sku":"mug","quantity":1,"unit_price":800,"name":"Mug","category":null}}	{"event_id":"01a21d77-65d0-717b-8688-86e8d4f8755a","correlation_id":"01a21d77-65d0-717b-8688-86e6df685b04","causation_id":"01a21d77-65d0-717b-8688-86e78340f0c9","actor":"bob","request_id":"01a21d77-65d0-717b-8688-86e6df685b04","occurred_at":"2026-11-27T14:44:53.840836Z"}	130	1795790693840917
order	live-2	4	OrderConfirmed	1	{"OrderConfirmed":{"total":1200,"currency":"EUR"}}	{"event_id":"01a21d77-6604-76cc-a326-f063ec0e9ee1","correlation_id":"01a21d77-6603-77f9-8292-16bc1e37ca0b","causation_id":"01a21d77-6604-76cc-a326-f0620ec5ab46","actor":"clerk","request_id":"01a21d77-6603-77f9-8292-16bc1e37ca0b","occurred_at":"2026-11-27T14:44:53.892148Z"}	131	1795790693892247
order	long-draft	28	ItemAdded	2	{"ItemAdded":{"sku":"late","quantity":1,"unit_price":999,"name":"Late","category":"THINGS"}}	{"event_id":"01a21d77-6865-7142-b2a4-34529e2b43d8","correlation_id":"01a21d77-6864-778a-89d2-51c4a50f3814","causation_id":"01a21d77-6865-7142-b2a4-3451891c4d15","actor":"tests","request_id":"01a21d77-6864-778a-89d2-51c4a50f3814","occurred_at":"2026-11-27T14:44:54.501363Z"}	132	1795790694502566
order	last	1	OrderCreated	1	{"OrderCreated":{"customer_id":"ada","currency":"EUR"}}	{"event_id":"01a21d77-6868-756f-bada-d3922001eda3","correlation_id":"01a21d77-6868-756f-bada-d39069fb5209","causation_id":"01a21d77-6868-756f-bada-d39105e68a16","actor":"clerk","request_id":"01a21d77-6868-756f-bada-d39069fb5209","occurred_at":"2026-11-27T14:44:54.50455Z"}	133	1795790694504588
order	live-4	3	OrderConfirmed	1	{"OrderConfirmed":{"total":300,"currency":"USD"}}	{"event_id":"01a21d77-6869-77a3-80f7-1e76ff938821","correlation_id":"01a21d77-6869-77a3-80f7-1e7400e5cecb","causation_id":"01a21d77-6869-77a3-80f7-1e75f24a0f34","actor":"tests","request_id":"01a21d77-6869-77a3-80f7-1e7400e5cecb","occurred_at":"2026-11-27T14:44:54.505775Z"}	134	1795790694505797
order	last	2	ItemAdded	2	{"ItemAdded":{"sku":"pen","quantity":3,"unit_price":110,"name":"Pen","category":"OFFICE"}}	{"event_id":"01a21d77-686a-7013-8b57-6ae6eb1775c5","correlation_id":"01a21d77-686a-7013-8b57-6ae4ac2505c8","causation_id":"01a21d77-686a-7013-8b57-6ae5a5409b48","actor":"clerk","request_id":"01a21d77-686a-7013-8b57-6ae4ac2505c8","occurred_at":"2026-11-27T14:44:54.50672Z"}	135	1795790694506734
\.


--
-- Data for Name: idempotency; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.idempotency (scope, key, request_hash, status, aggregate_id, version, "position", created_at) FROM stdin;
ada	create-1	2d7a21f123545cdd2b6795c8ff40ef217823279208acd00450d0e71c0eaa2e77	201	01a21d77-644c-76e9-a690-02fdca1e44ca	2	123	1795790693456198
clerk	add-1	b377300345f3a0390987b33edeecc0be65ef3d8ee5984edcfa74211696d1ff7b	200	live-1	2	124	1795790693483041
clerk	add-2	8a95f495f01039288eb96d82966ee3f6e93dd4182c7ee67598f6279f9aa3e344	200	live-2	2	125	1795790693507716
clerk	change-1	cee63e1b3a4d82875f87153acf5eb5db95caf3f56a8f8b2f27d26a296a98a095	200	live-1	3	126	1795790693529973
clerk	no-op-1	cee63e1b3a4d82875f87153acf5eb5db95caf3f56a8f8b2f27d26a296a98a095	200	live-1	3	126	1795790693556785
clerk	remove-1	fa91291c6574b0f73fb27cd929b76b8ec75af7ed6e9468933fbacd8d9b600eaf	200	live-3	4	127	1795790693558747
clerk	confirm-1	00d15826e9b6f99780e11379af11e94831283e6d6e6cd850ad4dd6a91e5ea019	200	live-1	4	128	1795790693589397
clerk	cancel-1	cac6e6ac904b1422642bb308a0120bfdfb3823684ae94b828a4b46f5775e7b30	200	live-3	5	129	1795790693809162
bob	add-1	4676432f2a868fd040eb22c99c0a055ad845966db81d1a26d1760366e6a96eb5	200	live-2	3	130	1795790693840917
clerk	confirm-2	6906b9ab38a7acb3fdf52bf16acc351db7bb7dac6dac4f5b123642fe8ba98d5a	200	live-2	4	131	1795790693892247
clerk	create-2	118766316c953fc4ebefa5733896b5a38a4ca61ef332364dc25d94cd52d5e985	201	last	1	133	1795790694504588
clerk	add-3	ab11661a3ee65cab9e6bd55574ecfa8ad5b22a8ea2fffd67deb7f72de9d9f42a	200	last	2	135	1795790694506734
\.


--
-- Data for Name: log_head; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.log_head (only_row, "position", incarnation) FROM stdin;
t	135	ab96d05d-ea1d-430c-8be6-6b4f83627d96
\.


--
-- Data for Name: order_details_g1; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.order_details_g1 (order_id, customer_id, version, "position", view) FROM stdin;
stock-1	olga	4	6	{"order_id":"stock-1","customer_id":"olga","status":"confirmed","currency":"EUR","total":"15.00","quantity":6,"lines":[{"sku":"quill","name":null,"category":null,"quantity":3,"unit_price":"2.50","line_total":"7.50"},{"sku":"ink","name":"Ink","category":"OFFICE","quantity":3,"unit_price":"2.50","line_total":"7.50"}],"attributes":{"store_id":"3"},"placed_at":"2026-11-27T14:44:38.705782Z","updated_at":"2026-11-27T14:44:38.705845Z","version":4,"position":6}
stock-2	olga	2	5	{"order_id":"stock-2","customer_id":"olga","status":"draft","currency":"JPY","total":"21","quantity":3,"lines":[{"sku":"quill","name":null,"category":null,"quantity":3,"unit_price":"7","line_total":"21"}],"attributes":{},"placed_at":"2026-11-27T14:44:38.70584Z","updated_at":"2026-11-27T14:44:38.705844Z","version":2,"position":5}
usd-draft	ada	3	9	{"order_id":"usd-draft","customer_id":"ada","status":"draft","currency":"USD","total":"5.55","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"ink","name":null,"category":null,"quantity":1,"unit_price":"2.55","line_total":"2.55"}],"attributes":{"note":"für später","store_id":"7"},"placed_at":"2026-11-27T14:44:40.300766Z","updated_at":"2026-11-27T14:44:40.300766Z","version":3,"position":9}
usd-confirmed	ada	4	13	{"order_id":"usd-confirmed","customer_id":"ada","status":"confirmed","currency":"USD","total":"11.00","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"mug","name":"Mug","category":null,"quantity":1,"unit_price":"8.00","line_total":"8.00"}],"attributes":{"store_id":"7"},"placed_at":"2026-11-27T14:44:40.321833Z","updated_at":"2026-11-27T14:44:40.322767Z","version":4,"position":13}
eur-cancelled	bob	3	16	{"order_id":"eur-cancelled","customer_id":"bob","status":"cancelled","currency":"EUR","total":"3.96","quantity":4,"lines":[{"sku":"tea","name":null,"category":"GROCERY","quantity":4,"unit_price":"0.99","line_total":"3.96"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.323664Z","updated_at":"2026-11-27T14:44:40.324594Z","version":3,"position":16}
jpy-confirmed	bob	4	20	{"order_id":"jpy-confirmed","customer_id":"bob","status":"confirmed","currency":"JPY","total":"960","quantity":3,"lines":[{"sku":"tea","name":"緑茶","category":"GROCERY","quantity":2,"unit_price":"480","line_total":"960"},{"sku":"free","name":null,"category":null,"quantity":1,"unit_price":"0","line_total":"0"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.325369Z","updated_at":"2026-11-27T14:44:40.326033Z","version":4,"position":20}
kwd-draft	carol	2	22	{"order_id":"kwd-draft","customer_id":"carol","status":"draft","currency":"KWD","total":"12.345","quantity":1,"lines":[{"sku":"oud","name":"Oud","category":"MUSIC","quantity":1,"unit_price":"12.345","line_total":"12.345"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.326566Z","updated_at":"2026-11-27T14:44:40.326566Z","version":2,"position":22}
empty-draft	carol	1	23	{"order_id":"empty-draft","customer_id":"carol","status":"draft","currency":"USD","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.327698Z","updated_at":"2026-11-27T14:44:40.327698Z","version":1,"position":23}
empty-cancelled	carol	2	25	{"order_id":"empty-cancelled","customer_id":"carol","status":"cancelled","currency":"USD","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.328309Z","updated_at":"2026-11-27T14:44:40.328828Z","version":2,"position":25}
changed	dora	7	32	{"order_id":"changed","customer_id":"dora","status":"draft","currency":"USD","total":"39.35","quantity":17,"lines":[{"sku":"ink","name":null,"category":null,"quantity":12,"unit_price":"2.55","line_total":"30.60"},{"sku":"pen","name":null,"category":null,"quantity":5,"unit_price":"1.75","line_total":"8.75"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.329303Z","updated_at":"2026-11-27T14:44:40.331725Z","version":7,"position":32}
long-draft	eve	27	59	{"order_id":"long-draft","customer_id":"eve","status":"draft","currency":"USD","total":"201.50","quantity":62,"lines":[{"sku":"sku-0","name":"Thing 24","category":"THINGS","quantity":31,"unit_price":"3.25","line_total":"100.75"},{"sku":"sku-1","name":"Thing 25","category":"THINGS","quantity":14,"unit_price":"3.25","line_total":"45.50"},{"sku":"sku-2","name":"Thing 2","category":"THINGS","quantity":3,"unit_price":"3.25","line_total":"9.75"},{"sku":"sku-3","name":"Thing 21","category":"THINGS","quantity":12,"unit_price":"3.25","line_total":"39.00"},{"sku":"sku-5","name":"Thing 5","category":"THINGS","quantity":2,"unit_price":"3.25","line_total":"6.50"}],"attributes":{"store_id":"9"},"placed_at":"2026-11-27T14:44:40.332154Z","updated_at":"2026-11-27T14:44:40.345823Z","version":27,"position":59}
long-confirmed	eve	30	89	{"order_id":"long-confirmed","customer_id":"eve","status":"confirmed","currency":"USD","total":"230.75","quantity":71,"lines":[{"sku":"sku-0","name":"Thing 24","category":"THINGS","quantity":36,"unit_price":"3.25","line_total":"117.00"},{"sku":"sku-1","name":"Thing 25","category":"THINGS","quantity":14,"unit_price":"3.25","line_total":"45.50"},{"sku":"sku-2","name":"Thing 2","category":"THINGS","quantity":3,"unit_price":"3.25","line_total":"9.75"},{"sku":"sku-3","name":"Thing 27","category":"THINGS","quantity":16,"unit_price":"3.25","line_total":"52.00"},{"sku":"sku-5","name":"Thing 5","category":"THINGS","quantity":2,"unit_price":"3.25","line_total":"6.50"}],"attributes":{"store_id":"9"},"placed_at":"2026-11-27T14:44:40.346432Z","updated_at":"2026-11-27T14:44:40.362751Z","version":30,"position":89}
mixed	olga	5	94	{"order_id":"mixed","customer_id":"olga","status":"confirmed","currency":"EUR","total":"6.98","quantity":4,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"quill","name":"Quill","category":"OFFICE","quantity":2,"unit_price":"1.99","line_total":"3.98"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.363865Z","updated_at":"2026-11-27T14:44:40.382827Z","version":5,"position":94}
bulk-1	frank	4	99	{"order_id":"bulk-1","customer_id":"frank","status":"confirmed","currency":"USD","total":"5.55","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"ink","name":null,"category":null,"quantity":1,"unit_price":"2.55","line_total":"2.55"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.383758Z","updated_at":"2026-11-27T14:44:40.384085Z","version":4,"position":99}
bulk-2	frank	1	97	{"order_id":"bulk-2","customer_id":"frank","status":"draft","currency":"EUR","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.383789Z","updated_at":"2026-11-27T14:44:40.383789Z","version":1,"position":97}
imported-1	grace	4	105	{"order_id":"imported-1","customer_id":"grace","status":"confirmed","currency":"USD","total":"22.33","quantity":3,"lines":[{"sku":"995242","name":"FLUID MILK","category":"GROCERY","quantity":2,"unit_price":"1.09","line_total":"2.18"},{"sku":"6534178","name":"GASOLINE","category":"FUEL","quantity":1,"unit_price":"20.15","line_total":"20.15"}],"attributes":{"store_id":"42"},"placed_at":"2017-01-01T11:53:26Z","updated_at":"2017-01-01T11:53:26Z","version":4,"position":105}
imported-2	grace	3	106	{"order_id":"imported-2","customer_id":"grace","status":"confirmed","currency":"USD","total":"1.09","quantity":1,"lines":[{"sku":"995242","name":"FLUID MILK","category":"GROCERY","quantity":1,"unit_price":"1.09","line_total":"1.09"}],"attributes":{"store_id":"42"},"placed_at":"2017-01-03T09:00:00Z","updated_at":"2017-01-03T09:00:00Z","version":3,"position":106}
live-1	ada	1	107	{"order_id":"live-1","customer_id":"ada","status":"draft","currency":"USD","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.393506Z","updated_at":"2026-11-27T14:44:40.393506Z","version":1,"position":107}
live-2	bob	1	108	{"order_id":"live-2","customer_id":"bob","status":"draft","currency":"EUR","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.394067Z","updated_at":"2026-11-27T14:44:40.394067Z","version":1,"position":108}
live-3	ada	3	111	{"order_id":"live-3","customer_id":"ada","status":"draft","currency":"USD","total":"5.55","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"ink","name":null,"category":null,"quantity":1,"unit_price":"2.55","line_total":"2.55"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.394579Z","updated_at":"2026-11-27T14:44:40.394579Z","version":3,"position":111}
live-4	bob	2	113	{"order_id":"live-4","customer_id":"bob","status":"draft","currency":"USD","total":"3.00","quantity":2,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.395079Z","updated_at":"2026-11-27T14:44:40.395079Z","version":2,"position":113}
\.


--
-- Data for Name: order_details_g2; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.order_details_g2 (order_id, customer_id, version, "position", view) FROM stdin;
stock-1	olga	4	6	{"order_id":"stock-1","customer_id":"olga","status":"confirmed","currency":"EUR","total":"15.00","quantity":6,"lines":[{"sku":"quill","name":null,"category":null,"quantity":3,"unit_price":"2.50","line_total":"7.50"},{"sku":"ink","name":"Ink","category":"OFFICE","quantity":3,"unit_price":"2.50","line_total":"7.50"}],"attributes":{"store_id":"3"},"placed_at":"2026-11-27T14:44:38.705782Z","updated_at":"2026-11-27T14:44:38.705845Z","version":4,"position":6}
stock-2	olga	2	5	{"order_id":"stock-2","customer_id":"olga","status":"draft","currency":"JPY","total":"21","quantity":3,"lines":[{"sku":"quill","name":null,"category":null,"quantity":3,"unit_price":"7","line_total":"21"}],"attributes":{},"placed_at":"2026-11-27T14:44:38.70584Z","updated_at":"2026-11-27T14:44:38.705844Z","version":2,"position":5}
usd-draft	ada	3	9	{"order_id":"usd-draft","customer_id":"ada","status":"draft","currency":"USD","total":"5.55","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"ink","name":null,"category":null,"quantity":1,"unit_price":"2.55","line_total":"2.55"}],"attributes":{"note":"für später","store_id":"7"},"placed_at":"2026-11-27T14:44:40.300766Z","updated_at":"2026-11-27T14:44:40.300766Z","version":3,"position":9}
usd-confirmed	ada	4	13	{"order_id":"usd-confirmed","customer_id":"ada","status":"confirmed","currency":"USD","total":"11.00","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"mug","name":"Mug","category":null,"quantity":1,"unit_price":"8.00","line_total":"8.00"}],"attributes":{"store_id":"7"},"placed_at":"2026-11-27T14:44:40.321833Z","updated_at":"2026-11-27T14:44:40.322767Z","version":4,"position":13}
eur-cancelled	bob	3	16	{"order_id":"eur-cancelled","customer_id":"bob","status":"cancelled","currency":"EUR","total":"3.96","quantity":4,"lines":[{"sku":"tea","name":null,"category":"GROCERY","quantity":4,"unit_price":"0.99","line_total":"3.96"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.323664Z","updated_at":"2026-11-27T14:44:40.324594Z","version":3,"position":16}
jpy-confirmed	bob	4	20	{"order_id":"jpy-confirmed","customer_id":"bob","status":"confirmed","currency":"JPY","total":"960","quantity":3,"lines":[{"sku":"tea","name":"緑茶","category":"GROCERY","quantity":2,"unit_price":"480","line_total":"960"},{"sku":"free","name":null,"category":null,"quantity":1,"unit_price":"0","line_total":"0"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.325369Z","updated_at":"2026-11-27T14:44:40.326033Z","version":4,"position":20}
kwd-draft	carol	2	22	{"order_id":"kwd-draft","customer_id":"carol","status":"draft","currency":"KWD","total":"12.345","quantity":1,"lines":[{"sku":"oud","name":"Oud","category":"MUSIC","quantity":1,"unit_price":"12.345","line_total":"12.345"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.326566Z","updated_at":"2026-11-27T14:44:40.326566Z","version":2,"position":22}
empty-draft	carol	1	23	{"order_id":"empty-draft","customer_id":"carol","status":"draft","currency":"USD","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.327698Z","updated_at":"2026-11-27T14:44:40.327698Z","version":1,"position":23}
empty-cancelled	carol	2	25	{"order_id":"empty-cancelled","customer_id":"carol","status":"cancelled","currency":"USD","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.328309Z","updated_at":"2026-11-27T14:44:40.328828Z","version":2,"position":25}
changed	dora	7	32	{"order_id":"changed","customer_id":"dora","status":"draft","currency":"USD","total":"39.35","quantity":17,"lines":[{"sku":"ink","name":null,"category":null,"quantity":12,"unit_price":"2.55","line_total":"30.60"},{"sku":"pen","name":null,"category":null,"quantity":5,"unit_price":"1.75","line_total":"8.75"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.329303Z","updated_at":"2026-11-27T14:44:40.331725Z","version":7,"position":32}
long-draft	eve	27	59	{"order_id":"long-draft","customer_id":"eve","status":"draft","currency":"USD","total":"201.50","quantity":62,"lines":[{"sku":"sku-0","name":"Thing 24","category":"THINGS","quantity":31,"unit_price":"3.25","line_total":"100.75"},{"sku":"sku-1","name":"Thing 25","category":"THINGS","quantity":14,"unit_price":"3.25","line_total":"45.50"},{"sku":"sku-2","name":"Thing 2","category":"THINGS","quantity":3,"unit_price":"3.25","line_total":"9.75"},{"sku":"sku-3","name":"Thing 21","category":"THINGS","quantity":12,"unit_price":"3.25","line_total":"39.00"},{"sku":"sku-5","name":"Thing 5","category":"THINGS","quantity":2,"unit_price":"3.25","line_total":"6.50"}],"attributes":{"store_id":"9"},"placed_at":"2026-11-27T14:44:40.332154Z","updated_at":"2026-11-27T14:44:40.345823Z","version":27,"position":59}
long-confirmed	eve	30	89	{"order_id":"long-confirmed","customer_id":"eve","status":"confirmed","currency":"USD","total":"230.75","quantity":71,"lines":[{"sku":"sku-0","name":"Thing 24","category":"THINGS","quantity":36,"unit_price":"3.25","line_total":"117.00"},{"sku":"sku-1","name":"Thing 25","category":"THINGS","quantity":14,"unit_price":"3.25","line_total":"45.50"},{"sku":"sku-2","name":"Thing 2","category":"THINGS","quantity":3,"unit_price":"3.25","line_total":"9.75"},{"sku":"sku-3","name":"Thing 27","category":"THINGS","quantity":16,"unit_price":"3.25","line_total":"52.00"},{"sku":"sku-5","name":"Thing 5","category":"THINGS","quantity":2,"unit_price":"3.25","line_total":"6.50"}],"attributes":{"store_id":"9"},"placed_at":"2026-11-27T14:44:40.346432Z","updated_at":"2026-11-27T14:44:40.362751Z","version":30,"position":89}
mixed	olga	5	94	{"order_id":"mixed","customer_id":"olga","status":"confirmed","currency":"EUR","total":"6.98","quantity":4,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"quill","name":"Quill","category":"OFFICE","quantity":2,"unit_price":"1.99","line_total":"3.98"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.363865Z","updated_at":"2026-11-27T14:44:40.382827Z","version":5,"position":94}
bulk-1	frank	4	99	{"order_id":"bulk-1","customer_id":"frank","status":"confirmed","currency":"USD","total":"5.55","quantity":3,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"},{"sku":"ink","name":null,"category":null,"quantity":1,"unit_price":"2.55","line_total":"2.55"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.383758Z","updated_at":"2026-11-27T14:44:40.384085Z","version":4,"position":99}
bulk-2	frank	1	97	{"order_id":"bulk-2","customer_id":"frank","status":"draft","currency":"EUR","total":"0.00","quantity":0,"lines":[],"attributes":{},"placed_at":"2026-11-27T14:44:40.383789Z","updated_at":"2026-11-27T14:44:40.383789Z","version":1,"position":97}
imported-1	grace	4	105	{"order_id":"imported-1","customer_id":"grace","status":"confirmed","currency":"USD","total":"22.33","quantity":3,"lines":[{"sku":"995242","name":"FLUID MILK","category":"GROCERY","quantity":2,"unit_price":"1.09","line_total":"2.18"},{"sku":"6534178","name":"GASOLINE","category":"FUEL","quantity":1,"unit_price":"20.15","line_total":"20.15"}],"attributes":{"store_id":"42"},"placed_at":"2017-01-01T11:53:26Z","updated_at":"2017-01-01T11:53:26Z","version":4,"position":105}
imported-2	grace	3	106	{"order_id":"imported-2","customer_id":"grace","status":"confirmed","currency":"USD","total":"1.09","quantity":1,"lines":[{"sku":"995242","name":"FLUID MILK","category":"GROCERY","quantity":1,"unit_price":"1.09","line_total":"1.09"}],"attributes":{"store_id":"42"},"placed_at":"2017-01-03T09:00:00Z","updated_at":"2017-01-03T09:00:00Z","version":3,"position":106}
live-4	bob	2	113	{"order_id":"live-4","customer_id":"bob","status":"draft","currency":"USD","total":"3.00","quantity":2,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.395079Z","updated_at":"2026-11-27T14:44:40.395079Z","version":2,"position":113}
discarded	hugo	4	117	{"order_id":"discarded","customer_id":"hugo","status":"draft","currency":"USD","total":"7.00","quantity":3,"lines":[{"sku":"pen","name":null,"category":null,"quantity":1,"unit_price":"1.00","line_total":"1.00"},{"sku":"cup","name":null,"category":null,"quantity":2,"unit_price":"3.00","line_total":"6.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:47.092682Z","updated_at":"2026-11-27T14:44:47.158809Z","version":4,"position":117}
parked	hugo	2	119	{"order_id":"parked","customer_id":"hugo","status":"draft","currency":"USD","total":"1.00","quantity":1,"lines":[{"sku":"pen","name":null,"category":null,"quantity":1,"unit_price":"1.00","line_total":"1.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:50.221531Z","updated_at":"2026-11-27T14:44:50.221531Z","version":2,"position":119}
01a21d77-644c-76e9-a690-02fdca1e44ca	ada	2	123	{"order_id":"01a21d77-644c-76e9-a690-02fdca1e44ca","customer_id":"ada","status":"draft","currency":"USD","total":"1.00","quantity":1,"lines":[{"sku":"pen","name":"Pen","category":null,"quantity":1,"unit_price":"1.00","line_total":"1.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:53.452645Z","updated_at":"2026-11-27T14:44:53.452645Z","version":2,"position":123}
live-1	ada	4	128	{"order_id":"live-1","customer_id":"ada","status":"confirmed","currency":"USD","total":"6.00","quantity":6,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":6,"unit_price":"1.00","line_total":"6.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.393506Z","updated_at":"2026-11-27T14:44:53.589356Z","version":4,"position":128}
live-3	ada	5	129	{"order_id":"live-3","customer_id":"ada","status":"cancelled","currency":"USD","total":"3.00","quantity":2,"lines":[{"sku":"pen","name":"Pen","category":"OFFICE","quantity":2,"unit_price":"1.50","line_total":"3.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.394579Z","updated_at":"2026-11-27T14:44:53.809097Z","version":5,"position":129}
live-2	bob	4	131	{"order_id":"live-2","customer_id":"bob","status":"confirmed","currency":"EUR","total":"12.00","quantity":2,"lines":[{"sku":"tea","name":null,"category":null,"quantity":1,"unit_price":"4.00","line_total":"4.00"},{"sku":"mug","name":"Mug","category":null,"quantity":1,"unit_price":"8.00","line_total":"8.00"}],"attributes":{},"placed_at":"2026-11-27T14:44:40.394067Z","updated_at":"2026-11-27T14:44:53.892148Z","version":4,"position":131}
\.


--
-- Data for Name: order_summaries_g1; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.order_summaries_g1 (order_id, customer_id, status, currency, total_milli, quantity, line_count, categories, search, store_id, placed_at, updated_at, version, "position") FROM stdin;
stock-1	olga	confirmed	EUR	15000	6	2	\nOFFICE\n	stock-1\nolga\nquill\nink\nink	3	1795790678705782	1795790678705845	4	6
stock-2	olga	draft	JPY	21000	3	1	\n	stock-2\nolga\nquill	\N	1795790678705840	1795790678705844	2	5
usd-draft	ada	draft	USD	5550	3	2	\nOFFICE\n	usd-draft\nada\npen\npen\nink	7	1795790680300766	1795790680300766	3	9
usd-confirmed	ada	confirmed	USD	11000	3	2	\nOFFICE\n	usd-confirmed\nada\npen\npen\nmug\nmug	7	1795790680321833	1795790680322767	4	13
eur-cancelled	bob	cancelled	EUR	3960	4	1	\nGROCERY\n	eur-cancelled\nbob\ntea	\N	1795790680323664	1795790680324594	3	16
jpy-confirmed	bob	confirmed	JPY	960000	3	2	\nGROCERY\n	jpy-confirmed\nbob\ntea\n緑茶\nfree	\N	1795790680325369	1795790680326033	4	20
kwd-draft	carol	draft	KWD	12345	1	1	\nMUSIC\n	kwd-draft\ncarol\noud\noud	\N	1795790680326566	1795790680326566	2	22
empty-draft	carol	draft	USD	0	0	0	\n	empty-draft\ncarol	\N	1795790680327698	1795790680327698	1	23
empty-cancelled	carol	cancelled	USD	0	0	0	\n	empty-cancelled\ncarol	\N	1795790680328309	1795790680328828	2	25
changed	dora	draft	USD	39350	17	2	\n	changed\ndora\nink\npen	\N	1795790680329303	1795790680331725	7	32
long-draft	eve	draft	USD	201500	62	5	\nTHINGS\n	long-draft\neve\nsku-0\nthing 24\nsku-1\nthing 25\nsku-2\nthing 2\nsku-3\nthing 21\nsku-5\nthing 5	9	1795790680332154	1795790680345823	27	59
long-confirmed	eve	confirmed	USD	230750	71	5	\nTHINGS\n	long-confirmed\neve\nsku-0\nthing 24\nsku-1\nthing 25\nsku-2\nthing 2\nsku-3\nthing 27\nsku-5\nthing 5	9	1795790680346432	1795790680362751	30	89
mixed	olga	confirmed	EUR	6980	4	2	\nOFFICE\n	mixed\nolga\npen\npen\nquill\nquill	\N	1795790680363865	1795790680382827	5	94
bulk-1	frank	confirmed	USD	5550	3	2	\nOFFICE\n	bulk-1\nfrank\npen\npen\nink	\N	1795790680383758	1795790680384085	4	99
bulk-2	frank	draft	EUR	0	0	0	\n	bulk-2\nfrank	\N	1795790680383789	1795790680383789	1	97
imported-1	grace	confirmed	USD	22330	3	2	\nFUEL\nGROCERY\n	imported-1\ngrace\n995242\nfluid milk\n6534178\ngasoline	42	1483271606000000	1483271606000000	4	105
imported-2	grace	confirmed	USD	1090	1	1	\nGROCERY\n	imported-2\ngrace\n995242\nfluid milk	42	1483434000000000	1483434000000000	3	106
live-1	ada	draft	USD	0	0	0	\n	live-1\nada	\N	1795790680393506	1795790680393506	1	107
live-2	bob	draft	EUR	0	0	0	\n	live-2\nbob	\N	1795790680394067	1795790680394067	1	108
live-3	ada	draft	USD	5550	3	2	\nOFFICE\n	live-3\nada\npen\npen\nink	\N	1795790680394579	1795790680394579	3	111
live-4	bob	draft	USD	3000	2	1	\nOFFICE\n	live-4\nbob\npen\npen	\N	1795790680395079	1795790680395079	2	113
\.


--
-- Data for Name: order_summaries_g2; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.order_summaries_g2 (order_id, customer_id, status, currency, total_milli, quantity, line_count, categories, search, store_id, placed_at, updated_at, version, "position") FROM stdin;
stock-1	olga	confirmed	EUR	15000	6	2	\nOFFICE\n	stock-1\nolga\nquill\nink\nink	3	1795790678705782	1795790678705845	4	6
stock-2	olga	draft	JPY	21000	3	1	\n	stock-2\nolga\nquill	\N	1795790678705840	1795790678705844	2	5
usd-draft	ada	draft	USD	5550	3	2	\nOFFICE\n	usd-draft\nada\npen\npen\nink	7	1795790680300766	1795790680300766	3	9
usd-confirmed	ada	confirmed	USD	11000	3	2	\nOFFICE\n	usd-confirmed\nada\npen\npen\nmug\nmug	7	1795790680321833	1795790680322767	4	13
eur-cancelled	bob	cancelled	EUR	3960	4	1	\nGROCERY\n	eur-cancelled\nbob\ntea	\N	1795790680323664	1795790680324594	3	16
jpy-confirmed	bob	confirmed	JPY	960000	3	2	\nGROCERY\n	jpy-confirmed\nbob\ntea\n緑茶\nfree	\N	1795790680325369	1795790680326033	4	20
kwd-draft	carol	draft	KWD	12345	1	1	\nMUSIC\n	kwd-draft\ncarol\noud\noud	\N	1795790680326566	1795790680326566	2	22
empty-draft	carol	draft	USD	0	0	0	\n	empty-draft\ncarol	\N	1795790680327698	1795790680327698	1	23
empty-cancelled	carol	cancelled	USD	0	0	0	\n	empty-cancelled\ncarol	\N	1795790680328309	1795790680328828	2	25
changed	dora	draft	USD	39350	17	2	\n	changed\ndora\nink\npen	\N	1795790680329303	1795790680331725	7	32
long-draft	eve	draft	USD	201500	62	5	\nTHINGS\n	long-draft\neve\nsku-0\nthing 24\nsku-1\nthing 25\nsku-2\nthing 2\nsku-3\nthing 21\nsku-5\nthing 5	9	1795790680332154	1795790680345823	27	59
long-confirmed	eve	confirmed	USD	230750	71	5	\nTHINGS\n	long-confirmed\neve\nsku-0\nthing 24\nsku-1\nthing 25\nsku-2\nthing 2\nsku-3\nthing 27\nsku-5\nthing 5	9	1795790680346432	1795790680362751	30	89
mixed	olga	confirmed	EUR	6980	4	2	\nOFFICE\n	mixed\nolga\npen\npen\nquill\nquill	\N	1795790680363865	1795790680382827	5	94
bulk-1	frank	confirmed	USD	5550	3	2	\nOFFICE\n	bulk-1\nfrank\npen\npen\nink	\N	1795790680383758	1795790680384085	4	99
bulk-2	frank	draft	EUR	0	0	0	\n	bulk-2\nfrank	\N	1795790680383789	1795790680383789	1	97
imported-1	grace	confirmed	USD	22330	3	2	\nFUEL\nGROCERY\n	imported-1\ngrace\n995242\nfluid milk\n6534178\ngasoline	42	1483271606000000	1483271606000000	4	105
imported-2	grace	confirmed	USD	1090	1	1	\nGROCERY\n	imported-2\ngrace\n995242\nfluid milk	42	1483434000000000	1483434000000000	3	106
live-4	bob	draft	USD	3000	2	1	\nOFFICE\n	live-4\nbob\npen\npen	\N	1795790680395079	1795790680395079	2	113
discarded	hugo	draft	USD	7000	3	2	\n	discarded\nhugo\npen\ncup	\N	1795790687092682	1795790687158809	4	117
parked	hugo	draft	USD	1000	1	1	\n	parked\nhugo\npen	\N	1795790690221531	1795790690221531	2	119
01a21d77-644c-76e9-a690-02fdca1e44ca	ada	draft	USD	1000	1	1	\n	01a21d77-644c-76e9-a690-02fdca1e44ca\nada\npen\npen	\N	1795790693452645	1795790693452645	2	123
live-1	ada	confirmed	USD	6000	6	1	\nOFFICE\n	live-1\nada\npen\npen	\N	1795790680393506	1795790693589356	4	128
live-3	ada	cancelled	USD	3000	2	1	\nOFFICE\n	live-3\nada\npen\npen	\N	1795790680394579	1795790693809097	5	129
live-2	bob	confirmed	EUR	12000	2	2	\n	live-2\nbob\ntea\nmug\nmug	\N	1795790680394067	1795790693892148	4	131
\.


--
-- Data for Name: products_g1; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.products_g1 (sku, currency, name, category, orders, quantity, revenue, "position") FROM stdin;
ink	EUR	Ink	OFFICE	1	3	750	6
free	JPY	\N	\N	1	1	0	20
mug	USD	Mug	\N	1	1	800	13
tea	JPY	緑茶	GROCERY	1	2	960	20
sku-2	USD	Thing 2	THINGS	1	3	975	89
sku-1	USD	Thing 25	THINGS	1	14	4550	89
sku-3	USD	Thing 27	THINGS	1	16	5200	89
sku-5	USD	Thing 5	THINGS	1	2	650	89
sku-0	USD	Thing 24	THINGS	1	36	11700	89
ink	USD	\N	\N	1	1	255	99
pen	USD	Pen	OFFICE	2	4	600	99
quill	EUR	Quill	OFFICE	2	5	1148	94
pen	EUR	Pen	OFFICE	1	2	300	94
995242	USD	FLUID MILK	GROCERY	2	3	327	106
6534178	USD	GASOLINE	FUEL	1	1	2015	105
\.


--
-- Data for Name: products_g2; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.products_g2 (sku, currency, name, category, orders, quantity, revenue, "position") FROM stdin;
pen	EUR	Pen	OFFICE	1	2	300	94
ink	EUR	Ink	OFFICE	1	3	750	6
tea	JPY	緑茶	GROCERY	1	2	960	20
sku-2	USD	Thing 2	THINGS	1	3	975	89
ink	USD	\N	\N	1	1	255	99
995242	USD	FLUID MILK	GROCERY	2	3	327	106
mug	USD	Mug	\N	1	1	800	13
free	JPY	\N	\N	1	1	0	20
sku-5	USD	Thing 5	THINGS	1	2	650	89
sku-1	USD	Thing 25	THINGS	1	14	4550	89
quill	EUR	Quill	OFFICE	2	5	1148	94
6534178	USD	GASOLINE	FUEL	1	1	2015	105
sku-3	USD	Thing 27	THINGS	1	16	5200	89
sku-0	USD	Thing 24	THINGS	1	36	11700	89
pen	USD	Pen	OFFICE	3	10	1200	128
mug	EUR	Mug	\N	1	1	800	131
tea	EUR	\N	\N	1	1	400	131
\.


--
-- Data for Name: revocations; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.revocations (kind, value, revoked_at, actor) FROM stdin;
subject	mallory	1795790693	tests
token_id	stolen-1	1795790693	tests
\.


--
-- Data for Name: sales_g1; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.sales_g1 (dimension, key, day, currency, orders, quantity, revenue) FROM stdin;
store	3	2026-11-27	EUR	1	6	1500
category		2026-11-27	EUR	1	3	750
store		2026-11-27	JPY	1	3	960
category		2026-11-27	JPY	1	1	0
category	GROCERY	2026-11-27	JPY	1	2	960
store	7	2026-11-27	USD	1	3	1100
day	2026-11-27	2026-11-27	JPY	1	3	960
store	9	2026-11-27	USD	1	71	23075
category	THINGS	2026-11-27	USD	1	71	23075
category		2026-11-27	USD	2	2	1055
day	2026-11-27	2026-11-27	USD	3	77	24730
store		2026-11-27	USD	1	3	555
category	OFFICE	2026-11-27	USD	2	4	600
day	2026-11-27	2026-11-27	EUR	2	10	2198
store		2026-11-27	EUR	1	4	698
category	OFFICE	2026-11-27	EUR	2	7	1448
category	FUEL	2017-01-01	USD	1	1	2015
day	2017-01-01	2017-01-01	USD	1	3	2233
category	GROCERY	2017-01-01	USD	1	2	218
day	2017-01-03	2017-01-03	USD	1	1	109
store	42	2017-01-01	USD	1	3	2233
store	42	2017-01-03	USD	1	1	109
category	GROCERY	2017-01-03	USD	1	1	109
\.


--
-- Data for Name: sales_g2; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.sales_g2 (dimension, key, day, currency, orders, quantity, revenue) FROM stdin;
category		2026-11-27	JPY	1	1	0
category	GROCERY	2026-11-27	JPY	1	2	960
store	3	2026-11-27	EUR	1	6	1500
store	7	2026-11-27	USD	1	3	1100
category	FUEL	2017-01-01	USD	1	1	2015
store	42	2017-01-03	USD	1	1	109
category	GROCERY	2017-01-03	USD	1	1	109
store		2026-11-27	JPY	1	3	960
day	2026-11-27	2026-11-27	JPY	1	3	960
store	9	2026-11-27	USD	1	71	23075
category	OFFICE	2026-11-27	EUR	2	7	1448
category	THINGS	2026-11-27	USD	1	71	23075
category	GROCERY	2017-01-01	USD	1	2	218
category		2026-11-27	USD	2	2	1055
day	2017-01-03	2017-01-03	USD	1	1	109
store	42	2017-01-01	USD	1	3	2233
day	2017-01-01	2017-01-01	USD	1	3	2233
day	2026-11-27	2026-11-27	USD	4	83	25330
category	OFFICE	2026-11-27	USD	3	10	1200
store		2026-11-27	USD	2	9	1155
day	2026-11-27	2026-11-27	EUR	3	12	3398
store		2026-11-27	EUR	2	6	1898
category		2026-11-27	EUR	2	5	1950
\.


--
-- Data for Name: snapshots; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.snapshots (aggregate_type, aggregate_id, last_sequence, current_snapshot, payload) FROM stdin;
order	long-draft	20	2	{"status":"draft","customer_id":"eve","currency":"USD","attributes":{"store_id":"9"},"lines":[{"sku":"sku-0","quantity":27,"unit_price":325,"name":"Thing 18","category":"THINGS"},{"sku":"sku-1","quantity":8,"unit_price":325,"name":"Thing 13","category":"THINGS"},{"sku":"sku-2","quantity":3,"unit_price":325,"name":"Thing 2","category":"THINGS"},{"sku":"sku-3","quantity":10,"unit_price":325,"name":"Thing 15","category":"THINGS"},{"sku":"sku-5","quantity":2,"unit_price":325,"name":"Thing 5","category":"THINGS"}],"total":16250}
order	long-confirmed	30	3	{"status":"confirmed","customer_id":"eve","currency":"USD","attributes":{"store_id":"9"},"lines":[{"sku":"sku-0","quantity":36,"unit_price":325,"name":"Thing 24","category":"THINGS"},{"sku":"sku-1","quantity":14,"unit_price":325,"name":"Thing 25","category":"THINGS"},{"sku":"sku-2","quantity":3,"unit_price":325,"name":"Thing 2","category":"THINGS"},{"sku":"sku-3","quantity":16,"unit_price":325,"name":"Thing 27","category":"THINGS"},{"sku":"sku-5","quantity":2,"unit_price":325,"name":"Thing 5","category":"THINGS"}],"total":23075}
\.


--
-- Data for Name: tickets; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.tickets (hash, principal, expires_at) FROM stdin;
\.


--
-- Name: _sqlx_migrations _sqlx_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);


--
-- Name: customers_g1 customers_g1_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.customers_g1
    ADD CONSTRAINT customers_g1_pkey PRIMARY KEY (customer_id, currency);


--
-- Name: customers_g2 customers_g2_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.customers_g2
    ADD CONSTRAINT customers_g2_pkey PRIMARY KEY (customer_id, currency);


--
-- Name: dead_letters dead_letters_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY ("position");


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (aggregate_type, aggregate_id, sequence);


--
-- Name: idempotency idempotency_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (scope, key);


--
-- Name: order_details_g1 order_details_g1_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.order_details_g1
    ADD CONSTRAINT order_details_g1_pkey PRIMARY KEY (order_id);


--
-- Name: order_details_g2 order_details_g2_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.order_details_g2
    ADD CONSTRAINT order_details_g2_pkey PRIMARY KEY (order_id);


--
-- Name: order_summaries_g1 order_summaries_g1_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.order_summaries_g1
    ADD CONSTRAINT order_summaries_g1_pkey PRIMARY KEY (order_id);


--
-- Name: order_summaries_g2 order_summaries_g2_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.order_summaries_g2
    ADD CONSTRAINT order_summaries_g2_pkey PRIMARY KEY (order_id);


--
-- Name: products_g1 products_g1_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.products_g1
    ADD CONSTRAINT products_g1_pkey PRIMARY KEY (sku, currency);


--
-- Name: products_g2 products_g2_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.products_g2
    ADD CONSTRAINT products_g2_pkey PRIMARY KEY (sku, currency);


--
-- Name: revocations revocations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.revocations
    ADD CONSTRAINT revocations_pkey PRIMARY KEY (kind, value);


--
-- Name: sales_g1 sales_g1_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sales_g1
    ADD CONSTRAINT sales_g1_pkey PRIMARY KEY (dimension, key, day, currency);


--
-- Name: sales_g2 sales_g2_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sales_g2
    ADD CONSTRAINT sales_g2_pkey PRIMARY KEY (dimension, key, day, currency);


--
-- Name: snapshots snapshots_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_pkey PRIMARY KEY (aggregate_type, aggregate_id, last_sequence);


--
-- Name: tickets tickets_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.tickets
    ADD CONSTRAINT tickets_pkey PRIMARY KEY (hash);


--
-- Name: checkpoints_position; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX checkpoints_position ON public.checkpoints USING btree ("position", projection, generation);


--
-- Name: events_position; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX events_position ON public.events USING btree ("position");


--
-- Name: idempotency_created_at; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX idempotency_created_at ON public.idempotency USING btree (created_at);


--
-- Name: log_head_position; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX log_head_position ON public.log_head USING btree ("position");


--
-- Name: order_summaries_g1_1; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX order_summaries_g1_1 ON public.order_summaries_g1 USING btree (placed_at, order_id);


--
-- Name: order_summaries_g1_2; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX order_summaries_g1_2 ON public.order_summaries_g1 USING btree (total_milli, order_id);


--
-- Name: order_summaries_g1_3; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX order_summaries_g1_3 ON public.order_summaries_g1 USING btree (customer_id, placed_at, order_id);


--
-- Name: order_summaries_g2_1; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX order_summaries_g2_1 ON public.order_summaries_g2 USING btree (placed_at, order_id);


--
-- Name: order_summaries_g2_2; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX order_summaries_g2_2 ON public.order_summaries_g2 USING btree (total_milli, order_id);


--
-- Name: order_summaries_g2_3; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX order_summaries_g2_3 ON public.order_summaries_g2 USING btree (customer_id, placed_at, order_id);


--
-- Name: products_g1_1; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX products_g1_1 ON public.products_g1 USING btree (revenue);


--
-- Name: products_g1_2; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX products_g1_2 ON public.products_g1 USING btree (quantity);


--
-- Name: products_g2_1; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX products_g2_1 ON public.products_g2 USING btree (revenue);


--
-- Name: products_g2_2; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX products_g2_2 ON public.products_g2 USING btree (quantity);


--
-- Name: snapshots_aggregate; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX snapshots_aggregate ON public.snapshots USING btree (aggregate_type, aggregate_id);


--
-- Name: events events_assign_position; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER events_assign_position BEFORE INSERT ON public.events FOR EACH ROW WHEN ((new."position" IS NULL)) EXECUTE FUNCTION public.docket_assign_position();


--
-- PostgreSQL database dump complete
--


