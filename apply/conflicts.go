package apply

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/origin"
)

// The history is written by history.go and read here, in a session that is no part of the bridge: it needs none to run.
// image.go takes the images apart, filter.go says which conflicts are meant, undo.go brings a loser back.

// HistoryOptions say whose history is opened.
type HistoryOptions struct {
	DSN           string
	Cluster, Node string
	// ClockError is how far apart two nodes' clocks may be: a decision by less than that is called close. Zero: what the
	// bridge has measured within a day, or AssumedClockError.
	ClockError time.Duration
	session    string // what the session is called; empty: pgbridge conflicts
	// Publication is the bridge's: foreign keys of its tables are looked at by Orphans.
	Publication string
}

// History is a session that reads the conflict history of one node and brings losers back. Not safe for concurrent use.
type History struct {
	conn       *pgx.Conn
	catalog    catalog
	tables     map[string]*table // by the name that a conflict bears; nil for one that is not here, or has no key
	role       string            // ready for SQL
	searchPath string            // of the role's own sessions, for what an undo fires
	undoable   bool              // the table has the columns that an undo writes
	clockError time.Duration
	source     ClockSource

	node, publication string
}

// Conflict is one entry of the history: two writes of one row of which neither had seen the other.
type Conflict struct {
	ID      int64       `json:"id"`
	At      time.Time   `json:"at"` // when this node decided
	Table   string      `json:"table"`
	Key     ConflictKey `json:"key"` // null if the images or the table do not tell it
	Kind    string      `json:"kind"`
	Outcome string      `json:"outcome"` // "remote wins" or "local wins"
	Winner  string      `json:"winner"`  // its origin
	Loser   string      `json:"loser"`
	Remote  ConflictEnd `json:"remote"`
	Local   ConflictEnd `json:"local"`
	// MarginSeconds is how far the two stamps are apart.
	MarginSeconds float64 `json:"margin_seconds"`
	// Close says that the margin is below HistoryOptions.ClockError: the clocks could as well have decided otherwise.
	Close    bool       `json:"close"`
	UndoneAt *time.Time `json:"undone_at,omitempty"`
	UndoneBy string     `json:"undone_by,omitempty"`
}

// ConflictEnd is one of a conflict's two writes: that of the remote transaction, or that of what stood here.
type ConflictEnd struct {
	Origin string    `json:"origin"`
	Stamp  time.Time `json:"stamp"`
}

// Margin is how far the two stamps are apart.
func (c *Conflict) Margin() time.Duration { return c.Remote.Stamp.Sub(c.Local.Stamp).Abs() }

// ConflictKey is a row's key, by column name.
type ConflictKey []KeyColumn

// KeyColumn is one column of a key with its value as JSON.
type KeyColumn struct {
	Name  string
	Value json.RawMessage
}

// String gives "id=7", or "a=1,b="x"" for several columns; empty if the key is not known.
func (k ConflictKey) String() string {
	var parts []string
	for _, c := range k {
		parts = append(parts, c.Name+"="+string(c.Value))
	}
	return strings.Join(parts, ",")
}

// MarshalJSON gives an object with one member for each column, null if the key is not known.
func (k ConflictKey) MarshalJSON() ([]byte, error) {
	if k == nil {
		return []byte("null"), nil
	}
	b := []byte{'{'}
	for i, c := range k {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(c.Name)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), c.Value...)
	}
	return append(b, '}'), nil
}

// ConflictPage is an answer to a question for conflicts, the newest first.
type ConflictPage struct {
	Conflicts []Conflict `json:"conflicts"`
	// More says that older ones fit too, beyond the limit.
	More bool `json:"more"`
}

// ConflictDetail is a conflict with both versions of the row.
type ConflictDetail struct {
	Conflict
	// Constraint is the unique index or exclusion constraint that both rows of a conflict of kind "unique" hit.
	Constraint string `json:"constraint,omitempty"`
	// NotRecorded is why the server could not keep the images; empty if it did.
	NotRecorded string          `json:"not_recorded,omitempty"`
	LocalRow    json.RawMessage `json:"local_row"` // null: the row was deleted
	RemoteRow   json.RawMessage `json:"remote_row"`
	// Columns are those of both images. A remote image may lack unchanged large values and generated columns.
	Columns []ConflictColumn `json:"columns"`
}

// ConflictColumn is one column of both images, each value as JSON; nil where the image has none.
type ConflictColumn struct {
	Name    string          `json:"name"`
	Local   json.RawMessage `json:"local,omitempty"`
	Remote  json.RawMessage `json:"remote,omitempty"`
	Differs bool            `json:"differs"` // both are there and are not the same
}

// ConflictCount is how many conflicts of one kind one origin has won in one table.
type ConflictCount struct {
	Table     string    `json:"table"`
	Kind      string    `json:"kind"`
	Winner    string    `json:"winner"`
	Conflicts int64     `json:"conflicts"`
	Close     int64     `json:"close"`
	Undone    int64     `json:"undone"`
	Newest    time.Time `json:"newest"`
}

// ErrNoConflict means that the node's history has no conflict of that id, or none any more.
var ErrNoConflict = errors.New("the history of this node has no such conflict; pgbridge conflicts list shows what it has")

// valueSettings are those of sessionSettings that say how values are written and read, and what must not be in the way. The
// others stay those of the role: an undo is an ordinary write.
var valueSettings = []string{"default_transaction_isolation", "default_transaction_read_only", "row_security", "statement_timeout",
	"idle_in_transaction_session_timeout", "idle_session_timeout", "TimeZone", "DateStyle", "IntervalStyle", "extra_float_digits", "bytea_output",
	"client_encoding", "xmloption"}

// OpenHistory opens the history of a node. ErrNotSetUp if the database has none.
func OpenHistory(ctx context.Context, o HistoryOptions) (*History, error) {
	settings := map[string]string{"standard_conforming_strings": "on"}
	for _, name := range valueSettings {
		settings[name] = sessionSettings[name]
	}
	conn, err := connectWith(ctx, o.DSN, cmp.Or(o.session, "pgbridge conflicts"), settings)
	if err != nil {
		return nil, err
	}
	h := &History{conn: conn, catalog: catalog{conn: conn, types: map[uint32]*pgType{}}, tables: map[string]*table{}, clockError: o.ClockError,
		node: o.Node, publication: o.Publication}
	if err := h.begin(ctx, o); err != nil {
		h.Close(ctx)
		return nil, err
	}
	return h, nil
}

// begin finds out whose history it is and what the role may do with it.
func (h *History) begin(ctx context.Context, o HistoryOptions) error {
	// What is read here is pgbridge's own, and is found whatever the role's search_path is.
	err := h.conn.QueryRow(ctx, `SELECT pg_catalog.quote_ident(current_user), pg_catalog.current_setting('search_path'),
		pg_catalog.set_config('search_path', 'pg_catalog', false)`).Scan(&h.role, &h.searchPath, nil)
	if err != nil {
		return fmt.Errorf("begin to read the conflict history: %w", err)
	}
	n, err := readNode(ctx, h.conn)
	if err != nil {
		return h.explain(err)
	}
	if err := n.is(o.Cluster, o.Node); err != nil {
		return err
	}
	if h.source = ClockGiven; h.clockError == 0 {
		if err := h.measureClocks(ctx); err != nil {
			return fmt.Errorf("read how far clocks are apart: %w", err)
		}
	}
	err = h.conn.QueryRow(ctx, `SELECT count(*) = 2 FROM pg_attribute
		WHERE attrelid = to_regclass('pgbridge.conflict') AND attname IN ('undone_at', 'undone_by') AND NOT attisdropped`).Scan(&h.undoable)
	if err != nil {
		return fmt.Errorf("read the columns of pgbridge.conflict: %w", err)
	}
	return nil
}

// Close ends the session.
func (h *History) Close(ctx context.Context) { h.conn.Close(ctx) }

// explain adds the mend where the role may not read the history.
func (h *History) explain(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42501" {
		return err
	}
	return &refusal{pg, fmt.Sprintf("run GRANT USAGE ON SCHEMA pgbridge TO %[1]s; GRANT SELECT ON pgbridge.node TO %[1]s; "+
		"GRANT SELECT, UPDATE ON pgbridge.conflict TO %[1]s, or name the bridge's own role in postgres.dsn", h.role)}
}

// undone are the columns that say whether a conflict was undone, in whatever version of the table.
func (h *History) undone() string {
	if h.undoable {
		return "c.undone_at, COALESCE(c.undone_by, '')"
	}
	return "NULL::timestamptz, ''"
}

// winnerSQL is the winner's origin, and keyImageSQL an image that holds the row's key: the loser's if there is one.
const (
	winnerSQL   = `CASE c.outcome WHEN 'remote wins' THEN c.remote_origin ELSE c.local_origin END`
	keyImageSQL = `CASE c.outcome WHEN 'remote wins' THEN COALESCE(c.local_row, c.remote_row) ELSE COALESCE(c.remote_row, c.local_row) END`
)

// List returns the newest conflicts that fit f.
func (h *History) List(ctx context.Context, f ConflictFilter) (*ConflictPage, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	where, args := f.sql()
	limit := f.limit()
	list, err := h.read(ctx, fmt.Sprintf("%s ORDER BY c.id DESC LIMIT %d", where, limit+1), args)
	if err != nil {
		return nil, err
	}
	p := &ConflictPage{Conflicts: list[:min(len(list), limit)], More: len(list) > limit}
	return p, h.readKeys(ctx, p.Conflicts)
}

// read reads conflicts without their images; tail begins with WHERE.
func (h *History) read(ctx context.Context, tail string, args []any) ([]Conflict, error) {
	rows, err := h.conn.Query(ctx, `SELECT c.id, c.at, c.relation, c.kind, c.outcome, c.remote_origin, c.remote_stamp, c.local_origin, c.local_stamp, `+
		h.undone()+` FROM pgbridge.conflict c `+tail, args...)
	list := []Conflict{}
	var c Conflict
	var remote, local origin.Stamp
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&c.ID, &c.At, &c.Table, &c.Kind, &c.Outcome, &c.Remote.Origin, (*int64)(&remote),
			&c.Local.Origin, (*int64)(&local), &c.UndoneAt, &c.UndoneBy}, func() error {
			list = append(list, h.complete(c, remote, local))
			c.UndoneAt = nil // the next row's must be one of its own
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.conflict: %w", h.explain(err))
	}
	return list, nil
}

// complete fills in what follows from the rest of a conflict.
func (h *History) complete(c Conflict, remote, local origin.Stamp) Conflict {
	c.At = c.At.UTC()
	c.Remote.Stamp, c.Local.Stamp = remote.Time(), local.Time()
	c.Winner, c.Loser = c.Local.Origin, c.Remote.Origin
	if c.remoteWins() {
		c.Winner, c.Loser = c.Loser, c.Winner
	}
	c.MarginSeconds = c.Margin().Seconds()
	c.Close = c.Margin() < h.clockError && c.Kind != OrphanKind && c.Kind != RepairKind
	if c.UndoneAt != nil {
		at := c.UndoneAt.UTC()
		c.UndoneAt = &at
	}
	return c
}

func (c *Conflict) remoteWins() bool { return c.Outcome == remoteWins }

// readKeys finds out each conflict's key, by the key that its table has now. One that cannot be found stays empty.
func (h *History) readKeys(ctx context.Context, list []Conflict) error {
	byTable := map[string][]int64{}
	at := map[int64]*Conflict{}
	for i := range list {
		c := &list[i]
		byTable[c.Table], at[c.ID] = append(byTable[c.Table], c.ID), c
	}
	for _, name := range slices.Sorted(maps.Keys(byTable)) {
		t, err := h.known(ctx, name)
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		var cols []string
		for _, k := range t.key {
			cols = append(cols, t.cols[k].name)
		}
		rows, err := h.conn.Query(ctx, `SELECT c.id, ARRAY(SELECT (i.image -> u.col)::text FROM unnest($2::text[]) WITH ORDINALITY u(col, n) ORDER BY u.n)
			FROM pgbridge.conflict c, LATERAL (SELECT `+keyImageSQL+` AS image) i WHERE c.id = ANY($1)`, byTable[name], cols)
		var id int64
		var values []*string
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&id, &values}, func() error {
				at[id].Key = keyOf(cols, values)
				return nil
			})
		}
		if err != nil {
			return fmt.Errorf("read the keys of conflicts in table %s: %w", name, h.explain(err))
		}
	}
	return nil
}

// keyOf puts a key together; nil if a column has no value.
func keyOf(cols []string, values []*string) ConflictKey {
	var k ConflictKey
	for i, v := range values {
		if v == nil {
			return nil
		}
		k = append(k, KeyColumn{cols[i], json.RawMessage(*v)})
	}
	return k
}

// known returns the table of that name, as it was when it was first asked for; nil if it is not here, or has no key.
func (h *History) known(ctx context.Context, relation string) (*table, error) {
	if t, ok := h.tables[relation]; ok {
		return t, nil
	}
	t, err := h.load(ctx, relation)
	if isBlocked(err) {
		t, err = nil, nil
	}
	if err == nil {
		h.tables[relation] = t
	}
	return t, err
}

// load reads the table of a conflict from the catalog; a Blocked error if it is not here, or cannot be used. The name in a
// conflict is not quoted, so that a dot can be part of it.
func (h *History) load(ctx context.Context, relation string) (*table, error) {
	rows, err := h.conn.Query(ctx, `SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND n.nspname || '.' || c.relname = $1`, relation)
	if err != nil {
		return nil, fmt.Errorf("find table %s: %w", relation, err)
	}
	names, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n tableName, err error) {
		return n, row.Scan(&n.schema, &n.name)
	})
	if err != nil {
		return nil, fmt.Errorf("find table %s: %w", relation, err)
	}
	switch len(names) {
	case 0:
		return nil, blocked("table %s is not here any more", relation)
	case 1:
		return h.catalog.table(ctx, names[0].schema, names[0].name)
	}
	return nil, blocked("two tables are called %s, with the dot between schema and table at another place", relation)
}

// Show returns one conflict with both versions of the row. ErrNoConflict if there is none of that id.
func (h *History) Show(ctx context.Context, id int64) (*ConflictDetail, error) {
	list, err := h.read(ctx, "WHERE c.id = $1", []any{id})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, ErrNoConflict
	}
	if err := h.readKeys(ctx, list); err != nil {
		return nil, err
	}
	d := &ConflictDetail{Conflict: list[0], Columns: []ConflictColumn{}}
	var local, remote *string
	// The table may be of a version without constraint_name.
	err = h.conn.QueryRow(ctx, `SELECT c.local_row::text, c.remote_row::text, COALESCE(to_json(c)->>'constraint_name', '') FROM pgbridge.conflict c
		WHERE c.id = $1`, id).Scan(&local, &remote, &d.Constraint)
	if errors.Is(err, pgx.ErrNoRows) { // forgotten since
		return nil, ErrNoConflict
	}
	if err != nil {
		return nil, fmt.Errorf("read conflict %d: %w", id, err)
	}
	return d, d.take(local, remote)
}

// take takes both images apart.
func (d *ConflictDetail) take(local, remote *string) error {
	l, err := parseImage(local)
	if err != nil {
		return fmt.Errorf("local image of conflict %d: %w", d.ID, err)
	}
	r, err := parseImage(remote)
	if err != nil {
		return fmt.Errorf("remote image of conflict %d: %w", d.ID, err)
	}
	d.LocalRow, d.RemoteRow = l.json(), r.json()
	for _, i := range []*image{l, r} {
		if reason := i.notRecorded(); reason != "" {
			d.NotRecorded = reason
			return nil
		}
	}
	for _, name := range l.names {
		c := ConflictColumn{Name: name, Local: l.values[name], Remote: r.values[name]}
		c.Differs = c.Remote != nil && !bytes.Equal(c.Local, c.Remote)
		d.Columns = append(d.Columns, c)
	}
	for _, name := range r.names {
		if l.values[name] == nil {
			d.Columns = append(d.Columns, ConflictColumn{Name: name, Remote: r.values[name]})
		}
	}
	return nil
}

// Stats counts the conflicts that fit f, by table, kind and winner, the most frequent first. The limit of f does not count.
func (h *History) Stats(ctx context.Context, f ConflictFilter) ([]ConflictCount, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	where, args := f.sql()
	undone := "0"
	if h.undoable {
		undone = "count(c.undone_at)"
	}
	rows, err := h.conn.Query(ctx, fmt.Sprintf(`SELECT c.relation, c.kind, %s, count(*),
		count(*) FILTER (WHERE abs(c.remote_stamp - c.local_stamp) < %d), %s, max(c.at)
		FROM pgbridge.conflict c %s GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3`, winnerSQL, h.clockError.Microseconds(), undone, where), args...)
	counts := []ConflictCount{}
	var n ConflictCount
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&n.Table, &n.Kind, &n.Winner, &n.Conflicts, &n.Close, &n.Undone, &n.Newest}, func() error {
			n.Newest = n.Newest.UTC()
			counts = append(counts, n)
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("count pgbridge.conflict: %w", h.explain(err))
	}
	return counts, nil
}
