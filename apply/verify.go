package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
)

// Nodes are compared by content: what a row's columns are as text, which is the same on every version of PostgreSQL under this
// session's settings. Who compares asks each node for digests of segments of a table, then for the hashes of the rows in those that
// differ (verifyread.go), then for single rows (verifylook.go), which it settles by the order in which it has looked: what is sent
// here as After has been seen before the look, and what comes back as Seen includes all that was looked at. Mending is in
// verifymend.go.

// VerifyKind says what is asked.
type VerifyKind string

// The questions that a node answers.
const (
	VerifyTables VerifyKind = "tables" // which tables are replicated here
	VerifyDigest VerifyKind = "digest" // of a segment
	VerifyList   VerifyKind = "list"   // the rows of some parts of a segment, as hashes
	VerifyLook   VerifyKind = "look"   // at single rows
	VerifyYield  VerifyKind = "yield"  // rows that are wrong are recorded, and give way to whatever comes
	VerifyWrite  VerifyKind = "write"  // rows that are right are written again
	VerifyDelete VerifyKind = "delete" // rows are deleted
)

// VerifyParts is in how many parts a segment's rows fall, by their keys, each with a digest of its own.
const VerifyParts = 64

// VerifyQuestion is what one node asks another one, or itself. Keys are texts in the order of the table's key.
type VerifyQuestion struct {
	// Asker is the node that reads the answer, and ID the question's own, however often it is asked. Who asks itself sets neither.
	Asker string       `json:"-"`
	Other bool         `json:"-"` // another node asks, whoever it is
	ID    string       `json:"id,omitempty"`
	Kind  VerifyKind   `json:"kind"`
	Table *VerifyTable `json:"table,omitempty"` // which columns are compared, and the key
	// Of a segment: keys behind From, up to To, nil for no bound; of those the first Limit rows.
	From  [][]byte `json:"from,omitempty"`
	To    [][]byte `json:"to,omitempty"`
	Limit int      `json:"limit,omitempty"`
	Parts uint64   `json:"parts,omitempty"` // of a list: a bit for each part
	// Of rows: their keys, and what must have been seen before.
	Keys  [][][]byte    `json:"keys,omitempty"`
	After origin.Vector `json:"after,omitempty"`
	Cells bool          `json:"cells,omitempty"` // the rows' values are wanted
	// Of what is to be changed: the writers of the rows as they were looked at, in the order of Keys; and for the history their
	// versions, and the row that is right, as JSON, with its node.
	Writers  []string        `json:"writers,omitempty"`
	Versions []VerifyVersion `json:"versions,omitempty"`
	Right    []string        `json:"right,omitempty"`
	By       string          `json:"by,omitempty"`
}

// VerifyTable is a table, as far as it is compared.
type VerifyTable struct {
	Schema  string   `json:"schema"`
	Name    string   `json:"name"`
	Columns []string `json:"columns"` // sorted, without those that are generated
	Key     []string `json:"key"`     // in the order of its index
	Merged  bool     `json:"merged,omitempty"`
	Problem string   `json:"problem,omitempty"` // why its rows cannot be compared
	// Rows are those that are compared of a table of which only some nodes have some (Options.Rows); nil: all that there are.
	Rows *VerifyRows `json:"rows,omitempty"`
}

// VerifyRows are rows by their value in the column that says where they are.
type VerifyRows struct {
	Values []string `json:"values,omitempty"`
	Others bool     `json:"others,omitempty"` // those with values, too, that are not named
}

// String is the table's name with its schema.
func (t *VerifyTable) String() string { return t.Schema + "." + t.Name }

// VerifyAnswer is the answer to a question.
type VerifyAnswer struct {
	Error  string         `json:"error,omitempty"`
	Tables []*VerifyTable `json:"tables,omitempty"`
	// Of a segment.
	Rows    int             `json:"rows,omitempty"`
	Bytes   int64           `json:"bytes,omitempty"`
	Cut     bool            `json:"cut,omitempty"`     // there are more rows, or more hashes than fit an answer
	Last    [][]byte        `json:"last,omitempty"`    // the key of the last one, if it was cut
	Digests []byte          `json:"digests,omitempty"` // of the parts, one after the other
	Hashes  []VerifiedEntry `json:"hashes,omitempty"`
	// Of rows, in the order of the question's keys.
	Looks []VerifyLooked `json:"looks,omitempty"`
	Seen  origin.Vector  `json:"seen,omitempty"`
	Late  bool           `json:"late,omitempty"` // After has not been seen yet, only Seen; ask again
	// Working says that this is no answer yet: ask the same again, under its ID.
	Working bool `json:"working,omitempty"`
}

// VerifiedEntry is the hash of one row.
type VerifiedEntry struct {
	Key  [][]byte `json:"k"`
	Hash []byte   `json:"h"`
}

// VerifyLooked is one row as it was looked at.
type VerifyLooked struct {
	Found   bool          `json:"found,omitempty"`
	Writer  string        `json:"writer,omitempty"` // the local transaction that wrote it: another one if the row was written since
	Hash    []byte        `json:"hash,omitempty"`
	Version VerifyVersion `json:"version"`
	// Reason is why this node may lawfully have another row than others have: one that it knows of, and that has an end. Passing:
	// it ends by itself, soon.
	Reason  string `json:"reason,omitempty"`
	Passing bool   `json:"passing,omitempty"`
	// Values and Row are there if the values were asked for. Long ones are cut.
	Cells []VerifyCell `json:"cells,omitempty"`
	Row   string       `json:"row,omitempty"`  // as JSON; empty if it is too long to be told
	Left  bool         `json:"left,omitempty"` // the values did not fit the answer; ask again
	// Changed: of what was to be changed, the row is not the one any more that was looked at.
	Changed bool   `json:"changed,omitempty"`
	Error   string `json:"error,omitempty"`
}

// VerifyCell is one value of a row.
type VerifyCell struct {
	Text *string `json:"t"` // nil: NULL
	Hash uint64  `json:"h"` // of all of it
}

// VerifyVersion is what is known of who wrote a row, or deleted it.
type VerifyVersion struct {
	Known VerifyKnown `json:"known"`
	// Origin and Stamp are set if it is known.
	Origin origin.Origin `json:"origin,omitzero"`
	Stamp  origin.Stamp  `json:"stamp,omitempty"`
}

// VerifyKnown says what is known of a version; the higher, the more it counts.
type VerifyKnown int

// What may be known of a version.
const (
	VerifyNothing VerifyKnown = iota // there is no row, and no delete of it is known
	VerifyForeign                    // the row was written by who is not of this cluster, and was not captured
	VerifyOld                        // the row is from before the cluster, or its writer is not known any more
	VerifyKnownBy                    // by Origin, at Stamp
)

// String tells it to a person.
func (v VerifyVersion) String() string {
	switch v.Known {
	case VerifyForeign:
		return "a session that is not replicated"
	case VerifyOld:
		return "not known any more"
	case VerifyKnownBy:
		return fmt.Sprintf("%s, %s", v.Origin, v.Stamp.Time().UTC().Format("2006-01-02 15:04:05.000000Z"))
	}
	return "-"
}

// Later reports whether v counts before w: what is known before what is not, and the later one of what is.
func (v VerifyVersion) Later(w VerifyVersion) bool {
	if v.Known != w.Known || v.Known != VerifyKnownBy {
		return v.Known > w.Known
	}
	return origin.Version{Stamp: v.Stamp, Origin: v.Origin}.Later(origin.Version{Stamp: w.Stamp, Origin: w.Origin})
}

// Verifier answers questions of who compares nodes, in one session, one question after the other. It is safe for concurrent use.
type Verifier struct {
	a           *Applier
	publication string
	turn        chan struct{} // of capacity 1: held by who asks

	// Of who holds the turn:
	conn   *pgx.Conn // nil: nobody has asked for a while
	run    *carefulRun
	path   string
	tables map[tableName]*verified

	mu     sync.Mutex // guards what follows
	closed bool
}

// NewVerifier returns one for the tables of a publication, while the Applier runs. Close it.
func (a *Applier) NewVerifier(publication string) *Verifier {
	return &Verifier{a: a, publication: publication, turn: make(chan struct{}, 1)}
}

// errVerifyClosed ends what is asked of a Verifier that was closed.
var errVerifyClosed = errors.New("the bridge stops")

// Rest gives the session back until the next question.
func (v *Verifier) Rest(ctx context.Context) {
	select {
	case v.turn <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-v.turn }()
	v.drop()
}

// Close ends it, when the question that is being answered is through.
func (v *Verifier) Close() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.Rest(context.Background())
}

// drop needs the turn.
func (v *Verifier) drop() {
	if v.conn != nil {
		v.conn.Close(context.Background())
		v.conn = nil
	}
}

// Ask answers a question.
func (v *Verifier) Ask(ctx context.Context, q *VerifyQuestion) (*VerifyAnswer, error) {
	if late, err := v.await(ctx, q.After); late || err != nil {
		return &VerifyAnswer{Late: late, Seen: v.a.progress.vector()}, err
	}
	select {
	case v.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-v.turn }()
	a, err := v.answer(ctx, q)
	if err != nil && (v.conn == nil || v.conn.IsClosed() || v.conn.PgConn().TxStatus() != 'I') {
		v.drop()
	}
	return a, err
}

func (v *Verifier) answer(ctx context.Context, q *VerifyQuestion) (*VerifyAnswer, error) {
	if err := v.open(ctx); err != nil {
		return nil, err
	}
	v.run.ctx = v.whole(ctx)
	if q.Kind == VerifyTables {
		return v.describe(ctx, q)
	}
	t, err := v.table(ctx, q.Table)
	if err == nil {
		t, err = v.partly(t, q)
	}
	if err == nil {
		err = t.withhold(q)
	}
	if err != nil {
		return nil, err
	}
	switch q.Kind {
	case VerifyDigest, VerifyList:
		return v.segment(ctx, t, q)
	case VerifyLook:
		return v.look(ctx, t, q)
	case VerifyYield:
		return v.yield(ctx, t, q)
	case VerifyWrite, VerifyDelete:
		return v.write(ctx, t, q)
	}
	return nil, fmt.Errorf("question %q is not known here; is this bridge as new as the others?", q.Kind)
}

// partly returns the table with the condition on those of its rows that are asked for, and that the asker has. Who asks himself has all.
func (v *Verifier) partly(t *verified, q *VerifyQuestion) (*verified, error) {
	p := v.a.opts.places(t.schema, t.name)
	if p == nil {
		return t, nil
	}
	some := *t
	some.only = []string{"true"}
	if q.Other {
		sql, err := placesSQL(p, q.Asker, t.table)
		if err != nil {
			return nil, err
		}
		some.only = append(some.only, sql)
	}
	if rows := q.Table.Rows; rows != nil {
		sql, err := t.valuesSQL(p, rows)
		if err != nil {
			return nil, err
		}
		some.only = append(some.only, sql)
	}
	return &some, nil
}

// withhold refuses to tell another node of columns whose values it may not have.
func (t *verified) withhold(q *VerifyQuestion) error {
	if t.hidden = nil; q.Other {
		t.hidden = t.withheldFrom(q.Asker)
	}
	for _, name := range t.columns {
		if t.hidden != nil && slices.Contains(t.hidden.columns, name) {
			return fmt.Errorf("column %s of table %s is not for node %s (topology.columns)", pgx.Identifier{name}.Sanitize(), t.quoted, q.Asker)
		}
	}
	return nil
}

// verifySettings are those under which values are written as text alike on all nodes, besides sessionSettings.
var verifySettings = map[string]string{"lc_monetary": "C", "lock_timeout": keeperLockTimeout}

func (v *Verifier) open(ctx context.Context) error {
	v.mu.Lock()
	closed := v.closed
	v.mu.Unlock()
	if closed {
		return errVerifyClosed
	}
	if v.conn != nil && !v.conn.IsClosed() {
		return nil
	}
	conn, err := connect(ctx, v.a.opts.DSN, fmt.Sprintf("pgbridge %s verify", v.a.opts.Node), verifySettings)
	if err != nil {
		return err
	}
	v.conn, v.path, v.tables = conn, sessionSettings["search_path"], map[tableName]*verified{}
	if v.run, err = v.a.sideRun(ctx, conn); err != nil {
		return err
	}
	wal := v.a.wal.Load()
	if wal == nil {
		return errors.New("the bridge does not run yet")
	}
	v.run.wal = *wal
	return nil
}

// whole is for what is asked over the catalog's connection, which all others need: a question that is given up must not end it.
func (v *Verifier) whole(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// verified is a table that is being compared.
type verified struct {
	*table
	m       *mapping
	columns []string  // as the question has them
	key     []int     // columns of the key, in the order of the question
	cells   []int     // columns that are compared, in the order of the question
	path    string    // search_path that has the operators of the key's types
	only    []string  // conditions on alias t: which of its rows are meant
	hidden  *withheld // what who asks may not have; nil: nothing
}

// describe lists the tables.
func (v *Verifier) describe(ctx context.Context, q *VerifyQuestion) (*VerifyAnswer, error) {
	clear(v.tables)
	var err error
	if v.run, err = v.a.sideRun(ctx, v.conn); err != nil { // what it knows of tables may have changed
		return nil, err
	}
	v.run.wal, v.run.ctx = *v.a.wal.Load(), v.whole(ctx)
	v.run.digests = rowkey.NewDigests(v.a.catalog.ask)
	rows, err := v.conn.Query(ctx, `SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1 ORDER BY schemaname, tablename`, v.publication)
	if err != nil {
		return nil, fmt.Errorf("read published tables: %w", err)
	}
	names, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n tableName, err error) { return n, row.Scan(&n.schema, &n.name) })
	if err != nil {
		return nil, fmt.Errorf("read published tables: %w", err)
	}
	a := &VerifyAnswer{Tables: []*VerifyTable{}}
	for _, n := range names {
		d := &VerifyTable{Schema: n.schema, Name: n.name}
		a.Tables = append(a.Tables, d)
		t, err := v.a.catalog.table(v.whole(ctx), n.schema, n.name)
		if isBlocked(err) {
			d.Problem = err.Error()
			continue
		}
		if err != nil {
			return nil, err
		}
		var hidden *withheld
		if q.Other {
			hidden = t.withheldFrom(q.Asker)
		}
		for i := range t.cols {
			if !t.cols[i].generated && (hidden == nil || !slices.Contains(hidden.columns, t.cols[i].name)) {
				d.Columns = append(d.Columns, t.cols[i].name)
			}
		}
		slices.Sort(d.Columns)
		d.Merged = t.merge != nil
		if d.Key, err = v.keyOrder(ctx, t); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// keyOrderSQL finds the index of a key, which is known by its columns: of several, any will do.
const keyOrderSQL = `SELECT ARRAY(SELECT a.attname::text FROM unnest((i.indkey[0:i.indnkeyatts-1])::int2[]) WITH ORDINALITY u(num, n)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.num ORDER BY u.n) FROM pg_index i
	WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY i.indisprimary DESC, i.indexrelid`

// keyOrder returns the columns of the key as the index has them that the server walks.
func (v *Verifier) keyOrder(ctx context.Context, t *table) ([]string, error) {
	var key []string
	for _, k := range t.key {
		key = append(key, t.cols[k].name)
	}
	rows, err := v.conn.Query(ctx, keyOrderSQL, t.oid)
	if err != nil {
		return nil, fmt.Errorf("read indexes of %s: %w", t.quoted, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil {
		return nil, fmt.Errorf("read indexes of %s: %w", t.quoted, err)
	}
	for _, order := range all {
		if slices.Equal(slices.Sorted(slices.Values(order)), slices.Sorted(slices.Values(key))) {
			return order, nil
		}
	}
	return key, nil
}

// table returns the table of a question, with its columns.
func (v *Verifier) table(ctx context.Context, d *VerifyTable) (*verified, error) {
	if d == nil {
		return nil, errors.New("the question names no table")
	}
	n := tableName{d.Schema, d.Name}
	if t := v.tables[n]; t != nil && slices.Equal(t.columns, d.Columns) {
		return t, v.follow(ctx, t.path)
	}
	plain, err := v.a.catalog.tableNow(v.whole(ctx), d.Schema, d.Name)
	if err != nil {
		return nil, err
	}
	t := &verified{table: plain, columns: d.Columns}
	find := func(name string) (int, error) {
		i := slices.IndexFunc(plain.cols, func(c column) bool { return c.name == name })
		if i < 0 {
			return 0, fmt.Errorf("table %s has no column %s here any more; compare it again", plain.quoted, pgx.Identifier{name}.Sanitize())
		}
		return i, nil
	}
	path := []string{sessionSettings["search_path"]}
	for _, name := range d.Key {
		i, err := find(name)
		if err != nil {
			return nil, err
		}
		t.key = append(t.key, i)
		schema := pgx.Identifier{plain.cols[i].typ.root().schema}.Sanitize()
		if schema != `"pg_catalog"` && !slices.Contains(path, schema) {
			path = append(path, schema)
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(t.key)), slices.Sorted(slices.Values(plain.key))) {
		return nil, fmt.Errorf("table %s has another key here; give it the same primary key on all nodes", plain.quoted)
	}
	for _, name := range d.Columns {
		i, err := find(name)
		if err != nil {
			return nil, err
		}
		t.cells = append(t.cells, i)
	}
	if t.m, err = v.run.selfMapping(plain); err != nil {
		return nil, err
	}
	t.path = strings.Join(path, ", ")
	v.tables[n] = t
	return t, v.follow(ctx, t.path)
}

// follow sets the search_path.
func (v *Verifier) follow(ctx context.Context, path string) error {
	if v.path == path {
		return nil
	}
	if _, err := v.conn.Exec(ctx, "SELECT set_config('search_path', $1, false)", path); err != nil {
		return fmt.Errorf("set search_path: %w", err)
	}
	v.path = path
	return nil
}

// verifyPatience is how long an answer waits for what must have been seen before.
const verifyPatience = 2 * time.Second

// errVerifyLate ends that.
var errVerifyLate = errors.New("it has not been seen yet")

// await waits a while until this node has what was seen elsewhere. What is parked counts as seen: looks tell of it.
func (v *Verifier) await(ctx context.Context, after origin.Vector) (late bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, verifyPatience, errVerifyLate)
	defer cancel()
	err = v.a.progress.hold(ctx, after, v.a.own, v.a.own, func(origin.Entry) {})
	if errors.Is(err, errVerifyLate) {
		return true, nil
	}
	return false, err
}
