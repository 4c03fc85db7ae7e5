package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// The states of a node that joins with rows of another one.
const (
	Copying = "copying" // rows are being copied; no bridge may run
	Copied  = "copied"  // a bridge takes in what came meanwhile before it reads on
	Joined  = "joined"
)

// Joining is how far a node has come with joining.
type Joining struct {
	Donor       string
	Since       origin.Vector
	State       string
	Rows, About int64 // copied, and about how many there are
	Bytes       int64 // copied
	Parts, Done int
	Existing    int64 // rows may have stood here before this transaction id; 0: the tables were empty
	Kept        int64 // of Rows, those that stood here before
}

const joiningSQL = `SELECT donor, since, state, COALESCE(p.rows, 0), COALESCE(p.about, 0), COALESCE(p.bytes, 0), p.parts, p.done,
		COALESCE(existing, 0), COALESCE(p.kept, 0) FROM pgbridge.joining,
	(SELECT sum(rows)::int8, sum(greatest(rows, CASE WHEN done THEN 0 ELSE about END))::int8, sum(bytes)::int8, count(*), count(*) FILTER (WHERE done), sum(kept)::int8
		FROM pgbridge.joining_part) p(rows, about, bytes, parts, done, kept)`

// ReadJoining returns how far the node of a database has come; nil if it does not join, or has not begun.
func ReadJoining(ctx context.Context, conn *pgx.Conn) (*Joining, error) {
	j := &Joining{}
	var since []byte
	err := conn.QueryRow(ctx, joiningSQL).Scan(&j.Donor, &since, &j.State, &j.Rows, &j.About, &j.Bytes, &j.Parts, &j.Done, &j.Existing, &j.Kept)
	if errors.Is(err, pgx.ErrNoRows) || hasCode(err, "42P01", "3F000") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.joining: %w", explain(err))
	}
	vectors, err := wire.ParseVectors(since, 1)
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.joining: %w", err)
	}
	j.Since = vectors[0]
	return j, nil
}

// CopyPart is a part of a table that is copied by one session, page by page.
type CopyPart struct {
	Schema, Name string
	Part         int
	Columns      []string
	UpTo, At     []string
	About        int64
	Page         int // rows
}

func (p *CopyPart) table() string { return pgx.Identifier{p.Schema, p.Name}.Sanitize() }

// copied are its columns, each behind a prefix.
func (p *CopyPart) copied(prefix string) string {
	columns := make([]string, len(p.Columns))
	for i := range columns {
		columns[i] = prefix + pgx.Identifier{p.Columns[i]}.Sanitize()
	}
	return strings.Join(columns, ", ")
}

// Joiner takes in the rows that a node is given before it is one (since.go). Its methods may be called by one goroutine at a time.
type Joiner struct {
	dsn, node string
	conn      *pgx.Conn
	catalog   *catalog
}

// OpenJoiner connects to the database of a node that joins, once Setup has run there.
func OpenJoiner(ctx context.Context, dsn, node string, merges []MergePolicy) (*Joiner, error) {
	j := &Joiner{dsn: dsn, node: node}
	var err error
	// What is copied is on disk when the state says so.
	j.conn, err = connect(ctx, dsn, fmt.Sprintf("pgbridge %s join", node), map[string]string{"enable_seqscan": "on", "enable_hashjoin": "on", "synchronous_commit": "local"})
	if err != nil {
		return nil, err
	}
	j.catalog = &catalog{conn: j.conn, types: map[uint32]*pgType{}, merges: merges}
	return j, nil
}

// Close gives the connection up.
func (j *Joiner) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	j.conn.Close(ctx)
}

// Lock makes sure that nobody else joins this node, and that no bridge runs for it. It is held until Close.
func (j *Joiner) Lock(ctx context.Context) error { return lockNode(ctx, j.conn) }

// State returns how far the node has come; nil if it has not begun.
func (j *Joiner) State(ctx context.Context) (*Joining, error) { return ReadJoining(ctx, j.conn) }

// Missing returns those of the tables that are not here.
func (j *Joiner) Missing(ctx context.Context, tables []CopyTable) (missing []string, err error) {
	for i := range tables {
		name := pgx.Identifier{tables[i].Schema, tables[i].Name}.Sanitize()
		var there bool
		if err := j.conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, name).Scan(&there); err != nil {
			return nil, fmt.Errorf("look for table %s: %w", name, err)
		}
		if !there {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// Fit returns the columns of a table that are to be copied. The error says why its rows cannot be taken in here.
func (j *Joiner) Fit(ctx context.Context, c *CopyTable) ([]string, error) {
	recs := wire.NewRecords(c.Relation)
	rec, err := recs.Next()
	if err != nil {
		return nil, fmt.Errorf("what the donor says of table %s.%s cannot be read: %w", c.Schema, c.Name, err)
	}
	rel, err := wire.ParseRelation(rec.Payload)
	if err != nil {
		return nil, fmt.Errorf("what the donor says of table %s.%s cannot be read: %w", c.Schema, c.Name, err)
	}
	t, err := j.catalog.table(ctx, c.Schema, c.Name)
	if err != nil {
		return nil, err
	}
	m, err := newMapping(rel, t)
	if err != nil {
		return nil, err
	}
	var columns []string
	for i, li := range m.cols {
		if li >= 0 {
			columns = append(columns, rel.Columns[i].Name)
		}
	}
	return columns, nil
}

// Empty returns an error if there are rows in a table.
func (j *Joiner) Empty(ctx context.Context, c *CopyTable) error {
	name := pgx.Identifier{c.Schema, c.Name}.Sanitize()
	var some bool
	if err := j.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+name+")").Scan(&some); err != nil {
		return fmt.Errorf("look into table %s: %w", name, explain(err))
	}
	if some && c.Merged {
		return &refusal{fmt.Errorf("table %s has rows here already, and is given whole to a node that joins, since it is merged (conflict.tables)", name), "run TRUNCATE " + name}
	}
	if some {
		return &refusal{fmt.Errorf("table %s has rows here already, and joining copies all of them", name),
			"give --existing if they are from a dump or a backup, or run TRUNCATE " + name + " if they are of no use"}
	}
	return nil
}

// Begin notes what is to be copied, of what all nodes have seen. existing: rows that stand here may stay.
func (j *Joiner) Begin(ctx context.Context, donor string, since origin.Vector, parts []CopyPart, existing bool) error {
	err := pgx.BeginFunc(ctx, j.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO pgbridge.joining (donor, since, existing) VALUES ($1, $2, CASE WHEN $3 THEN pg_current_xact_id()::text::int8 END)`,
			donor, wire.AppendVector(nil, since), existing); err != nil {
			return err
		}
		for i := range parts {
			p := &parts[i]
			if _, err := tx.Exec(ctx, `INSERT INTO pgbridge.joining_part (schema, name, part, columns, upto, at, about, page) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
				p.Schema, p.Name, p.Part, p.Columns, p.UpTo, p.At, p.About, p.Page); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note what is to be copied: %w", explain(err))
	}
	return nil
}

// From notes that another node gives the rows from now on.
func (j *Joiner) From(ctx context.Context, donor string) error {
	_, err := j.conn.Exec(ctx, `UPDATE pgbridge.joining SET donor = $1`, donor)
	return named("note the donor", err)
}

func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, explain(err))
}

// Left returns the parts that are not copied yet, the largest tables first.
func (j *Joiner) Left(ctx context.Context) ([]CopyPart, error) {
	rows, err := j.conn.Query(ctx, `SELECT schema, name, part, columns, upto, at, about, page FROM pgbridge.joining_part WHERE NOT done
		ORDER BY about DESC, schema, name, part`)
	if err != nil {
		return nil, named("read what is to be copied", err)
	}
	parts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[CopyPart])
	return parts, named("read what is to be copied", err)
}

// Loader writes pages. Its methods may be called by one goroutine at a time, and several Loaders work side by side.
type Loader struct {
	conn     *pgx.Conn
	catalog  *catalog
	existing int64
}

// NewLoader connects. existing is Joining.Existing.
func (j *Joiner) NewLoader(ctx context.Context, existing int64) (*Loader, error) {
	conn, err := connect(ctx, j.dsn, fmt.Sprintf("pgbridge %s join copy", j.node), nil)
	if err != nil {
		return nil, err
	}
	return &Loader{conn, &catalog{conn: conn, types: map[uint32]*pgType{}, merges: j.catalog.merges}, existing}, nil
}

// Close gives the connection up.
func (l *Loader) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	l.conn.Close(ctx)
}

// Load writes a page, of so many bytes, behind what was copied of a part, and moves the part's place in the same transaction. was is what
// was offered for it; nil if nothing was. It returns how many rows are here, which stood here before or not.
func (l *Loader) Load(ctx context.Context, p *CopyPart, page io.Reader, bytes int64, end *CopyEnd, was *Offer) (int64, error) {
	stay := int64(0)
	err := pgx.BeginFunc(ctx, l.conn, func(tx pgx.Tx) error {
		written, err := int64(0), error(nil)
		if was == nil {
			var tag pgconn.CommandTag
			tag, err = l.conn.PgConn().CopyFrom(ctx, page, fmt.Sprintf("COPY %s (%s) FROM STDIN", p.table(), p.copied("")))
			written = tag.RowsAffected()
		} else {
			if stay, err = l.clear(ctx, p, was, end); err == nil && bytes > 0 {
				written, err = l.fill(ctx, p, was, page)
			}
		}
		if err != nil {
			return err
		}
		if written != end.Rows {
			return fmt.Errorf("the page has %d rows and says %d", written, end.Rows)
		}
		if _, err := tx.Exec(ctx, `INSERT INTO pgbridge.joining_page VALUES (pg_current_xact_id()::text::int8)`); err != nil {
			return err
		}
		moved, err := tx.Exec(ctx, `UPDATE pgbridge.joining_part SET at = $1, done = $2, rows = rows + $3, bytes = bytes + $4, kept = kept + $9
			WHERE schema = $5 AND name = $6 AND part = $7 AND at IS NOT DISTINCT FROM $8 AND NOT done`,
			end.Last, end.Last == nil, end.Rows+stay, bytes, p.Schema, p.Name, p.Part, p.At, stay)
		if err == nil && moved.RowsAffected() != 1 {
			err = errors.New("somebody else copies it, too")
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("write rows of %s: %w", p.table(), explain(err))
	}
	p.At = end.Last
	return end.Rows + stay, nil
}

// olderPatience is how long transactions that began before the copy may take to end.
const olderPatience = time.Minute

// Finish makes the copied rows those of a node that has seen since, when all parts are done: they count as written before it was one.
func (j *Joiner) Finish(ctx context.Context, since origin.Vector) error {
	if err := j.untouched(ctx); err != nil {
		return err
	}
	var first int64
	end := time.Now().Add(olderPatience)
	for {
		var all bool
		err := j.conn.QueryRow(ctx, `SELECT x, x > COALESCE((SELECT max(xid) FROM pgbridge.joining_page), 0)
			FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::int8) s(x)`).Scan(&first, &all)
		if err != nil {
			return named("read transaction ids", err)
		}
		if all {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("a transaction that began before the copy does not end within %s; see pg_stat_activity and pg_prepared_xacts, end it, and go on", olderPatience)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return named("note what was copied", pgx.BeginFunc(ctx, j.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE pgbridge.node SET first_xid = $1`, first); err != nil {
			return err
		}
		for _, e := range since {
			if _, err := tx.Exec(ctx, `UPDATE pgbridge.position SET seq = $1, stamp = $2, stream_seq = 0 WHERE origin = $3 AND epoch = $4`,
				int64(e.Seq), int64(e.Stamp), e.Origin.Node, int64(e.Origin.Epoch)); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `UPDATE pgbridge.joining SET state = $1`, Copied)
		return err
	}))
}

// untouched checks that the tables hold what was copied and nothing else: what users write here before the node is one reaches nobody.
func (j *Joiner) untouched(ctx context.Context) error {
	state, err := j.State(ctx)
	if err != nil {
		return err
	}
	rows, err := j.conn.Query(ctx, `SELECT schema, name, sum(rows)::int8 FROM pgbridge.joining_part GROUP BY 1, 2 ORDER BY 1, 2`)
	if err != nil {
		return named("read what was copied", err)
	}
	type copied struct {
		Schema, Name string
		Rows         int64
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[copied])
	if err != nil {
		return named("read what was copied", err)
	}
	for _, t := range all {
		name := pgx.Identifier{t.Schema, t.Name}.Sanitize()
		var here, ours int64 // ours: copied, or there before
		err := j.conn.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE p.xid IS NOT NULL OR $1 > 0 AND age(t.xmin) > age(($1 % 4294967296)::text::xid))
			FROM `+name+` t LEFT JOIN pgbridge.joining_page p ON p.xid % 4294967296 = t.xmin::text::int8`, state.Existing).Scan(&here, &ours)
		if err != nil {
			return fmt.Errorf("count rows of %s: %w", name, explain(err))
		}
		if here != t.Rows || ours != t.Rows {
			return &refusal{fmt.Errorf("table %s has %d rows, of which %d were copied or found the same, and there were %d of these in all: somebody has written to it before this node has joined",
				name, here, ours, t.Rows), "keep users away, and begin anew: run DROP SCHEMA pgbridge CASCADE, empty the tables, and join again"}
		}
	}
	return nil
}

// HasJoined notes that what came while rows were copied is here.
func (a *Applier) HasJoined(ctx context.Context) error {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	return named("note that the node has joined", pgx.BeginFunc(ctx, a.catalog.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM pgbridge.joining_page`)
		if err == nil {
			_, err = tx.Exec(ctx, `DELETE FROM pgbridge.joining_part`)
		}
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE pgbridge.joining SET state = $1, ended_at = now()`, Joined)
		}
		return err
	}))
}

// Joining returns how far this node has come with joining; nil if it did not join with rows of another one.
func (a *Applier) Joining(ctx context.Context) (*Joining, error) {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	return ReadJoining(ctx, a.catalog.conn)
}
