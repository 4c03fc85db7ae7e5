package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
)

// ReadServer asks the primary, over a connection of capture.Connect.
func ReadServer(ctx context.Context, conn *pgx.Conn, cfg *config.Config, slot string) (*Server, error) {
	s := &Server{Settings: map[string]string{}}
	for _, part := range []struct {
		what string
		read func(context.Context, *pgx.Conn) error
	}{
		{"settings", s.readSettings},
		{"role", s.readRole},
		{"room", s.readRoom},
		{"slot", func(ctx context.Context, conn *pgx.Conn) error { return s.readSlot(ctx, conn, slot) }},
		{"tables", func(ctx context.Context, conn *pgx.Conn) error { return s.readTables(ctx, conn, cfg.Tables) }},
		{"foreign keys", func(ctx context.Context, conn *pgx.Conn) error { return s.readForeignKeys(ctx, conn) }},
		{"sessions", s.readOld},
		{"collations", s.readCollations},
		{"clock", s.readClock},
	} {
		if err := part.read(ctx, conn); err != nil {
			return nil, fmt.Errorf("read %s: %w", part.what, err)
		}
	}
	return s, nil
}

// settingNames are the settings that checks look at.
var settingNames = []string{"fsync", "full_page_writes", "max_slot_wal_keep_size", "idle_replication_slot_timeout", "wal_sender_timeout"}

func (s *Server) readSettings(ctx context.Context, conn *pgx.Conn) error {
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding')`).
		Scan(&s.Version, &s.VersionText, &s.Encoding); err != nil {
		return err
	}
	// Sizes in bytes and times in milliseconds.
	rows, err := conn.Query(ctx, `
		SELECT name, CASE unit WHEN 'MB' THEN (CASE setting WHEN '-1' THEN '-1' ELSE (setting::int8 * 1048576)::text END)
		                       WHEN 's' THEN (setting::int8 * 1000)::text WHEN 'min' THEN (setting::int8 * 60000)::text ELSE setting END
		FROM pg_settings WHERE name = ANY ($1)`, settingNames)
	if err != nil {
		return err
	}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error { s.Settings[name] = value; return nil })
	return err
}

// originFunctions are those that a bridge calls.
var originFunctions = []string{"pg_replication_origin_create(text)", "pg_replication_origin_session_setup(text)",
	"pg_replication_origin_session_reset()", "pg_replication_origin_xact_setup(pg_lsn, timestamptz)"}

func (s *Server) readRole(ctx context.Context, conn *pgx.Conn) error {
	r := &s.Role
	if err := conn.QueryRow(ctx, `
		SELECT quote_ident(rolname), quote_ident(current_database()), rolsuper, rolreplication OR rolsuper, rolbypassrls OR rolsuper,
		       has_database_privilege(current_database(), 'CREATE'), pg_has_role('pg_read_all_stats', 'USAGE') OR rolsuper,
		       coalesce((SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'pgbridge'), true)
		FROM pg_roles WHERE rolname = current_user`).
		Scan(&r.Name, &r.Database, &r.Superuser, &r.Replication, &r.BypassRLS, &r.Create, &r.Monitor, &r.Owner); err != nil {
		return err
	}
	r.Replica = r.Superuser
	if s.Version >= 150000 && !r.Superuser {
		if err := conn.QueryRow(ctx, `SELECT has_parameter_privilege('session_replication_role', 'SET')`).Scan(&r.Replica); err != nil {
			return err
		}
	}
	for _, f := range originFunctions {
		var may bool
		err := conn.QueryRow(ctx, `SELECT has_function_privilege($1, 'EXECUTE')`, "pg_catalog."+f).Scan(&may)
		var pg *pgconn.PgError
		if err != nil && !errors.As(err, &pg) {
			return err
		}
		if !may {
			r.Functions = append(r.Functions, "pg_catalog."+f)
		}
	}
	return nil
}

func (s *Server) readRoom(ctx context.Context, conn *pgx.Conn) error {
	return conn.QueryRow(ctx, `
		SELECT (SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database),
		       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true), '0')::int,
		       (SELECT count(*)::int FROM pg_replication_origin),
		       coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int`).
		Scan(&s.Connections, &s.MaxConnections, &s.Origins, &s.MaxOrigins)
}

func (s *Server) readSlot(ctx context.Context, conn *pgx.Conn, name string) error {
	slot := &Slot{}
	err := conn.QueryRow(ctx, `
		SELECT coalesce(wal_status, ''), coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8, coalesce(safe_wal_size, -1)
		FROM pg_replication_slots WHERE slot_name = $1`, name).Scan(&slot.Status, &slot.Held, &slot.Safe)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	s.Slot = slot
	return err
}

const tablesSQL = `
SELECT c.oid, quote_ident(n.nspname), has_schema_privilege(n.oid, 'USAGE'), pg_has_role(c.relowner, 'USAGE'),
       c.relrowsecurity AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user) AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE')),
       ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p WHERE NOT has_table_privilege(c.oid, p)),
       ARRAY(SELECT t.tgname::text || ' ' || t.tgenabled::text FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' ORDER BY t.tgname),
       ARRAY(SELECT r.rulename::text || ' ' || r.ev_enabled::text FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled <> 'D' ORDER BY r.rulename)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1::oid[])
ORDER BY n.nspname, c.relname`

func (s *Server) readTables(ctx context.Context, conn *pgx.Conn, patterns []string) error {
	chosen, err := capture.ListChosen(ctx, conn, patterns)
	if err != nil {
		return err
	}
	byOID, oids := map[uint32]capture.Chosen{}, []uint32{}
	for _, c := range chosen {
		byOID[c.OID], oids = c, append(oids, c.OID)
	}
	rows, err := conn.Query(ctx, tablesSQL, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var t Table
	var fire, rewrite []string
	_, err = pgx.ForEachRow(rows, []any{&oid, &t.Schema, &t.Usage, &t.Owned, &t.RowSecurity, &t.Lacks, &fire, &rewrite}, func() error {
		c := byOID[oid]
		t.Name, t.patternSchema, t.patternTable = c.TableName.String(), c.Schema, c.TableName.Name
		t.Triggers, t.Rules = enabled(fire), enabled(rewrite)
		s.Tables = append(s.Tables, t)
		return nil
	})
	return err
}

// enabled takes names and how they are enabled apart.
func enabled(list []string) []Trigger {
	var all []Trigger
	for _, text := range list {
		i := strings.LastIndexByte(text, ' ')
		all = append(all, Trigger{pgx.Identifier{text[:i]}.Sanitize(), text[i+1:]})
	}
	return all
}

// foreignKeysSQL leaves those of partitions out, which their root has.
const foreignKeysSQL = `
SELECT n.nspname::text, c.relname::text, pn.nspname::text, p.relname::text, k.conname::text, k.confdeltype::text
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0 ORDER BY 1, 2, 5`

func (s *Server) readForeignKeys(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, foreignKeysSQL)
	if err != nil {
		return err
	}
	var child, parent capture.TableName
	var name, action string
	_, err = pgx.ForEachRow(rows, []any{&child.Schema, &child.Name, &parent.Schema, &parent.Name, &name, &action}, func() error {
		k := ForeignKey{Name: name, Parent: parent.String(), Action: actions[action], ToOthers: s.table(parent.String()) != nil}
		if t := s.table(child.String()); t != nil {
			t.ForeignKeys = append(t.ForeignKeys, k)
		} else if p := s.table(parent.String()); p != nil {
			k.From = child.String()
			p.ForeignKeys = append(p.ForeignKeys, k)
		}
		return nil
	})
	return err
}

// actions are those of pg_constraint.confdeltype that change rows.
var actions = map[string]string{"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}

func (s *Server) table(name string) *Table {
	for i := range s.Tables {
		if s.Tables[i].Name == name {
			return &s.Tables[i]
		}
	}
	return nil
}

// oldAge is from when on a transaction is old.
const oldAge = 30 * time.Minute

// oldSQL sees other roles' sessions with pg_read_all_stats only; prepared transactions everybody sees.
const oldSQL = `
SELECT 'process ' || pid, extract(epoch FROM clock_timestamp() - xact_start)::float8, 'SELECT pg_terminate_backend(' || pid || ')'
FROM pg_stat_activity WHERE xact_start < clock_timestamp() - $1::float8 * interval '1 s' AND backend_type = 'client backend' AND datname = current_database()
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid), extract(epoch FROM clock_timestamp() - prepared)::float8, 'COMMIT PREPARED ' || quote_literal(gid) || ', or ROLLBACK PREPARED ' || quote_literal(gid)
FROM pg_prepared_xacts WHERE prepared < clock_timestamp() - $1::float8 * interval '1 s' AND database = current_database()
ORDER BY 2 DESC LIMIT 5`

func (s *Server) readOld(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, oldSQL, oldAge.Seconds())
	if err != nil {
		return err
	}
	var t Transaction
	var seconds float64
	_, err = pgx.ForEachRow(rows, []any{&t.Who, &seconds, &t.Mend}, func() error {
		t.Age = time.Duration(seconds * float64(time.Second))
		s.Old = append(s.Old, t)
		return nil
	})
	return err
}

// collationsSQL finds those of which the library has another version now.
const collationsSQL = `
SELECT 'COLLATION ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname)
FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
WHERE c.collversion <> pg_collation_actual_version(c.oid) AND EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid AND a.attrelid >= 16384)
UNION ALL
SELECT 'DATABASE ' || quote_ident(datname) FROM pg_database
WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)`

func (s *Server) readCollations(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, collationsSQL)
	if err != nil {
		return err
	}
	s.Collations, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return err
}

func (s *Server) readClock(ctx context.Context, conn *pgx.Conn) error {
	var there time.Time
	asked := time.Now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&there); err != nil {
		return err
	}
	s.ClockWithin = time.Since(asked)
	s.Clock = there.Sub(asked.Add(s.ClockWithin / 2))
	var may bool
	if err := conn.QueryRow(ctx, `SELECT coalesce((SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'pgbridge' AND c.relname = 'clock'), false)`).Scan(&may); err != nil || !may {
		return err
	}
	rows, err := conn.Query(ctx, `SELECT node, ahead_us, within_us FROM pgbridge.clock WHERE at > clock_timestamp() - interval '1 day' ORDER BY node`)
	if err != nil {
		return err
	}
	var c NodeClock
	var ahead, within int64
	_, err = pgx.ForEachRow(rows, []any{&c.Node, &ahead, &within}, func() error {
		c.Ahead, c.Within = time.Duration(ahead)*time.Microsecond, time.Duration(within)*time.Microsecond
		s.NodeClocks = append(s.NodeClocks, c)
		return nil
	})
	return err
}
