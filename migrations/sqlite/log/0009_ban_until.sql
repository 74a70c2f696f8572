-- The end of a ban, in microseconds since 1970; null: until an operator reinstates the subject.
alter table bans add column until integer;
