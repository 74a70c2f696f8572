-- The log holds aggregates of several types. A record of an idempotency key names the type beside the id; what was
-- recorded before is about orders. `answer` is the stored answer; null: it follows from the other columns.
alter table idempotency add column aggregate_type text not null default 'order';
alter table idempotency add column answer text;

-- The version of the state's shape in a snapshot; 0: unknown, the snapshot is ignored. It is valid for the snapshot at
-- `state_sequence` only: an older release, or stock code, moves `last_sequence` and leaves these columns as they are.
-- Snapshots that exist were written in shape 1.
alter table snapshots add column state_version  integer not null default 0;
alter table snapshots add column state_sequence integer not null default 0;
update snapshots set state_version = 1, state_sequence = last_sequence;
