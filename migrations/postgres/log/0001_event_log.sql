-- The event log. `events` and `snapshots` are the tables of stock cqrs-es / postgres-es 0.5, and a superset of them:
-- a database that stock code made is taken over as it stands, and stock code can go on writing to it.

create table if not exists events (
    aggregate_type text                         not null,
    aggregate_id   text                         not null,
    sequence       bigint check (sequence >= 0) not null,
    event_type     text                         not null,
    event_version  text                         not null,
    payload        json                         not null,
    metadata       json                         not null,
    primary key (aggregate_type, aggregate_id, sequence)
);

create table if not exists snapshots (
    aggregate_type   text                                 not null,
    aggregate_id     text                                 not null,
    last_sequence    bigint check (last_sequence >= 0)    not null,
    current_snapshot bigint check (current_snapshot >= 0) not null,
    payload          json                                 not null,
    primary key (aggregate_type, aggregate_id, last_sequence)
);
-- One snapshot an aggregate: stock code reads whichever row it finds.
create unique index if not exists snapshots_aggregate on snapshots (aggregate_type, aggregate_id);

alter table events add column if not exists position    bigint; -- place in the whole log: dense, in commit order
alter table events add column if not exists recorded_at bigint; -- microseconds since 1970, when the log took it

-- The counter that every writer locks before it inserts: positions are handed out in commit order because the lock
-- is held until commit. `incarnation` names this log: a restored or replaced store gets another one.
create table log_head (
    only_row    boolean primary key default true check (only_row),
    position    bigint not null,
    incarnation text   not null
);

-- Events that stock code wrote before: in the order in which they lie on disk, which is the order of insertion in a
-- table that is only appended to, and never against the order within an aggregate.
with physical as (
    select aggregate_type, aggregate_id, sequence, row_number() over (order by ctid) as place from events
), monotone as (
    select *, max(place) over (partition by aggregate_type, aggregate_id order by sequence) as at from physical
), numbered as (
    select aggregate_type, aggregate_id, sequence,
           row_number() over (order by at, aggregate_type, aggregate_id, sequence) as position
    from monotone
)
update events e
set position = n.position, recorded_at = (extract(epoch from clock_timestamp()) * 1000000)::bigint
from numbered n
where (e.aggregate_type, e.aggregate_id, e.sequence) = (n.aggregate_type, n.aggregate_id, n.sequence);

insert into log_head (position, incarnation)
select coalesce(max(position), 0), gen_random_uuid()::text from events;

create unique index events_position on events (position);

-- A row without a position comes from a foreign writer: it takes the next one under the same lock.
create function docket_assign_position() returns trigger language plpgsql as $$
begin
    update log_head set position = position + 1 returning position into new.position;
    new.recorded_at := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    return new;
end $$;

create trigger events_assign_position before insert on events
    for each row when (new.position is null) execute function docket_assign_position();

-- What was answered to a request with an Idempotency-Key, written in the transaction that wrote its events.
create table idempotency (
    scope        text   not null, -- the principal
    key          text   not null, -- as the client sent it
    request_hash text   not null, -- of method, path and body: another body under the same key is refused
    status       bigint not null,
    aggregate_id text   not null,
    version      bigint not null,
    position     bigint not null,
    created_at   bigint not null, -- microseconds since 1970
    primary key (scope, key)
);
create index idempotency_created_at on idempotency (created_at);
