-- Which event a dead letter is about: in a log that was restored or replaced, its position may be that of another one.
alter table dead_letters add column event text;
