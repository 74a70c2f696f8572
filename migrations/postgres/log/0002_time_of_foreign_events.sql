-- SQLite needs it; PostgreSQL's own clock is that of its server, whoever writes.
select 1;
