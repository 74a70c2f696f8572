-- Creates the role that servers connect as; `docket migrate --grant-to docket_server` then grants it the privileges. Run this
-- with psql as the owner of the database and with -v password=…; it can be repeated.
select 'create role docket_server login' where not exists (select from pg_roles where rolname = 'docket_server') \gexec
alter role docket_server password :'password';
