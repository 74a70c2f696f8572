-- PostgreSQL alone needs another key here: SQLite keeps one version of a row.
select 1;
