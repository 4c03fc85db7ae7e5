-- Schema changes that were made through pgbridge.ddl, here or on another node, in the order in which they were made here.
CREATE TABLE IF NOT EXISTS pgbridge.ddl (
    id      bigint      PRIMARY KEY,         -- in the order of the commits: who makes one holds a lock on the table
    origin  text        NOT NULL,            -- the node where it was made first
    epoch   int         NOT NULL,
    seq     bigint,                          -- of its transaction; null: made here, and not captured yet
    xid     xid8        NOT NULL,            -- of the transaction here
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    role    text        NOT NULL,
    search_path text    NOT NULL,
    sql     text        NOT NULL,
    changes jsonb       NOT NULL,            -- what it did to published tables
    summary text[]      NOT NULL             -- the same for people
);

-- Schema changes of other nodes that an operator has made here by hand: they are not made again.
CREATE TABLE IF NOT EXISTS pgbridge.ddl_done (
    origin text   NOT NULL,
    epoch  int    NOT NULL,
    seq    bigint NOT NULL,
    PRIMARY KEY (origin, epoch, seq)
);

-- Tables that schema changes have left where they were: as long as their row in pg_class is the one that such a change wrote, no other
-- than the one before all these may have rewritten the table.
CREATE TABLE IF NOT EXISTS pgbridge.unrewritten (
    tab   oid PRIMARY KEY,
    file  oid NOT NULL, -- relfilenode
    until xid NOT NULL, -- xmin of the table's row in pg_class
    since xid NOT NULL  -- that of the row before the first of these changes
);

-- The secret tells capture who wrote a schema change into the WAL. The bridge writes down at each start which tables it replicates,
-- and which of them it merges: regular expressions over the lines schema and name.
-- Only where they lack: ALTER TABLE waits for all who look at the table, such as pgbridge.wait.
DO $do$ BEGIN
    IF (SELECT count(*) < 4 FROM pg_attribute WHERE attrelid = 'pgbridge.node'::regclass AND NOT attisdropped
        AND attname IN ('secret', 'chosen', 'excluded', 'merged')) THEN
        ALTER TABLE pgbridge.node ADD COLUMN IF NOT EXISTS secret text NOT NULL DEFAULT gen_random_uuid()::text || gen_random_uuid()::text,
            ADD COLUMN IF NOT EXISTS chosen text NOT NULL DEFAULT '.*', ADD COLUMN IF NOT EXISTS excluded text NOT NULL DEFAULT '(?!)',
            ADD COLUMN IF NOT EXISTS merged text NOT NULL DEFAULT '(?!)';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pgbridge.ddl'::regclass AND attname = 'search_path') THEN
        ALTER TABLE pgbridge.ddl ADD COLUMN search_path text NOT NULL DEFAULT '';
        DROP FUNCTION IF EXISTS pgbridge.ddl_note(jsonb, text[], oid[], text, int, bigint, text, text);
    END IF;
END $do$;

-- Whoever created the functions keeps them. Nobody else may call them until that is granted.
DO $do$ BEGIN
    -- The tables and what matters of them to replication, by object id.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_shape() RETURNS jsonb LANGUAGE sql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET "DateStyle" = 'ISO, MDY' SET "IntervalStyle" = 'postgres' SET "TimeZone" = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex'
    AS $body$
    SELECT coalesce(jsonb_object_agg(c.oid, jsonb_build_object(
        'schema', n.nspname, 'name', c.relname, 'partition', c.relispartition, 'kind', c.relkind, 'file', pg_relation_filenode(c.oid), 'xmin', c.xmin,
        'persistence', c.relpersistence, 'identity', c.relreplident,
        'identified', CASE c.relreplident WHEN 'f' THEN true
            WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate)
            WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident) ELSE false END,
        'published', EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid JOIN pgbridge.node o
            ON p.pubname = 'pgb_' || o.cluster || '_' || o.node WHERE r.prrelid = c.oid),
        'written', pg_stat_get_xact_tuples_inserted(c.oid) + pg_stat_get_xact_tuples_updated(c.oid) + pg_stat_get_xact_tuples_deleted(c.oid),
        -- As apply chooses it (relation.go). Integers of any width make the same key.
        'key', (SELECT (SELECT string_agg(format('%s %s %s', a.attname, CASE WHEN a.atttypid IN (20, 21, 23) THEN 20 ELSE a.atttypid END, a.attcollation),
                    ', ' ORDER BY a.attname) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts-1]))
            FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
                AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts-1]) AND NOT a.attnotnull)
            ORDER BY i.indisreplident AND c.relreplident = 'i' DESC, i.indisprimary DESC, i.indexrelid LIMIT 1),
        'columns', (SELECT coalesce(jsonb_object_agg(a.attnum, jsonb_build_object('name', a.attname, 'type', a.atttypid, 'typmod', a.atttypmod,
                'collation', a.attcollation, 'notnull', a.attnotnull, 'generated', a.attgenerated, 'identity', a.attidentity,
                'key', EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident) AND a.attnum = ANY (i.indkey[0:i.indnkeyatts-1])))), '{}')
            FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'constraints', (SELECT coalesce(jsonb_object_agg(x.oid, jsonb_build_object('name', x.conname, 'type', x.contype)), '{}')
            FROM pg_constraint x WHERE x.conrelid = c.oid AND x.contype IN ('c', 'f', 'u', 'p', 'x')),
        'uniques', (SELECT coalesce(jsonb_object_agg(i.indexrelid, x.relname), '{}') FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = c.oid AND i.indisunique AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = c.oid))
        )), '{}')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgbridge') AND n.nspname NOT LIKE 'pg\_toast%'
    $body$;

    -- How many rows of the catalog the transaction has changed.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_effort() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    SELECT CASE current_setting('track_counts') WHEN 'on' THEN
        sum(pg_stat_get_xact_tuples_inserted(oid) + pg_stat_get_xact_tuples_updated(oid) + pg_stat_get_xact_tuples_deleted(oid))::bigint END
    FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
    $body$;

    -- What existing rows of a table have in a new column, and whether that is the same on all nodes.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_fill(tab oid, col name, rewritten boolean, OUT value text, OUT refused text) LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET "DateStyle" = 'ISO, MDY' SET "IntervalStyle" = 'postgres' SET "TimeZone" = 'UTC' SET extra_float_digits = 3 SET bytea_output = 'hex'
    AS $body$
    DECLARE
        tree text;
        expr text;
        kept boolean;
        leaf oid;
    BEGIN
        SELECT d.adbin::text, pg_get_expr(d.adbin, d.adrelid) INTO tree, expr FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = tab AND a.attname = col;
        SELECT relid INTO leaf FROM pg_partition_tree(tab) WHERE isleaf LIMIT 1; -- a partitioned table has no rows of its own
        SELECT a.atthasmissing, (a.attmissingval::text::text[])[1] INTO kept, value FROM pg_attribute a WHERE a.attrelid = coalesce(leaf, tab) AND a.attname = col;
        IF tree IS NULL THEN
            RETURN;
        END IF;
        IF tree ~ '\{(SQLVALUEFUNCTION|NEXTVALUEEXPR|COERCEVIAIO)' OR EXISTS (SELECT FROM regexp_matches(tree, ':(?:func|opfunc|elemfunc)id (\d+)', 'g') m
                JOIN pg_proc p ON p.oid = m[1]::oid WHERE p.provolatile <> 'i')
            OR EXISTS (SELECT FROM regexp_matches(tree, ':opno (\d+)', 'g') m JOIN pg_operator o ON o.oid = m[1]::oid JOIN pg_proc p ON p.oid = o.oprcode WHERE p.provolatile <> 'i')
        THEN
            IF kept OR rewritten THEN
                refused := format('its default %s would give existing rows another value on each node; add the column without a default, then run ALTER COLUMN %I SET DEFAULT, and UPDATE the rows', expr, col);
            END IF;
        ELSIF rewritten THEN
            refused := 'the table is rewritten by the same call, so that the value of existing rows is not known; add the column in a call of its own';
        ELSIF leaf IS NULL AND EXISTS (SELECT FROM pg_class WHERE oid = tab AND relkind = 'p') THEN
            EXECUTE format('SELECT (%s)::text', expr) INTO value;
        END IF;
    END $body$;

    -- What became of the tables since before: changes for the bridge, and for people what, which is breaking, and what is refused.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_compare(before jsonb, after jsonb, OUT changes jsonb, OUT summary text[], OUT breaking text[], OUT refused text[], OUT fresh oid[])
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        t      record;
        x      record;
        tab    text;
        known  text;
        renamed jsonb;
        added  jsonb;
        filled record;
        node   record;
        rewrites    text;
        before_this int;
    BEGIN
        SELECT o.* INTO node FROM pgbridge.node o;
        changes := '[]'; summary := '{}'; breaking := '{}'; refused := '{}'; fresh := '{}';
        FOR t IN SELECT coalesce(b.key, a.key)::oid AS oid, b.value AS was, a.value AS now FROM jsonb_each(before) b FULL JOIN jsonb_each(after) a ON a.key = b.key
            WHERE a.value IS DISTINCT FROM b.value ORDER BY 1
        LOOP
            tab := format('%I.%I', coalesce(t.was, t.now) ->> 'schema', coalesce(t.was, t.now) ->> 'name');
            IF (t.now ->> 'written')::bigint > coalesce((t.was ->> 'written')::bigint, 0) THEN
                refused := refused || format('it writes rows of %s, which would be written on each node again; write them beside pgbridge.ddl, where they are replicated', tab);
            END IF;
            -- What another session does at the same time is not ours.
            CONTINUE WHEN NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation = t.oid
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock'));
            IF t.was IS NULL THEN
                IF (t.now ->> 'partition')::boolean THEN
                    summary := summary || format('new partition %s', tab);
                ELSE
                    summary := summary || format('new table %s', tab);
                    fresh := fresh || t.oid;
                END IF;
                CONTINUE;
            END IF;
            IF t.now IS NULL THEN
                summary := summary || format('drops table %s', tab);
                IF (t.was ->> 'published')::boolean OR (t.was ->> 'partition')::boolean THEN
                    breaking := breaking || format('drops table %s', tab);
                END IF;
                IF (t.was ->> 'published')::boolean THEN
                    changes := changes || jsonb_build_object('schema', t.was ->> 'schema', 'name', t.was ->> 'name', 'dropped', true);
                END IF;
                CONTINUE;
            END IF;
            IF t.was ->> 'partition' <> t.now ->> 'partition' THEN
                refused := refused || format('it attaches or detaches %s as a partition, whose rows are replicated under another name then; create an empty partition, and INSERT the rows', tab);
                CONTINUE;
            END IF;
            rewrites := NULL; before_this := cardinality(refused);
            IF t.was ->> 'file' IS DISTINCT FROM t.now ->> 'file' THEN
                rewrites := format('it rewrites or empties %s: its rows would not tell any more who wrote them, on any node. Run ALTER TABLE without pgbridge.ddl on each node '
                    '(integers may be wider on some), or add another column; a TRUNCATE is replicated by itself', tab);
            END IF;
            IF (t.was ->> 'partition')::boolean AND rewrites IS NOT NULL THEN
                refused := refused || rewrites;
            END IF;
            CONTINUE WHEN NOT (t.was ->> 'published')::boolean OR (t.was ->> 'partition')::boolean;
            IF t.was ->> 'schema' <> t.now ->> 'schema' OR t.was ->> 'name' <> t.now ->> 'name' THEN
                refused := refused || format('it renames or moves table %s, whose rows other nodes know by that name; create a view of the new name, or a new table', tab);
                CONTINUE;
            END IF;
            IF t.was ->> 'key' IS DISTINCT FROM t.now ->> 'key' OR NOT (t.now ->> 'identified')::boolean THEN
                refused := refused || format('it changes the key of %s, or takes its replica identity away; create a new table with the new key, and INSERT the rows', tab);
                CONTINUE;
            END IF;
            IF t.was ->> 'persistence' <> t.now ->> 'persistence' THEN
                refused := refused || format('it changes whether %s is logged; create a new table', tab);
            END IF;
            renamed := '{}'; added := '{}';
            FOR x IN SELECT coalesce(b.key, a.key)::int AS num, b.value AS was, a.value AS now FROM jsonb_each(t.was -> 'columns') b
                FULL JOIN jsonb_each(t.now -> 'columns') a ON a.key = b.key WHERE a.value IS DISTINCT FROM b.value ORDER BY a.value IS NOT NULL, 1
            LOOP
                known := format('column %I of %s', coalesce(x.was, x.now) ->> 'name', tab);
                IF x.now IS NULL THEN
                    renamed := renamed || jsonb_build_object(x.was ->> 'name', NULL);
                    summary := summary || ('drops ' || known);
                    breaking := breaking || ('drops ' || known);
                ELSIF x.was IS NULL THEN
                    summary := summary || ('adds ' || known);
                    CONTINUE WHEN x.now ->> 'generated' <> '';
                    IF x.now ->> 'identity' <> '' THEN
                        refused := refused || format('it adds the identity %s, which would number existing rows differently on each node; add a plain column, and UPDATE the rows', known);
                        CONTINUE;
                    END IF;
                    filled := pgbridge.ddl_fill(t.oid, (x.now ->> 'name')::name, t.was ->> 'file' IS DISTINCT FROM t.now ->> 'file' OR EXISTS (SELECT FROM pg_partition_tree(t.oid) l
                        WHERE before -> l.relid::oid::text ->> 'file' IS DISTINCT FROM after -> l.relid::oid::text ->> 'file'));
                    IF filled.refused IS NOT NULL THEN
                        refused := refused || format('it adds %s, but %s', known, filled.refused);
                    END IF;
                    added := added || jsonb_build_object(x.now ->> 'name', filled.value);
                    IF (x.now ->> 'notnull')::boolean AND filled.value IS NULL THEN
                        breaking := breaking || format('adds %s, which may not be NULL and has no default for rows that are on their way', known);
                    END IF;
                ELSE
                    IF x.was ->> 'name' <> x.now ->> 'name' THEN
                        renamed := renamed || jsonb_build_object(x.was ->> 'name', x.now ->> 'name');
                        summary := summary || format('renames %s to %I', known, x.now ->> 'name');
                        breaking := breaking || format('renames %s to %I', known, x.now ->> 'name');
                    END IF;
                    IF x.was ->> 'type' <> x.now ->> 'type' OR x.was ->> 'collation' <> x.now ->> 'collation' THEN
                        IF x.was ->> 'type' IN ('21', '23') AND x.now ->> 'type' IN ('20', '23') AND (x.was ->> 'type' = '21' OR x.now ->> 'type' = '20') THEN
                            summary := summary || format('widens %s', known);
                        ELSE
                            refused := refused || format('it changes the type of %s, of which values of the old type are on their way; add a column of the new type, fill it, and drop the old one', known);
                        END IF;
                    ELSIF x.was ->> 'typmod' <> x.now ->> 'typmod' THEN
                        summary := summary || format('changes the length or precision of %s', known);
                        IF NOT (x.now ->> 'typmod' = '-1' OR x.was ->> 'type' IN ('1042', '1043') AND (x.now ->> 'typmod')::int > (x.was ->> 'typmod')::int AND x.was ->> 'typmod' <> '-1'
                            OR x.was ->> 'type' = '1700' AND x.was ->> 'typmod' <> '-1' AND ((x.now ->> 'typmod')::int - 4) & 2047 = ((x.was ->> 'typmod')::int - 4) & 2047
                                AND ((x.now ->> 'typmod')::int - 4) >> 16 >= ((x.was ->> 'typmod')::int - 4) >> 16) THEN
                            breaking := breaking || format('narrows %s', known);
                        END IF;
                    END IF;
                    IF (x.now ->> 'notnull')::boolean AND NOT (x.was ->> 'notnull')::boolean THEN
                        summary := summary || format('sets %s NOT NULL', known);
                        breaking := breaking || format('sets %s NOT NULL', known);
                    END IF;
                    IF x.was ->> 'generated' <> x.now ->> 'generated' OR x.was ->> 'identity' = '' AND x.now ->> 'identity' <> '' THEN
                        refused := refused || format('it changes how %s is generated; add a column, and drop this one', known);
                    END IF;
                END IF;
            END LOOP;
            IF rewrites IS NOT NULL AND cardinality(refused) = before_this THEN -- nothing better is known to say
                refused := refused || rewrites;
            END IF;
            FOR x IN SELECT a.value FROM jsonb_each(t.now -> 'constraints') a WHERE NOT t.was -> 'constraints' ? a.key LOOP
                summary := summary || format('adds constraint %I of %s', x.value ->> 'name', tab);
                breaking := breaking || format('adds constraint %I of %s', x.value ->> 'name', tab);
            END LOOP;
            FOR x IN SELECT a.value #>> '{}' AS name FROM jsonb_each(t.now -> 'uniques') a WHERE NOT t.was -> 'uniques' ? a.key LOOP
                summary := summary || format('adds unique index %I of %s', x.name, tab);
                breaking := breaking || format('adds unique index %I of %s', x.name, tab);
            END LOOP;
            IF renamed <> '{}' OR added <> '{}' THEN
                IF (t.was ->> 'schema') || E'\n' || (t.was ->> 'name') ~ ('^(?:' || node.merged || ')$') THEN
                    refused := refused || format('%s is merged (conflict.tables), and writes under the old columns cannot be merged with those under the new ones; let it be written on one node, take it out of conflict.tables on all nodes for the change', tab);
                END IF;
                changes := changes || jsonb_build_object('schema', t.was ->> 'schema', 'name', t.was ->> 'name', 'renamed', renamed, 'added', added);
            END IF;
        END LOOP;
    END $body$;

    -- Writes down which tables were left where they were by what this transaction has done to them, though that has changed their rows in
    -- pg_class: was is pgbridge.ddl_shape() before it, or as much of that as file and xmin. capture/refuse.go calls it, too.
    CREATE OR REPLACE FUNCTION pgbridge.left_in_place(was jsonb) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    INSERT INTO pgbridge.unrewritten (tab, file, until, since)
    SELECT c.oid, c.relfilenode, c.xmin, coalesce(u.since, (k.value ->> 'xmin')::xid)
    FROM jsonb_each(was) k JOIN pg_class c ON c.oid = k.key::oid AND c.relfilenode = (k.value ->> 'file')::oid AND c.xmin <> (k.value ->> 'xmin')::xid
        LEFT JOIN pgbridge.unrewritten u ON u.tab = c.oid AND u.file = c.relfilenode AND u.until = (k.value ->> 'xmin')::xid
    ON CONFLICT ON CONSTRAINT unrewritten_pkey DO UPDATE SET file = EXCLUDED.file, until = EXCLUDED.until, since = EXCLUDED.since
    $body$;

    -- Publishes new tables that the configuration chooses, and writes down what was changed. The number of the change, and of the one before.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_note(was jsonb, changes jsonb, summary text[], fresh oid[], made_by text, made_in int, made_as bigint, made_role text, made_path text, made_sql text, OUT id bigint, OUT before bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        t    record;
        x    record;
        node record;
    BEGIN
        SELECT o.* INTO node FROM pgbridge.node o;
        FOR t IN SELECT k.key::oid::regclass AS tab, k.value FROM jsonb_each(pgbridge.ddl_shape()) k WHERE k.key::oid = ANY (ddl_note.fresh) LOOP
            CONTINUE WHEN NOT (t.value ->> 'schema') || E'\n' || (t.value ->> 'name') ~ ('^(?:' || node.chosen || ')$')
                OR (t.value ->> 'schema') || E'\n' || (t.value ->> 'name') ~ ('^(?:' || node.excluded || ')$')
                OR t.value ->> 'key' IS NULL OR NOT (t.value ->> 'identified')::boolean OR t.value ->> 'persistence' <> 'p' OR (t.value ->> 'published')::boolean
                OR NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = 'pgb_' || node.cluster || '_' || node.node);
            EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s', 'pgb_' || node.cluster || '_' || node.node, t.tab);
        END LOOP;
        FOR t IN SELECT e AS value FROM jsonb_array_elements(ddl_note.changes) e LOOP
            IF (t.value ->> 'dropped')::boolean THEN
                DELETE FROM pgbridge.quarantine q WHERE q.schema = t.value ->> 'schema' AND q.name = t.value ->> 'name';
                CONTINUE;
            END IF;
            UPDATE pgbridge.quarantine q SET (columns, image) = (SELECT array_agg(k.name ORDER BY k.n), array_agg(k.val ORDER BY k.n)
                FROM (SELECT CASE WHEN t.value -> 'renamed' ? u.name THEN t.value -> 'renamed' ->> u.name ELSE u.name END AS name, u.val, u.n
                      FROM unnest(q.columns, q.image) WITH ORDINALITY u(name, val, n)
                      UNION ALL SELECT a.key, a.value, 10000 FROM jsonb_each_text(t.value -> 'added') a) k WHERE k.name IS NOT NULL)
            WHERE q.schema = t.value ->> 'schema' AND q.name = t.value ->> 'name';
        END LOOP;
        PERFORM pgbridge.left_in_place(was);
        LOCK TABLE pgbridge.ddl IN SHARE ROW EXCLUSIVE MODE;
        SELECT coalesce(max(d.id), 0) INTO before FROM pgbridge.ddl d;
        id := before + 1;
        INSERT INTO pgbridge.ddl (id, origin, epoch, seq, xid, role, search_path, sql, changes, summary)
        VALUES (ddl_note.id, coalesce(made_by, node.node), coalesce(made_in, node.epoch), made_as, pg_current_xact_id(), made_role, made_path, made_sql, ddl_note.changes, ddl_note.summary);
    END $body$;

    -- The last change that another transaction has made here.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_seen() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    SELECT coalesce(max(d.id), 0) FROM pgbridge.ddl d WHERE d.xid IS DISTINCT FROM pg_current_xact_id_if_assigned()
    $body$;

    -- The last part of pgbridge.ddl.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_emit(before jsonb, after jsonb, effort bigint, path text, sql text, confirmed boolean) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        c       record;
        made    record;
        payload bytea;
        by_itself boolean := coalesce(current_setting('pgbridge.ddl_before', true), '') <> ''; -- an event trigger has called it
        -- Who is meant by the session, since this function runs as its owner.
        caller  text := CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END;
    BEGIN
        IF pgbridge.ddl_effort() = effort THEN
            RAISE invalid_parameter_value USING MESSAGE = 'this SQL does not change the schema', HINT = 'Run it without pgbridge.ddl: rows are replicated by themselves.';
        END IF;
        c := pgbridge.ddl_compare(before, after);
        IF c.refused <> '{}' THEN
            RAISE feature_not_supported USING MESSAGE = 'this schema change cannot be made on all nodes: ' || array_to_string(c.refused, '; '),
                HINT = CASE WHEN by_itself THEN 'SET pgbridge.ddl = ''local'' keeps it on this node.' ELSE '' END;
        END IF;
        IF c.breaking <> '{}' AND NOT confirmed THEN
            RAISE object_not_in_prerequisite_state USING MESSAGE = 'this schema change is a breaking one: it ' || array_to_string(c.breaking, ', '),
                HINT = CASE WHEN by_itself THEN 'SET pgbridge.ddl = ''breaking'' confirms it, when nothing writes what it takes away; or make it by pgbridge ddl --breaking, which waits for all nodes.'
                ELSE 'Confirm it when nothing writes what it takes away: pgbridge ddl --breaking, which waits for all nodes, or SELECT pgbridge.ddl(..., breaking => true).' END;
        END IF;
        made := pgbridge.ddl_note(before, c.changes, c.summary, c.fresh, NULL, NULL, NULL, caller, path, sql);
        SELECT convert_to(json_build_object('xid', d.xmin::text::bigint, 'role', caller, 'search_path', path, 'sql', ddl_emit.sql)::text, 'UTF8') INTO payload
        FROM pgbridge.ddl d WHERE d.id = made.id;
        PERFORM pg_logical_emit_message(true, 'pgbridge.ddl', sha256(convert_to(o.secret, 'UTF8') || payload) || payload) FROM pgbridge.node o;
        RETURN made.id;
    END $body$;

    -- Changes the schema here and, in the transaction's place in the stream, on all other nodes. The number of the change here.
    CREATE OR REPLACE FUNCTION pgbridge.ddl(sql text, breaking boolean DEFAULT false) RETURNS bigint LANGUAGE plpgsql AS $body$
    DECLARE
        id     bigint;
        seen   bigint;
        before jsonb;
        after  jsonb;
        effort bigint;
        path   text := pg_catalog.current_setting('search_path');
        mode   text := coalesce(pg_catalog.current_setting('pgbridge.ddl', true), '');
    BEGIN
        IF pg_catalog.btrim(coalesce(sql, ''), E' \t\r\n;') = '' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'there is no SQL to run', HINT = 'Give one or more statements, such as ALTER TABLE.';
        END IF;
        IF pg_catalog.octet_length(sql) > 262144 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'a schema change has at most 256 KiB of SQL', HINT = 'Make it in several calls, in one transaction if need be.';
        END IF;
        LOOP
            seen := pgbridge.ddl_seen();
            before := pgbridge.ddl_shape();
            effort := pgbridge.ddl_effort();
            BEGIN
                PERFORM pg_catalog.set_config('pgbridge.ddl', 'local', true), pg_catalog.set_config('pgbridge.ddl_before', '', true); -- the event triggers that there may be leave it to this function
                EXECUTE sql;
                after := pgbridge.ddl_shape();
                IF pgbridge.ddl_seen() > seen THEN
                    RAISE SQLSTATE 'PGB01';
                END IF;
                EXIT;
            EXCEPTION WHEN SQLSTATE 'PGB01' THEN
                -- While this one waited for a lock, another change was made, and would count as part of it. With the locks gone, it begins anew.
            END;
        END LOOP;
        id := pgbridge.ddl_emit(before, after, effort, path, sql, breaking);
        PERFORM pg_catalog.set_config('pgbridge.ddl', mode, true);
        RETURN id;
    END $body$;

    -- What event triggers call around each command that changes the schema, where pgbridge ddl --automatic has made them. They keep what they
    -- know in settings of the transaction. pgbridge.ddl = 'local' keeps a change on its node, 'breaking' confirms it.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_bare(sql text) RETURNS text LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $body$
    -- Without comments and quotes, which may hold anything.
    SELECT regexp_replace(sql, '--[^\n]*|/\*(?:[^*]|\*(?!/))*\*/|[eE]''(?:[^''\\]|\\.|'''')*''|''(?:[^'']|'''')*''|"(?:[^"]|"")*"|\$([[:alpha:]_][[:alnum:]_]*|)\$.*?\$\1\$', ' ', 'g')
    $body$;

    CREATE OR REPLACE FUNCTION pgbridge.ddl_begin() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        PERFORM set_config('pgbridge.ddl_before', '', true), set_config('pgbridge.ddl_dropped', '', true);
        IF current_setting('pgbridge.ddl', true) IS NOT DISTINCT FROM 'local' THEN
            RETURN;
        END IF;
        IF pgbridge.ddl_bare(current_query()) ~* '\mconcurrently\M' THEN
            RAISE NOTICE USING MESSAGE = 'what is done concurrently stays on this node', HINT = 'Run it on each node; plain indexes need not be the same everywhere.';
            RETURN;
        END IF;
        PERFORM set_config('pgbridge.ddl_before', jsonb_build_object('seen', pgbridge.ddl_seen(), 'shape', pgbridge.ddl_shape(), 'effort', pgbridge.ddl_effort())::text, true);
    END $body$;

    -- Called where something was dropped, which the end of the command does not tell.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_drop() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    BEGIN
        IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects() d WHERE NOT d.is_temporary AND d.schema_name IS DISTINCT FROM 'pgbridge') THEN
            PERFORM set_config('pgbridge.ddl_dropped', 'yes', true);
        END IF;
    END $body$;

    CREATE OR REPLACE FUNCTION pgbridge.ddl_end(tag text, path text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
    DECLARE
        mode   text := coalesce(current_setting('pgbridge.ddl', true), '');
        before jsonb := nullif(current_setting('pgbridge.ddl_before', true), '')::jsonb;
        sql    text := current_query();
        bare   text := pgbridge.ddl_bare(sql);
    BEGIN
        IF before IS NULL OR mode = 'local' OR pgbridge.ddl_effort() = (before ->> 'effort')::bigint THEN
            RETURN;
        END IF;
        IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c WHERE c.in_extension) OR current_setting('pgbridge.ddl_dropped', true) IS DISTINCT FROM 'yes'
            AND NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() c WHERE c.schema_name IS DISTINCT FROM 'pg_temp' AND c.schema_name IS DISTINCT FROM 'pgbridge') THEN
            RETURN; -- what is temporary, or pgbridge's own
        END IF;
        IF rtrim(bare, E' \t\r\n;') ~ ';' OR bare ~ '\*/' OR upper(substring(bare FROM '^[\s(]*(\w+)')) IS DISTINCT FROM split_part(tag, ' ', 1) THEN
            RAISE feature_not_supported USING MESSAGE = format('this %s travels to the other nodes by itself only as one statement that is sent alone', tag),
                HINT = 'Send each statement by itself, not from a function or in one string with others; or make it by SELECT pgbridge.ddl(...); or keep it on this node: SET pgbridge.ddl = ''local''.';
        END IF;
        IF octet_length(sql) > 262144 THEN
            RAISE program_limit_exceeded USING MESSAGE = 'a schema change has at most 256 KiB of SQL', HINT = 'Make it in several statements, in one transaction if need be.';
        END IF;
        IF pgbridge.ddl_seen() > (before ->> 'seen')::bigint THEN
            RAISE serialization_failure USING MESSAGE = 'another schema change was made while this one waited for a lock', HINT = 'Run it again.';
        END IF;
        PERFORM set_config('pgbridge.ddl', 'local', true);
        PERFORM pgbridge.ddl_emit(before -> 'shape', pgbridge.ddl_shape(), (before ->> 'effort')::bigint, path, sql, mode = 'breaking');
        PERFORM set_config('pgbridge.ddl', mode, true);
    END $body$;

    -- The triggers' functions run as their owner, with the search_path of whoever changes the schema: no name in them may be looked up there.
    CREATE OR REPLACE FUNCTION pgbridge.ddl_started() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
    BEGIN
        PERFORM pgbridge.ddl_begin();
    END $body$;
    CREATE OR REPLACE FUNCTION pgbridge.ddl_dropped() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
    BEGIN
        PERFORM pgbridge.ddl_drop();
    END $body$;
    CREATE OR REPLACE FUNCTION pgbridge.ddl_ended() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
    BEGIN
        PERFORM pgbridge.ddl_end(TG_TAG, pg_catalog.current_setting('search_path'));
    END $body$;

    REVOKE EXECUTE ON FUNCTION pgbridge.ddl_begin(), pgbridge.ddl_drop(), pgbridge.ddl_end(text, text), pgbridge.ddl_bare(text), pgbridge.ddl_started(), pgbridge.ddl_dropped(),
        pgbridge.ddl_ended() FROM PUBLIC;

    REVOKE EXECUTE ON FUNCTION pgbridge.ddl_shape(), pgbridge.ddl_effort(), pgbridge.ddl_fill(oid, name, boolean), pgbridge.ddl_compare(jsonb, jsonb), pgbridge.left_in_place(jsonb),
        pgbridge.ddl_note(jsonb, jsonb, text[], oid[], text, int, bigint, text, text, text), pgbridge.ddl_seen(), pgbridge.ddl_emit(jsonb, jsonb, bigint, text, text, boolean), pgbridge.ddl(text, boolean) FROM PUBLIC;
    IF to_regprocedure('pgbridge.ddl_emit(jsonb, bigint, text, text, boolean)') IS NOT NULL THEN
        DROP FUNCTION pgbridge.ddl_emit(jsonb, bigint, text, text, boolean);
    END IF;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $do$;
