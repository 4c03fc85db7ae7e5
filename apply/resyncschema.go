package apply

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Rows that come instead of transactions are those of the donor's schema. So a delta tells which schema changes the donor has made; who
// takes it in makes first what he lacks of them, in the same transaction and in the donor's order. What is here and the donor lacks, his
// rows are fitted to, as those of a transaction whose author lacked it.

// MadeChange is a schema change that a donor has made, as a joining node notes it.
type MadeChange struct {
	ID         int64           `json:"id"`
	Origin     string          `json:"origin"`
	Epoch      int64           `json:"epoch"`
	Seq        int64           `json:"seq"`
	Role       string          `json:"role"`
	SearchPath string          `json:"search_path"`
	SQL        string          `json:"sql"`
	Changes    json.RawMessage `json:"changes"`
	Summary    []string        `json:"summary"`
}

// MadeChanges returns the schema changes that are made here. NotYet: capture has still to come to one of them.
func (a *Applier) MadeChanges(ctx context.Context) ([]MadeChange, error) {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	all, err := a.madeChanges(ctx, a.catalog.conn)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.Seq == 0 {
			return nil, &NotYet{Reason: "a schema change is being captured"}
		}
	}
	return all, nil
}

// NoteMade notes, at a node that joins, which schema changes the donor's tables have: the others' rows that lack them are fitted, and
// the delta at the end does not make them again.
func (j *Joiner) NoteMade(ctx context.Context, all []MadeChange) error {
	return named("note schema changes", pgx.BeginFunc(ctx, j.conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM pgbridge.ddl`) // of another donor, from which the copy was not begun
		for _, m := range all {
			if err == nil {
				_, err = tx.Exec(ctx, `INSERT INTO pgbridge.ddl (id, origin, epoch, seq, xid, role, search_path, sql, changes, summary)
					VALUES ($1, $2, $3, $4, pg_current_xact_id(), $5, $6, $7, $8, $9)`,
					m.ID, m.Origin, m.Epoch, m.Seq, m.Role, m.SearchPath, m.SQL, m.Changes, m.Summary)
			}
		}
		return err
	}))
}

// madeChanges reads them over conn; Seq is 0 where capture has not come to one.
func (a *Applier) madeChanges(ctx context.Context, conn *pgx.Conn) ([]MadeChange, error) {
	rows, err := conn.Query(ctx, `SELECT id, origin, epoch, coalesce(seq, 0), role, search_path, sql, changes, summary FROM pgbridge.ddl ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("read schema changes: %w", explain(err))
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[MadeChange])
	if err != nil {
		return nil, fmt.Errorf("read schema changes: %w", explain(err))
	}
	for i := range all {
		if m := &all[i]; m.Seq == 0 {
			m.Seq = int64(a.schema.seqOf(m.ID))
		}
	}
	return all, nil
}

// seqOf is the seq of a change that is known; 0: none is known yet.
func (s *schemaChanges) seqOf(id int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.all {
		if c.id == id {
			return c.seq.Load()
		}
	}
	return 0
}

// made writes the schema changes in the snapshot that the other node lacks, or may lack.
func (x *donor) made(ctx context.Context, a *Applier, have origin.Vector) error {
	all, err := a.madeChanges(ctx, x.reader)
	if err != nil {
		return err
	}
	for _, m := range all {
		made := &wire.Made{Origin: origin.Origin{Node: m.Origin, Epoch: uint32(m.Epoch)}, Seq: uint64(m.Seq),
			Schema: wire.Schema{Role: m.Role, SearchPath: m.SearchPath, SQL: m.SQL}}
		if made.Seq == 0 || !x.seen.Covers(made.Origin, made.Seq) {
			return &NoDelta{fmt.Sprintf("schema change %d there is not captured yet", m.ID)}
		}
		if x.whole == nil && have.Covers(made.Origin, made.Seq) {
			continue
		}
		if err := x.write(wire.AppendMade(x.buf[:0], made)); err != nil {
			return err
		}
	}
	return nil
}

// planSchema takes in which schema changes are here, before an attempt.
func (r *resync) planSchema(ctx context.Context) error {
	r.worker.stale, r.made = true, 0
	if err := r.refresh(ctx); err != nil {
		return err
	}
	r.lag = r.schema.beyond(r.seen)
	return nil
}

// beyond are the changes here that who has seen v lacks.
func (s *schemaChanges) beyond(v origin.Vector) (l lag) {
	for _, c := range s.since(0) {
		if seq := c.seq.Load(); seq == 0 || !v.Covers(c.origin, seq) {
			l = append(l, lacked{c, false})
		}
	}
	return l
}

const (
	// haveMadeSQL says whether a change is made here already. One that was made here, whose number is not known here, is known from now
	// on: data that were set back may be from before it was noted.
	haveMadeSQL = `WITH n AS (UPDATE pgbridge.ddl SET seq = $3 WHERE origin = $1 AND epoch = $2 AND seq IS NULL AND sql = $4 RETURNING 1)
		SELECT EXISTS (SELECT FROM n) OR EXISTS (SELECT FROM pgbridge.ddl WHERE origin = $1 AND epoch = $2 AND seq = $3)`
	sameSchemaSQL = `SELECT 1/count(*) FROM (SELECT WHERE ` + generationSQL + ` = $1) s`
)

// makeSchema makes the changes that are lacking in the open transaction. Until the function that it returns is called, tables are read
// over the transaction's own session.
func (r *resync) makeSchema(ctx context.Context) (func(), error) {
	c := r.carefulRun
	lacked, err := r.lackedHere(ctx)
	if err != nil || len(lacked) == 0 {
		return func() {}, err
	}
	// What the server hashes it is asked for while rows are read in this session.
	digests := c.digests
	done := c.ownCatalog()
	c.digests = digests
	first := c.t
	defer func() { c.t = first }()
	if _, err := c.conn.Exec(ctx, giveWaySQL); err != nil {
		return done, fmt.Errorf("set lock_timeout: %w", err)
	}
	for _, m := range lacked {
		c.t = &txn{Begin: wire.Begin{Seq: m.Seq}, origin: m.Origin}
		if err := c.makeChange(ctx, &m.Schema); hasCode(err, "55P03") {
			return done, &Blocked{Reason: fmt.Sprintf("schema change %s waits for sessions that use its tables; end long transactions", label(c.t.entry())), Err: err}
		} else if err != nil {
			return done, err
		}
		r.log.Info("schema changed", "origin", m.Origin.String(), "seq", m.Seq)
	}
	return done, r.resetSession(ctx)
}

// lackedHere returns the changes that are not made here.
func (r *resync) lackedHere(ctx context.Context) ([]*wire.Made, error) {
	if len(r.theirs) == 0 {
		return nil, nil
	}
	if err := r.flush(ctx); err != nil {
		return nil, err
	}
	var lacked []*wire.Made
	for _, m := range r.theirs {
		var have bool
		err := r.conn.QueryRow(ctx, haveMadeSQL, m.Origin.Node, int64(m.Origin.Epoch), int64(m.Seq), m.SQL).Scan(&have)
		if err != nil {
			return nil, fmt.Errorf("read schema changes: %w", err)
		}
		if !have {
			lacked = append(lacked, m)
		}
	}
	return lacked, nil
}

// settleSchemaSQL numbers changes that this node made and nobody has got: capture begins behind them. They count as if all had them, so
// that rows of nodes where they are not made by hand yet are refused, and not fitted.
func (b *comeback) settleSchemaSQL() string {
	return fmt.Sprintf("UPDATE pgbridge.ddl SET seq = %d WHERE origin = %s AND epoch = %d AND seq IS NULL", b.seen.Seq(b.own), literal(b.own.Node), b.own.Epoch)
}

// pushSameSchema lets the transaction fail if the schema has been changed since it was planned.
func (r *resync) pushSameSchema() {
	generation := r.generation
	if r.made != 0 {
		generation = r.made
	}
	r.push("compare schema", &statement{sql: sameSchemaSQL, types: []uint32{oidInt8}}, []param{int64Param(generation)})
}

// eachRelation calls f for the tables that the delta describes and that are here.
func (r *resync) eachRelation(f func(*wire.Relation) error) error {
	err := r.records(func(rec wire.Record) error {
		if rec.Kind != wire.KindRelation {
			return nil
		}
		rel, err := wire.ParseRelation(rec.Payload)
		if err != nil || r.lag.drops(rel) {
			return err
		}
		return f(rel)
	})
	if err != nil {
		return fmt.Errorf("read delta: %w", err)
	}
	return nil
}
