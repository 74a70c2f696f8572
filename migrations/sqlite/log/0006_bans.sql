-- Subjects that are refused, however new their tokens are, until an operator reinstates them. No event tells of it, so
-- it belongs to what may not be lost.
create table bans (
    subject   text    primary key,
    reason    text    not null,
    actor     text    not null, -- who banned the subject
    banned_at integer not null  -- microseconds since 1970
) strict, without rowid;
