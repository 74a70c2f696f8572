-- While somebody holds a long snapshot (a backup, a verification), PostgreSQL keeps every version of the log's head that
-- was current since. A scan reads all of them, and so does the check of a unique key that never changes, so each append
-- takes longer than the one before. This index leads to the newest version at once, and its keys differ.
create unique index log_head_position on log_head (position);
alter table log_head drop constraint log_head_pkey;

create or replace function docket_assign_position() returns trigger language plpgsql set enable_seqscan = off as $$
begin
    -- First the lock, then the update: a statement sees what was committed before it began.
    perform from log_head order by position desc limit 1 for update;
    update log_head set position = position + 1
    where position = (select position from log_head order by position desc limit 1)
    returning position into new.position;
    new.recorded_at := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
    return new;
end $$;
