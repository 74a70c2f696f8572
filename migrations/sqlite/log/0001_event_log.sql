-- The event log. `events` and `snapshots` are the tables of stock cqrs-es / sqlite-es 0.5, and a superset of them:
-- a database that stock code made is taken over as it stands, and stock code can go on writing to it.

create table if not exists events (
    aggregate_type text                          not null,
    aggregate_id   text                          not null,
    sequence       integer check (sequence >= 0) not null,
    event_type     text                          not null,
    event_version  text                          not null,
    payload        text                          not null,
    metadata       text                          not null,
    primary key (aggregate_type, aggregate_id, sequence)
) strict;

create table if not exists snapshots (
    aggregate_type   text                                  not null,
    aggregate_id     text                                  not null,
    last_sequence    integer check (last_sequence >= 0)    not null,
    current_snapshot integer check (current_snapshot >= 0) not null,
    payload          text                                  not null,
    primary key (aggregate_type, aggregate_id, last_sequence)
) strict;
-- One snapshot an aggregate: stock code reads whichever row it finds.
create unique index if not exists snapshots_aggregate on snapshots (aggregate_type, aggregate_id);

alter table events add column position    integer; -- place in the whole log: dense, in commit order
alter table events add column recorded_at integer; -- microseconds since 1970, when the log took it

-- SQLite has one writer at a time, so the counter needs no lock of its own. `incarnation` names this log: a restored
-- or replaced store gets another one.
create table log_head (
    only_row    integer primary key check (only_row = 1),
    position    integer not null,
    incarnation text    not null
) strict;

-- Events that stock code wrote before: rowid is the order of insertion.
update events
set position = n.position, recorded_at = cast(unixepoch('subsec') * 1000000 as integer)
from (select rowid as id, row_number() over (order by rowid) as position from events) n
where events.rowid = n.id;

insert into log_head (only_row, position, incarnation)
select 1, coalesce(max(position), 0), lower(hex(randomblob(16))) from events;

create unique index events_position on events (position);

-- A row without a position comes from a foreign writer: it takes the next one in its own transaction.
create trigger events_assign_position after insert on events when new.position is null
begin
    update log_head set position = position + 1;
    update events
    set position    = (select position from log_head),
        recorded_at = cast(unixepoch('subsec') * 1000000 as integer)
    where rowid = new.rowid;
end;

-- What was answered to a request with an Idempotency-Key, written in the transaction that wrote its events.
create table idempotency (
    scope        text    not null, -- the principal
    key          text    not null, -- as the client sent it
    request_hash text    not null, -- of method, path and body: another body under the same key is refused
    status       integer not null,
    aggregate_id text    not null,
    version      integer not null,
    position     integer not null,
    created_at   integer not null, -- microseconds since 1970
    primary key (scope, key)
) strict, without rowid;
create index idempotency_created_at on idempotency (created_at);
