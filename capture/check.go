package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// CheckOptions say what Check looks at.
type CheckOptions = SetupOptions

// Check reports everything in the local database that keeps capture from working, as one CheckError with all
// findings; other errors mean that it could not find out. It changes nothing.
func Check(ctx context.Context, o CheckOptions) error {
	return look(ctx, o, func(c *check) []func(context.Context) error {
		return []func(context.Context) error{c.server, c.settings, c.privilege, c.room, c.slot, c.publication, c.origins}
	})
}

// CheckServer is the part of Check that Setup cannot mend: server, settings, privileges and room for a
// slot. Ask it before Setup, whose statements would fail with less to say.
func CheckServer(ctx context.Context, o CheckOptions) error {
	return look(ctx, o, func(c *check) []func(context.Context) error {
		return []func(context.Context) error{c.server, c.settings, c.privilege, c.room}
	})
}

// look gathers what the parts find.
func look(ctx context.Context, o CheckOptions, parts func(*check) []func(context.Context) error) error {
	o = o.withDefaults()
	return o.ask(ctx, func(conn *pgx.Conn) error {
		c := &check{opts: o, conn: conn}
		for _, part := range parts(c) {
			if err := c.take(part(ctx)); err != nil {
				return err
			}
			if c.unfit {
				break
			}
		}
		if len(c.findings) > 0 {
			return &CheckError{Findings: c.findings}
		}
		return nil
	})
}

// unreachable makes a finding of a connection that did not come about: whoever asks wants to hear it.
func unreachable(err error) error {
	if !isLost(err) {
		return err
	}
	return finding(CodeUnreachable, "postgres.dsn", "leads to no server: "+oneLine(err),
		"start the server, or correct host and port")
}

// oneLine writes the tries of pgx, one line each and the same more than once, into one line.
func oneLine(err error) string {
	var tries []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); !slices.Contains(tries, line) {
			tries = append(tries, line)
		}
	}
	return strings.Join(tries, " ")
}

// check gathers findings.
type check struct {
	opts     CheckOptions
	conn     *pgx.Conn
	version  int
	unfit    bool // a server of another kind than the other questions are for
	findings []Finding
}

// take keeps findings and returns other errors.
func (c *check) take(err error) error {
	var found *CheckError
	if errors.As(err, &found) {
		c.findings = append(c.findings, found.Findings...)
		return nil
	}
	return err
}

func (c *check) add(code, thing, fault, mend string) {
	c.findings = append(c.findings, Finding{code, thing, fault, mend})
}

func (c *check) server(ctx context.Context) error {
	s, err := readServer(ctx, c.conn)
	if err != nil {
		return err
	}
	c.version = s.version
	if err = s.check(); err == nil {
		err = s.checkFailover(c.opts)
	}
	c.unfit = err != nil
	return err
}

func (c *check) settings(ctx context.Context) error {
	var level, stamps string
	err := c.conn.QueryRow(ctx, `SELECT current_setting('wal_level'), current_setting('track_commit_timestamp')`).Scan(&level, &stamps)
	if err != nil {
		return classify(err, "read settings")
	}
	if level != "logical" {
		c.add(CodeWALLevel, "setting wal_level", "is "+level, "run ALTER SYSTEM SET wal_level = logical, and restart the server")
	}
	if stamps != "on" {
		c.add(CodeCommitTimestamp, "setting track_commit_timestamp", "is "+stamps,
			"run ALTER SYSTEM SET track_commit_timestamp = on, and restart the server")
	}
	return nil
}

func (c *check) privilege(ctx context.Context) error {
	var role string
	var may bool
	err := c.conn.QueryRow(ctx, `SELECT rolname::text, rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&role, &may)
	if err != nil {
		return classify(err, "read role")
	}
	if !may {
		c.add(CodePrivilege, "role "+ident(role), "lacks the attribute REPLICATION",
			fmt.Sprintf("run ALTER ROLE %s REPLICATION", ident(role)))
	}
	return nil
}

// room looks for a free slot and a free walsender.
func (c *check) room(ctx context.Context) error {
	s, err := readSlot(ctx, c.conn, c.opts.Slot)
	if err != nil {
		return err
	}
	var slots, maxSlots, senders, maxSenders int
	err = c.conn.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int,
		       (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int`).
		Scan(&slots, &maxSlots, &senders, &maxSenders)
	if err != nil {
		return classify(err, "read slots")
	}
	if !s.exists && slots >= maxSlots {
		c.add(CodeSlots, "setting max_replication_slots", fmt.Sprintf("is %d, and all are taken", maxSlots),
			"raise it and restart the server, or drop a slot that nobody uses")
	}
	if !s.active && senders >= maxSenders {
		c.add(CodeWALSenders, "setting max_wal_senders", fmt.Sprintf("is %d, and all are taken", maxSenders),
			"raise it and restart the server")
	}
	return nil
}

func (c *check) slot(ctx context.Context) error {
	s, err := readSlot(ctx, c.conn, c.opts.Slot)
	if err != nil {
		return err
	}
	return s.check()
}

func (c *check) publication(ctx context.Context) error {
	p, err := readPublication(ctx, c.conn, c.opts.Publication, c.version)
	if err != nil {
		return err
	}
	chosen, err := listTables(ctx, c.conn, c.opts.Tables)
	if err != nil {
		return err
	}
	thing := "publication " + ident(p.name)
	if !p.exists {
		c.add(CodePublicationMissing, thing, "is not there", "run pgbridge setup")
		return c.tables(ctx, p, chosen)
	}
	if !p.ops || !p.viaRoot {
		c.add(CodePublication, thing, "does not publish all operations through partition roots", "run pgbridge setup")
	}
	for _, t := range p.tables {
		if t.partial {
			c.add(CodePublication, thing, fmt.Sprintf("leaves out rows or columns of %s", t), "run pgbridge setup")
		}
	}
	return c.tables(ctx, p, chosen)
}

// tables looks at each table that the patterns choose.
func (c *check) tables(ctx context.Context, p *publication, chosen []candidate) error {
	if c.opts.Running {
		return nil
	}
	oids := make([]uint32, len(chosen))
	for i, t := range chosen {
		oids[i] = t.oid
	}
	keys, err := readKeys(ctx, c.conn, oids)
	if err != nil {
		return err
	}
	c.unplaced(chosen)
	c.unplacedColumns(chosen)
	var absent []string
	for _, t := range chosen {
		if !t.usable() {
			code := CodeTableKey
			if t.persistence != "p" {
				code = CodeTableUnlogged
			}
			fault, mend := t.unusable()
			c.add(code, "table "+t.String(), fault, mend)
			continue // setup would not publish it either
		}
		if t.identity != "f" && slices.ContainsFunc(c.opts.Merged, func(p string) bool { return Matches(p, t.Schema, t.Name) }) {
			c.add(CodeTableIdentity, "table "+t.String(), "is merged, as conflict.tables says, and lacks the old values of its rows in the WAL",
				fmt.Sprintf("run ALTER TABLE %s REPLICA IDENTITY FULL, on every node", t))
		}
		if places := c.opts.Rows[t.TableName]; places != nil {
			if err := c.placed(ctx, &t, keys[t.oid], places); err != nil {
				return err
			}
		}
		for i := range c.opts.Columns[t.TableName] {
			if err := c.placedColumn(ctx, &t, keys[t.oid], &c.opts.Columns[t.TableName][i]); err != nil {
				return err
			}
		}
		refused := false
		for _, k := range keys[t.oid] {
			if k.refused != nil {
				refused = true
				c.add(CodeTableKey, "table "+t.String(), fmt.Sprintf("has column %s in its key: %v", ident(k.name), k.refused),
					fmt.Sprintf("%s, or %s", k.refused.Mend(), t.exclude()))
			}
		}
		if !refused && p.exists && !p.all && !p.has(t.TableName) {
			absent = append(absent, t.String())
		}
	}
	if c.opts.refuses() {
		open, err := listOpen(ctx, c.conn, &c.opts, chosen)
		if err != nil {
			return err
		}
		for _, g := range open {
			c.findings = append(c.findings, writable(g, &c.opts, nil))
		}
	}
	if len(absent) > 0 {
		c.add(CodePublication, "publication "+ident(p.name), "leaves out "+strings.Join(absent, ", "), "run pgbridge setup")
	}
	return nil
}

// originsSQL lists the replication origins that are not a bridge's. The catalog is the whole server's, so
// those of other databases' subscriptions are left out; what has no subscription could be anybody's.
const originsSQL = `
SELECT o.roname::text, coalesce(s.subname::text, '')
FROM pg_replication_origin o
     LEFT JOIN pg_subscription s ON o.roname = 'pg_' || s.oid OR o.roname LIKE 'pg\_' || s.oid || '\_%'
WHERE NOT starts_with(o.roname, 'pgb_')
  AND (s.oid IS NULL OR s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))
ORDER BY 1`

func (c *check) origins(ctx context.Context) error {
	rows, err := c.conn.Query(ctx, originsSQL)
	if err != nil {
		return classify(err, "read replication origins")
	}
	var name, subscription string
	if _, err = pgx.ForEachRow(rows, []any{&name, &subscription}, func() error {
		mend := fmt.Sprintf("run SELECT pg_replication_origin_drop(%s) if nobody uses it", literal(name))
		if subscription != "" {
			mend = fmt.Sprintf("run DROP SUBSCRIPTION %s, or give it a server of its own", ident(subscription))
		}
		c.add(CodeOriginForeign, fmt.Sprintf("replication origin %q", name),
			"is not the bridge's: rows that are written under it reach no other node", mend)
		return nil
	}); err != nil {
		return classify(err, "read replication origins")
	}
	return nil
}
