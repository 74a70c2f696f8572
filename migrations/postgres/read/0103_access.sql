-- Single-use tickets for clients that can send no header; kept as a hash until they are used or too old.
create table tickets (
    hash       text    primary key, -- SHA-256, hexadecimal
    principal  text    not null,    -- JSON: who asked for it
    expires_at bigint  not null     -- microseconds since 1970
);

-- Tokens that are believed no more, though they have not expired.
create table revocations (
    kind       text    not null, -- subject | token_id
    value      text    not null,
    revoked_at bigint  not null, -- seconds since 1970; of a subject, tokens issued at or before it
    actor      text    not null, -- who revoked it
    primary key (kind, value)
);
