package apply

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// This file reads pgbridge.parked, for the workers and for whoever asks on an operator's behalf. Requests go through the
// table too, so that no bridge need run.

// ParkedTransaction is a transaction of another node that was put aside because it cannot be applied here. Its JSON is
// that of "pgbridge parked list --json".
type ParkedTransaction struct {
	ID         int64           `json:"id"`
	At         time.Time       `json:"at"` // when it was parked
	Origin     string          `json:"origin"`
	Seq        uint64          `json:"seq"`
	Stamp      time.Time       `json:"stamp"`
	Changes    int64           `json:"changes"`
	DependsOn  []string        `json:"depends_on"`         // parked before it, as origin:seq
	SQLState   string          `json:"sqlstate,omitempty"` // why the server refused it last; empty: it was not tried
	Message    string          `json:"message,omitempty"`
	Constraint string          `json:"constraint,omitempty"`
	Table      string          `json:"table,omitempty"` // of the change that was refused, else of the first one
	Key        json.RawMessage `json:"key,omitempty"`
	Attempts   int             `json:"attempts"` // since it is parked
	TriedAt    time.Time       `json:"tried_at,omitzero"`
	Request    string          `json:"request,omitempty"` // retry or discard, until the bridge has seen to it
}

// Name is the transaction as origin:seq.
func (p *ParkedTransaction) Name() string { return fmt.Sprintf("%s:%d", p.Origin, p.Seq) }

// ParkedChange is one change of a parked transaction.
type ParkedChange struct {
	Table string `json:"table"`
	Kind  string `json:"kind"` // insert, update, delete or truncate
	// The images as JSON. Old is the key, or the whole row if the origin's replica identity is FULL. What an update leaves
	// unchanged is not in New.
	Old json.RawMessage `json:"old,omitempty"`
	New json.RawMessage `json:"new,omitempty"`
	// Unread says why this server cannot show the values: they are then as they came, binary ones in hexadecimal.
	Unread string `json:"unread,omitempty"`
}

// ErrNotParked means that no such transaction is parked.
var ErrNotParked = errors.New("no such transaction is parked; pgbridge parked list shows those that are")

// parkedName is how a person names a transaction of the table.
const parkedName = `origin || CASE WHEN epoch > 1 THEN '/' || epoch ELSE '' END || ':' || seq`

// Of what depends_on names, only those that are parked still keep a transaction so: whoever reads it leaves the others out.
const parkedColumns = `SELECT id, at, origin, epoch, seq, stamp, changes, depends_on,
	COALESCE(sqlstate, ''), COALESCE(message, ''),
	COALESCE(constraint_name, ''), COALESCE(relation, tables[1] || '.' || tables[2], ''), key::text, attempts, tried_at, COALESCE(request, '')
	FROM pgbridge.parked`

func scanParked(row pgx.Row) (*ParkedTransaction, error) {
	p := &ParkedTransaction{}
	var o origin.Origin
	var epoch, seq, stamp int64
	var key *string
	var tried *time.Time
	err := row.Scan(&p.ID, &p.At, &o.Node, &epoch, &seq, &stamp, &p.Changes, &p.DependsOn, &p.SQLState, &p.Message,
		&p.Constraint, &p.Table, &key, &p.Attempts, &tried, &p.Request)
	if err != nil {
		return nil, err
	}
	o.Epoch = uint32(epoch)
	p.At, p.Origin, p.Seq, p.Stamp = p.At.UTC(), o.String(), uint64(seq), origin.Stamp(stamp).Time()
	if key != nil {
		p.Key = json.RawMessage(*key)
	}
	if tried != nil {
		p.TriedAt = tried.UTC()
	}
	return p, nil
}

// ParkedTransactions returns what is parked at the node of this database, the oldest first. ErrNotSetUp if it is not set
// up.
func ParkedTransactions(ctx context.Context, dsn string) ([]ParkedTransaction, error) {
	conn, err := connectPlain(ctx, dsn, "pgbridge parked")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, parkedColumns+" ORDER BY id")
	if err != nil {
		return nil, parkedError(err)
	}
	names := map[string]bool{}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (ParkedTransaction, error) {
		p, err := scanParked(row)
		if err != nil {
			return ParkedTransaction{}, err
		}
		names[p.Name()] = true
		return *p, nil
	})
	for i := range all { // in the database it would take the square of their number
		all[i].DependsOn = slices.DeleteFunc(all[i].DependsOn, func(name string) bool { return !names[name] })
	}
	return all, parkedError(err)
}

func parkedError(err error) error {
	if hasCode(err, "42P01", "3F000") {
		return ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read pgbridge.parked: %w", explain(err))
	}
	return nil
}

// whichParked is the condition for a transaction that is named by its id or as origin:seq.
const whichParked = ` WHERE id::text = $1 OR ` + parkedName + ` = $1`

// FindParked returns one parked transaction, named by its id or as origin:seq; ErrNotParked if it is not there.
func FindParked(ctx context.Context, dsn, name string) (*ParkedTransaction, error) {
	conn, err := connectPlain(ctx, dsn, "pgbridge parked")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	return findParked(ctx, conn, name)
}

func findParked(ctx context.Context, conn *pgx.Conn, name string) (*ParkedTransaction, error) {
	p, err := scanParked(conn.QueryRow(ctx, parkedColumns+whichParked, name))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotParked)
	}
	if err == nil {
		err = conn.QueryRow(ctx, `SELECT ARRAY(SELECT d FROM unnest($1::text[]) d WHERE d IN (SELECT `+parkedName+` FROM pgbridge.parked))`, p.DependsOn).Scan(&p.DependsOn)
	}
	return p, parkedError(err)
}

// RequestParked asks for parked transactions to be tried again or discarded, as request says; name none for all. A bridge
// that runs does it within a second, one that does not when it starts: the answer says which.
func RequestParked(ctx context.Context, dsn, name, request string) (running bool, err error) {
	conn, err := connectPlain(ctx, dsn, "pgbridge parked")
	if err != nil {
		return false, err
	}
	defer conn.Close(ctx)
	sql, params := `UPDATE pgbridge.parked SET request = $1`, []any{request}
	if name != "" {
		p, err := findParked(ctx, conn, name)
		if err != nil {
			return false, err
		}
		sql, params = sql+` WHERE id = $2`, append(params, p.ID)
	}
	if _, err := conn.Exec(ctx, sql, params...); err != nil {
		return false, parkedError(err)
	}
	// Who runs holds the node's lock (lockNode).
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND objid = 0
		AND classid = 'pgbridge.node'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&running)
	if err != nil {
		return false, fmt.Errorf("look for a bridge that runs: %w", explain(err))
	}
	return running, nil
}

// ShowParked returns one parked transaction with its changes, of which it shows the first so many.
func ShowParked(ctx context.Context, dsn, name string, limit int) (*ParkedTransaction, []ParkedChange, error) {
	conn, err := connect(ctx, dsn, "pgbridge parked", map[string]string{"enable_seqscan": "on", "enable_hashjoin": "on"})
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close(ctx)
	p, err := findParked(ctx, conn, name)
	if err != nil {
		return nil, nil, err
	}
	r, err := readParked(ctx, conn, p.ID)
	if err != nil {
		return nil, nil, err
	}
	if r == nil {
		return nil, nil, fmt.Errorf("%s: %w", name, ErrNotParked)
	}
	s := shower{ctx: ctx, catalog: &catalog{conn: conn, types: map[uint32]*pgType{}}, mappings: map[*wire.Relation]*mapping{}}
	all := []ParkedChange{}
	changes, err := newChanges(r.txn)
	if err != nil {
		return nil, nil, err
	}
	err = eachChange(changes, func(rec wire.Record, rels []*wire.Relation, ch *wire.Change) error {
		for _, rel := range rels {
			if len(all) < limit {
				all = append(all, s.show(rec.Kind, rel, ch))
			}
		}
		return nil
	})
	return p, all, err
}

// shower makes changes readable.
type shower struct {
	ctx      context.Context
	catalog  *catalog
	mappings map[*wire.Relation]*mapping
}

var kindNames = map[wire.Kind]string{wire.KindInsert: "insert", wire.KindUpdate: "update", wire.KindDelete: "delete", wire.KindTruncate: "truncate"}

func (s *shower) show(kind wire.Kind, rel *wire.Relation, ch *wire.Change) ParkedChange {
	c := ParkedChange{Table: rel.Schema + "." + rel.Name, Kind: kindNames[kind]}
	if kind == wire.KindTruncate {
		return c
	}
	m, err := s.mapping(rel)
	if err == nil {
		m.readable(ch)
		old := ch.Old
		if len(old) > 0 && !ch.OldFull {
			old = m.keyOnly(old)
		}
		if c.Old, err = s.image(m, old); err == nil {
			c.New, err = s.image(m, ch.New)
		}
	}
	if err != nil {
		c.Unread, c.Old, c.New = err.Error(), rawImage(rel, ch.Old), rawImage(rel, ch.New)
	}
	return c
}

func (s *shower) mapping(rel *wire.Relation) (*mapping, error) {
	if m := s.mappings[rel]; m != nil {
		return m, nil
	}
	t, err := s.catalog.table(s.ctx, rel.Schema, rel.Name)
	if err != nil {
		return nil, err
	}
	m, err := newMapping(rel, t)
	if err == nil {
		s.mappings[rel] = m
	}
	return m, err
}

func (s *shower) image(m *mapping, tuple []wire.Value) (json.RawMessage, error) {
	if len(tuple) == 0 {
		return nil, nil
	}
	return tupleImage(s.ctx, s.catalog.conn, m, tuple)
}

// tupleImage has the server write a tuple as JSON, without what it leaves unchanged.
func tupleImage(ctx context.Context, conn *pgx.Conn, m *mapping, tuple []wire.Value) (json.RawMessage, error) {
	i := images{}
	if err := i.make(m, tuple, nil, look{}); err != nil {
		return nil, err
	}
	values, formats := raw(i.ps)
	r := conn.PgConn().ExecParams(ctx, "SELECT "+i.remote, values, i.types, formats, nil).Read()
	if r.Err != nil || len(r.Rows) == 0 {
		return nil, r.Err
	}
	return r.Rows[0][0], nil
}

// rawImage is a tuple as JSON as far as it can be made without the server.
func rawImage(rel *wire.Relation, tuple []wire.Value) json.RawMessage {
	if len(tuple) == 0 {
		return nil
	}
	columns := map[string]*string{}
	for i, v := range tuple {
		if i >= len(rel.Columns) || v.Format == wire.Unchanged {
			continue
		}
		var text *string
		switch v.Format {
		case wire.Text:
			s := string(v.Data)
			text = &s
		case wire.Binary:
			s := `\x` + hex.EncodeToString(v.Data)
			text = &s
		}
		columns[rel.Columns[i].Name] = text
	}
	b, _ := json.Marshal(columns) // texts always encode
	return b
}

// parkedRow is a row of pgbridge.parked as far as it is needed to apply it.
type parkedRow struct{ txn *txn }

// readParked reads a parked transaction; nil if it is not there.
func readParked(ctx context.Context, conn *pgx.Conn, id int64) (*parkedRow, error) {
	t := &txn{relations: map[uint32]*wire.Relation{}}
	var epoch, seq, stamp int64
	var deps []byte
	err := conn.QueryRow(ctx, `SELECT origin, epoch, seq, stamp, deps, body FROM pgbridge.parked WHERE id = $1`, id).
		Scan(&t.origin.Node, &epoch, &seq, &stamp, &deps, &t.body)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read parked transaction %d: %w", id, err)
	}
	v, err := wire.ParseVectors(deps, 2)
	if err != nil {
		return nil, fmt.Errorf("parked transaction %d: %w", id, err)
	}
	t.origin.Epoch, t.Seq, t.Stamp, t.up, t.low = uint32(epoch), uint64(seq), origin.Stamp(stamp), v[0], v[1]
	return &parkedRow{t}, nil
}
