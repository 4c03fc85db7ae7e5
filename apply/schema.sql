CREATE SCHEMA IF NOT EXISTS pgbridge;
COMMENT ON SCHEMA pgbridge IS 'pgbridge: positions, tombstones and conflict history of the multi-leader cluster';

-- Who this node is. One row.
CREATE TABLE IF NOT EXISTS pgbridge.node (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    cluster      text   NOT NULL,
    node         text   NOT NULL,
    epoch        int    NOT NULL DEFAULT 1,
    writer_epoch bigint NOT NULL DEFAULT 0,  -- raised by each starting bridge: the fence of its stream
    first_xid    bigint NOT NULL,            -- older local rows were never captured: they are ancient
    published    bigint NOT NULL DEFAULT 0,  -- highest own seq known to be durable in the stream
    timeline     int    NOT NULL DEFAULT 0   -- of the server when a bridge started last; 0: none has
);
-- Of a node whose data were set back (comeback.go): whether it is to be given what it lacks, and then from where on its WAL counts,
-- until its new stream has begun. Local rows below local_xid every node has seen, and its own transactions up to restored_seq were given
-- back. Up to again_lsn stand the rows in the WAL that were written again then; 0: there were none. published_stamp is that of published.
-- beginning is the frame with which the own stream begins anew while none of its transactions is known to be durable there.
-- ALTER TABLE would wait for all who look at the table, such as pgbridge.wait, even where there is nothing to add.
DO $do$ BEGIN
    IF (SELECT count(*) < 8 FROM pg_attribute WHERE attrelid = 'pgbridge.node'::regclass AND NOT attisdropped
        AND attname IN ('timeline', 'restoring', 'restored_lsn', 'local_xid', 'published_stamp', 'restored_seq', 'again_lsn', 'beginning')) THEN
        ALTER TABLE pgbridge.node ADD COLUMN IF NOT EXISTS timeline int NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS restoring boolean NOT NULL DEFAULT false, ADD COLUMN IF NOT EXISTS restored_lsn bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS local_xid bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS published_stamp bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS restored_seq bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS again_lsn bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS beginning bytea;
    END IF;
END $do$;

-- Rows that users of a node had written, or deleted, and that no stream has: they are written again, for the others, in the transaction
-- in which the node is given what it lacked. Outside of that it is empty.
CREATE TABLE IF NOT EXISTS pgbridge.rewrite (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schema text    NOT NULL,
    name   text    NOT NULL,
    key    json    NOT NULL,
    gone   boolean NOT NULL,                 -- it was deleted, and is to be deleted again
    image  json                              -- the row, if it is not in its table any more; else null
);

-- How far each origin has been applied: moved from seq - 1 to seq in the transaction that applies it.
CREATE TABLE IF NOT EXISTS pgbridge.position (
    id         int    PRIMARY KEY,           -- roident of the origin's replication origin
    origin     text   NOT NULL,
    epoch      int    NOT NULL,
    seq        bigint NOT NULL DEFAULT 0,
    stamp      bigint NOT NULL DEFAULT 0,    -- microseconds since 2000-01-01 UTC
    stream_seq bigint NOT NULL DEFAULT 1,    -- where to read on in the sender's stream
    UNIQUE (origin, epoch)
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 2000);

-- Keys that applied transactions deleted, packed per transaction, 16 bytes of hash each.
CREATE TABLE IF NOT EXISTS pgbridge.tombstone (
    origin text   NOT NULL,
    epoch  int    NOT NULL,
    seq    bigint NOT NULL,
    part   int    NOT NULL,
    stamp  bigint NOT NULL,
    keys   bytea  NOT NULL,
    PRIMARY KEY (origin, epoch, seq, part)
);
ALTER TABLE pgbridge.tombstone ALTER COLUMN keys SET STORAGE EXTERNAL;

-- What own frames said that have gone from the stream though nodes which are away lack them (capture/gist.go), but for what they
-- deleted, which is in pgbridge.tombstone. Until every node has seen it.
CREATE TABLE IF NOT EXISTS pgbridge.let_go (
    stream_seq bigint      PRIMARY KEY,      -- below this the frames are gone
    seq        bigint      NOT NULL,         -- the last own transaction in them
    stamp      bigint      NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    nodes      text[]      NOT NULL,         -- those that lack some of it
    seen       bigint[]    NOT NULL,         -- and up to which own transaction each had seen them
    gist       bytea       NOT NULL
);

-- The rows' own stamps where several remote transactions of one origin were applied as one, which bears the last one's.
CREATE TABLE IF NOT EXISTS pgbridge.bundle (
    id     int         NOT NULL,             -- of the origin, as in position
    at     timestamptz NOT NULL,             -- the stamp of the commit
    seq    bigint      NOT NULL,             -- of the last transaction
    keys   bigint[]    NOT NULL,             -- of the rows, half of their hash
    behind int[]       NOT NULL,             -- microseconds that a row's own stamp is below the commit's
    PRIMARY KEY (id, at)
);
ALTER TABLE pgbridge.bundle ALTER COLUMN keys SET STORAGE EXTERNAL, ALTER COLUMN behind SET STORAGE EXTERNAL;

-- Remote transactions that this server refuses, whole, and later ones that touch their rows. The position is behind them.
CREATE TABLE IF NOT EXISTS pgbridge.parked (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- in the order in which they were parked
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    origin       text   NOT NULL,
    epoch        int    NOT NULL,
    seq          bigint NOT NULL,
    stamp        bigint NOT NULL,
    before_stamp bigint NOT NULL,            -- of transaction seq - 1
    deps         bytea  NOT NULL,            -- vectors up and low, as in a frame
    body         bytea  NOT NULL,            -- records R, I, U, D and T, as in a frame
    changes      bigint NOT NULL,
    keys         bytea  NOT NULL,            -- of the rows that it touches, 16 bytes of hash each
    tables       text[] NOT NULL,            -- that it touches: schema, name, schema, name, ...
    wiped        text[] NOT NULL,            -- that it truncates
    depends_on   text[] NOT NULL,            -- parked before it, as origin:seq
    sqlstate     text,                       -- why the server refused it last; null: it was not tried
    message      text,
    constraint_name text,
    relation     text,                       -- of the change that was refused
    key          json,
    attempts     int    NOT NULL DEFAULT 0,  -- since it is parked
    tried_at     timestamptz,
    request      text   CHECK (request IN ('retry', 'discard')),   -- of an operator, until the bridge has seen to it
    UNIQUE (origin, epoch, seq)
);

-- What an operator has paused here (pgbridge pause): what one node writes, or transactions that touch a table.
CREATE TABLE IF NOT EXISTS pgbridge.paused (
    origin   text        NOT NULL,           -- the node; empty: a table is paused
    relation text        NOT NULL,           -- as schema.table; empty: a node is
    since    timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason   text        NOT NULL DEFAULT '',
    PRIMARY KEY (origin, relation),
    CHECK ((origin = '') <> (relation = ''))
);

-- Losing row versions, with both images: json, since jsonb cannot hold every value that json can.
CREATE TABLE IF NOT EXISTS pgbridge.conflict (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    relation      text   NOT NULL,
    kind          text   NOT NULL,           -- 'discarded': of a parked transaction that was given up
    outcome       text   NOT NULL,           -- 'remote wins' or 'local wins'
    remote_origin text   NOT NULL,
    remote_seq    bigint NOT NULL,
    remote_stamp  bigint NOT NULL,
    local_origin  text   NOT NULL,
    local_stamp   bigint NOT NULL,
    local_row     json,                      -- what stood here; null if it was deleted
    remote_row    json                       -- what the remote transaction wanted; null for a delete
);
CREATE INDEX IF NOT EXISTS conflict_at ON pgbridge.conflict (at);

-- Writes to tables with a merge policy that not every node is known to have seen: what a row looks like is worked out of
-- them, and of what stood there before.
CREATE TABLE IF NOT EXISTS pgbridge.journal (
    hi     bigint NOT NULL,                  -- the key's hash; the table's, with lo = 0, if all of it was truncated
    lo     bigint NOT NULL,
    origin int    NOT NULL,                  -- as in position; 0 is this node
    seq    bigint NOT NULL,
    part   int    NOT NULL,                  -- place within the transaction
    stamp  bigint NOT NULL,
    kind   "char" NOT NULL,                  -- as in pgoutput: I, U, D, T
    seen   bytea  NOT NULL,                  -- the vectors up and low of its author
    ops    bytea  NOT NULL,                  -- what it did to each unit of columns
    image  bytea,                            -- the row as its author left it, where CHECK constraints may ask for it
    PRIMARY KEY (hi, lo, origin, seq, part)
);
ALTER TABLE pgbridge.journal ALTER COLUMN seen SET STORAGE PLAIN;

CREATE TABLE IF NOT EXISTS pgbridge.journal_base (
    hi     bigint NOT NULL,
    lo     bigint NOT NULL,
    schema text   NOT NULL,
    name   text   NOT NULL,
    cells  bytea,                            -- the row before the first write in the journal; null: there was none
    PRIMARY KEY (hi, lo)
);

-- How far this node's own transactions stand in the journal, and under which policies. One row.
CREATE TABLE IF NOT EXISTS pgbridge.journal_state (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq    bigint NOT NULL DEFAULT 0,
    stamp  bigint NOT NULL DEFAULT 0,
    policy text   NOT NULL DEFAULT ''
);
INSERT INTO pgbridge.journal_state DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Whether the loser was brought back, and by whom (undo.go). Added later: installations before have a table without.
ALTER TABLE pgbridge.conflict ADD COLUMN IF NOT EXISTS undone_at timestamptz, ADD COLUMN IF NOT EXISTS undone_by text;
-- Rows that exist and are not in their tables, since a later one has the same value where it may be there only once. They
-- come back when that one goes.
CREATE TABLE IF NOT EXISTS pgbridge.quarantine (
    hi              bigint NOT NULL,         -- of the key's hash
    lo              bigint NOT NULL,
    schema          text   NOT NULL,
    name            text   NOT NULL,
    origin          text   NOT NULL,         -- who wrote the row, and when; empty: from before the cluster
    epoch           int    NOT NULL,
    stamp           bigint NOT NULL,
    xid             bigint NOT NULL,         -- the transaction that put it here
    constraint_name text   NOT NULL,         -- the unique index or constraint
    blocker_hi      bigint NOT NULL,         -- the key's hash of a row in the table that is in its way
    blocker_lo      bigint NOT NULL,
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    columns         text[] NOT NULL,
    image           text[] NOT NULL,         -- the columns' values
    PRIMARY KEY (hi, lo)
);

-- How far other nodes' clocks were from this one's when that was measured last.
CREATE TABLE IF NOT EXISTS pgbridge.clock (
    node      text   PRIMARY KEY,
    ahead_us  bigint NOT NULL,               -- microseconds; negative: behind
    within_us bigint NOT NULL,               -- and how exactly that is known
    at        timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Rows that remote transactions have deleted while others referred to them, by foreign keys whose orphans are mended by policy
-- (mender.go); until that is done.
CREATE TABLE IF NOT EXISTS pgbridge.bereaved (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    schema          text NOT NULL,           -- of the table that refers
    name            text NOT NULL,
    constraint_name text NOT NULL,
    fix             text NOT NULL,           -- restore, delete or null
    parent          json NOT NULL,           -- the row that was deleted
    refused         text,                    -- why it could not be mended when that was tried last
    since           timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Rows that a remote transaction should have written and could not, since it leaves a large value unchanged that is another
-- one here (owed.go); until its node has written them again.
CREATE TABLE IF NOT EXISTS pgbridge.owed (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin       text   NOT NULL,            -- the transaction
    epoch        int    NOT NULL,
    seq          bigint NOT NULL,
    stamp        bigint NOT NULL,
    before_seq   bigint NOT NULL,            -- what was applied of its origin in front of it
    before_stamp bigint NOT NULL,
    schema       text   NOT NULL,
    name         text   NOT NULL,
    key          json   NOT NULL,
    hash         bytea  NOT NULL,            -- the key's
    writer       text,                       -- the writer of the row that was left as it is; null: there was none
    since        timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who wrote the rows that have come back: they bear their stamp, but the replication origin of whom brought them.
CREATE TABLE IF NOT EXISTS pgbridge.returned (
    at timestamptz NOT NULL,                 -- the stamp
    lo bigint      NOT NULL,                 -- half of the key's hash
    id int         NOT NULL,                 -- as in position; 0 is this node
    PRIMARY KEY (at, lo)
);
ALTER TABLE pgbridge.conflict ADD COLUMN IF NOT EXISTS constraint_name text; -- of kind 'unique': what both rows hit
-- How many microseconds a row's own stamp is below the commit's, and, of rows that another node has given (resync.go), the last
-- transaction of their origin then.
ALTER TABLE pgbridge.returned ADD COLUMN IF NOT EXISTS behind bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS seq bigint;

-- How far this node has come with joining the cluster (copyin.go). One row; none if it did not join with rows of another node.
CREATE TABLE IF NOT EXISTS pgbridge.joining (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    donor    text   NOT NULL,                -- the node that gives the rows
    since    bytea  NOT NULL,                -- what all other nodes had seen when it began: older rows are copied
    state    text   NOT NULL DEFAULT 'copying' CHECK (state IN ('copying', 'copied', 'joined')),
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    existing bigint                          -- rows may have stood here before this transaction id; null: the tables were empty
);

-- The parts in which tables are copied, until the node has joined.
CREATE TABLE IF NOT EXISTS pgbridge.joining_part (
    schema  text   NOT NULL,
    name    text   NOT NULL,
    part    int    NOT NULL,
    columns text[] NOT NULL,
    upto    text[],                          -- the last key that may be in it; null: there is no bound
    at      text[],                          -- copied up to this key
    done    boolean NOT NULL DEFAULT false,
    about   bigint NOT NULL,                 -- rows that are expected
    page    int    NOT NULL,                 -- rows that are copied at once
    rows    bigint NOT NULL DEFAULT 0,       -- copied so far
    bytes   bigint NOT NULL DEFAULT 0,
    kept    bigint NOT NULL DEFAULT 0,       -- of these rows, those that stood here before
    PRIMARY KEY (schema, name, part)
);

ALTER TABLE pgbridge.joining ADD COLUMN IF NOT EXISTS existing bigint;
ALTER TABLE pgbridge.joining_part ADD COLUMN IF NOT EXISTS kept bigint NOT NULL DEFAULT 0;

-- The transactions that have copied, by which rows are known that somebody else has written.
CREATE TABLE IF NOT EXISTS pgbridge.joining_page (
    xid bigint NOT NULL
);

-- Nodes that have left, or were removed. Nobody waits for them any more, and their names are not used again.
CREATE TABLE IF NOT EXISTS pgbridge.gone_node (
    node  text   PRIMARY KEY,
    epoch int    NOT NULL,
    seq   bigint NOT NULL,                   -- its last transaction, which all other nodes have
    at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Waits until this node has what a token stands for (pgbridge token): false if it has not after so long. Whoever created the
-- function keeps it.
DO $do$ BEGIN
    CREATE OR REPLACE FUNCTION pgbridge.wait(token text, timeout interval DEFAULT '30 s') RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        until   timestamptz := clock_timestamp() + timeout;
        lacks   bigint;
        unknown text;
    BEGIN
        IF token !~ '^([a-z0-9_]+(/[0-9]+)?:[0-9]+(,[a-z0-9_]+(/[0-9]+)?:[0-9]+)*)?$' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('%L is not a token', token), HINT = 'pgbridge token prints one.';
        END IF;
        IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
            RAISE invalid_transaction_state USING MESSAGE = 'a transaction that is ' || current_setting('transaction_isolation') || ' sees nothing new',
                HINT = 'Call pgbridge.wait before it begins, or in a transaction of its own.';
        END IF;
        LOOP
            SELECT count(*), string_agg(w.origin, ', ') FILTER (WHERE p.seq IS NULL) INTO lacks, unknown
            FROM (SELECT split_part(e, '/', 1) AS origin, coalesce(nullif(split_part(e, '/', 2), ''), '1')::int AS epoch, n::bigint AS seq
                FROM (SELECT split_part(x, ':', 1) AS e, split_part(x, ':', 2) AS n FROM unnest(string_to_array(token, ',')) x) x) w
            LEFT JOIN pgbridge.position p ON p.origin = w.origin AND p.epoch = w.epoch
            WHERE NOT EXISTS (SELECT FROM pgbridge.node o WHERE o.node = w.origin)
                AND (p.seq IS NULL OR p.seq < w.seq
                    OR EXISTS (SELECT FROM pgbridge.parked k WHERE k.origin = w.origin AND k.epoch = w.epoch AND k.seq <= w.seq));
            IF unknown IS NOT NULL THEN
                RAISE invalid_parameter_value USING MESSAGE = format('the token names %s, of which this node knows nothing', unknown),
                    HINT = 'It is of another cluster, or the node is not in topology.nodes here.';
            END IF;
            IF lacks = 0 OR clock_timestamp() >= until THEN
                RETURN lacks = 0;
            END IF;
            PERFORM pg_sleep(0.005);
        END LOOP;
    END $body$;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $do$;
