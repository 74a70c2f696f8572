-- The time in a way that every SQLite knows: a foreign writer brings its own, and before 3.42 `unixepoch('subsec')` is null.
drop trigger events_assign_position;
create trigger events_assign_position after insert on events when new.position is null
begin
    update log_head set position = position + 1;
    update events
    set position    = (select position from log_head),
        recorded_at = cast(round((julianday('now') - 2440587.5) * 86400000) as integer) * 1000
    where rowid = new.rowid;
end;

-- When these came, nobody knows any more; they are older than this.
update events
set recorded_at = cast(round((julianday('now') - 2440587.5) * 86400000) as integer) * 1000
where recorded_at is null;
