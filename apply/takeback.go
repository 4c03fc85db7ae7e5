package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/rowkey"
)

// takebacks removes remote rows that a local delete beats which capture met only after they had been
// inserted (PROOF.md R19). It works in the session of the bridge's own replication origin, so that
// capture does not take its deletes for users'.
type takebacks struct {
	conn     *pgx.Conn
	own      origin.Origin
	ids      []uint32 // roidents of the remote origins
	origins  []origin.Origin
	catalog  *catalog
	digests  *rowkey.Digests
	absence  *absence
	progress *progress
	markers  *markers
	failed   func(err error) // told of a take-back that has to wait
	journal  *journal        // nil if no table is merged
	kept     *quarantine
}

// takesAtOnce is how many rows are taken back in one network round trip.
const takesAtOnce = 2000

func (b *takebacks) run(ctx context.Context) error {
	for {
		applied, changed := b.progress.watch()
		due := b.absence.due(applied, takesAtOnce)
		if len(due) == 0 {
			if !b.absence.takesWait() {
				changed = nil // only a new one can be due
			}
			select {
			case <-b.absence.wake:
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		if err := b.takeAll(ctx, due); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if lost(err) {
				return fmt.Errorf("take back: %w", err)
			}
			b.failed(err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// takeAll takes rows back. Whether it found them or not, what it saw is flushed before the slot may be
// confirmed past the deletes (PROOF.md R20). Those that fail are tried again, the others are done.
func (b *takebacks) takeAll(ctx context.Context, due []take) (err error) {
	statements := map[deletion]deleteStatement{}
	defer func() { err = errors.Join(err, b.forget(ctx, statements)) }()
	if err := b.prepare(ctx, due, statements); err != nil {
		return err
	}
	failed, err := b.settleAll(ctx, due, statements) // before the turn: whoever has that besides keys has taken the keys first
	if err != nil && len(failed) == 0 {
		return err
	}
	turn, lateErr := b.kept.excluding(ctx, due)
	if lateErr != nil {
		return lateErr
	}
	defer turn()
	switch more, lateErr := b.execute(ctx, due, statements); {
	case lateErr != nil && len(more) == 0:
		return lateErr
	case lateErr != nil:
		failed, err = append(failed, more...), lateErr
	}
	for _, t := range due {
		if t.key != nil || slices.ContainsFunc(failed, func(f take) bool { return f.key == nil && f.table == t.table && f.commit == t.commit }) {
			continue // what failed comes again
		}
		if lateErr := b.takeBundled(ctx, t, statements); lateErr != nil {
			if lost(lateErr) {
				return errors.Join(err, lateErr)
			}
			failed, err = append(failed, t), lateErr
		}
	}
	if err := b.takeKept(ctx, due); err != nil {
		return err
	}
	if _, err := b.markers.flush(ctx); err != nil {
		return err
	}
	b.absence.done(due, failed)
	if slices.ContainsFunc(due, func(t take) bool { return b.absence.merged(t.table) }) {
		if _, lateErr := b.markers.flush(ctx); lateErr != nil { // at which capture tells others what it has held back
			return errors.Join(err, lateErr)
		}
	}
	return err
}

// forget closes statements. The tables may look different when they are needed again.
func (b *takebacks) forget(ctx context.Context, statements map[deletion]deleteStatement) error {
	for _, s := range statements {
		if s.name == "" || b.conn.IsClosed() {
			continue
		}
		if err := b.conn.PgConn().Deallocate(ctx, s.name); err != nil {
			return fmt.Errorf("close take-back statement: %w", err)
		}
	}
	return nil
}

// deletion names the shape of a take's statement: by key, of so many columns, or a whole table.
type deletion struct {
	table tableName
	keys  int
}

// deleteStatement is what one needs to run a deletion's statement.
type deleteStatement struct {
	name string // none: there is nothing to do
	err  error  // it could not be prepared, and its takes wait
	tab  *table // what is left of a merged one's rows is worked out of the journal instead
}

// prepare prepares what the takes need on the connection, and puts it into statements.
func (b *takebacks) prepare(ctx context.Context, due []take, statements map[deletion]deleteStatement) error {
	for i := range due {
		d := deletion{due[i].table, len(due[i].key)}
		if _, ok := statements[d]; ok {
			continue
		}
		statements[d] = deleteStatement{}
		tab, err := b.catalog.table(ctx, d.table.schema, d.table.name)
		if isBlocked(err) { // dropped meanwhile: nothing to take back
			continue
		}
		if err != nil {
			return err
		}
		if d.keys != 0 && d.keys != len(tab.key) {
			b.rekeyed(tab)
			continue
		}
		if tab.merge != nil {
			statements[d] = deleteStatement{tab: tab}
			continue
		}
		name := fmt.Sprintf("take%d", len(statements))
		sql, types := b.sql(tab, &due[i])
		if _, err := b.conn.PgConn().Prepare(ctx, name, sql, types); err != nil {
			if lost(err) {
				return fmt.Errorf("take back rows of %s: %w", tab.quoted, err)
			}
			statements[d] = deleteStatement{err: err}
			continue
		}
		statements[d] = deleteStatement{name: name, tab: tab}
	}
	return nil
}

// rekeyed gives up the take-backs of deletes that were captured under another key of the table: their rows
// cannot be found by it.
func (b *takebacks) rekeyed(tab *table) {
	b.failed(fmt.Errorf("table %s got another key since rows of it were deleted; compare it with the other nodes: "+
		"older versions of the deleted rows may have come back", tab.quoted))
}

// settleAll works out anew what is left of merged tables' rows. It returns what failed.
func (b *takebacks) settleAll(ctx context.Context, due []take, statements map[deletion]deleteStatement) (failed []take, err error) {
	for _, t := range due {
		tab := statements[deletion{t.table, len(t.key)}].tab
		if tab == nil || tab.merge == nil {
			continue
		}
		if lateErr := b.settle(ctx, tab, t); lateErr != nil {
			if b.conn.IsClosed() || ctx.Err() != nil {
				return nil, lateErr
			}
			failed, err = append(failed, t), lateErr
		}
	}
	return failed, err
}

// execute sends all deletes in one go, each as a transaction of its own: one for all would keep rows locked
// that users may want in another order. A delete takes the row if its writer is a remote origin whose version
// is below the local delete's. Never a row of a local session: that is later. It returns what failed.
func (b *takebacks) execute(ctx context.Context, due []take, statements map[deletion]deleteStatement) (failed []take, err error) {
	p := b.conn.PgConn().StartPipeline(ctx)
	var sent []take
	for _, t := range due {
		s := statements[deletion{t.table, len(t.key)}]
		if s.err != nil {
			failed, err = append(failed, t), fmt.Errorf("take back a row of %s.%s: %w", t.table.schema, t.table.name, s.err)
			continue
		}
		if s.name == "" {
			continue
		}
		ps := append([]param{int64Param(int64(t.version.Stamp)), int64Param(int64(t.hash.Lo))}, s.tab.keyParams(t.key)...)
		values, formats := raw(ps)
		p.SendQueryPrepared(s.name, values, formats, nil)
		p.SendPipelineSync()
		sent = append(sent, t)
	}
	if err := p.Flush(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	for i := 0; i < len(sent); {
		r, rerr := p.GetResults()
		if rerr == nil {
			switch r := r.(type) {
			case *pgconn.ResultReader:
				_, rerr = r.Close()
			case *pgconn.PipelineSync:
				i++
			default:
				rerr = fmt.Errorf("unexpected answer %T", r)
			}
		}
		if rerr == nil {
			continue
		}
		rerr = fmt.Errorf("take back a row of %s.%s: %w", sent[i].table.schema, sent[i].table.name, rerr)
		if lost(rerr) {
			return nil, errors.Join(rerr, p.Close())
		}
		failed, err = append(failed, sent[i]), rerr
	}
	return failed, errors.Join(err, p.Close())
}

// takeBundled takes back what the delete of a whole table leaves: rows of bundles whose commit is later than the local
// delete, but which may be older themselves. Only their keys tell.
func (b *takebacks) takeBundled(ctx context.Context, t take, statements map[deletion]deleteStatement) error {
	tab, err := b.catalog.table(ctx, t.table.schema, t.table.name)
	if isBlocked(err) {
		return nil // dropped meanwhile
	}
	if err != nil {
		return err
	}
	cols, formats := tab.keyColumns()
	r := b.conn.PgConn().ExecParams(ctx, fmt.Sprintf("SELECT %s FROM %s t, LATERAL pg_xact_commit_timestamp_origin(t.xmin) c, pgbridge.bundle b "+
		"WHERE b.id = c.roident::int AND b.at = c.timestamp AND b.at >= $1 AND "+
		"b.at - (SELECT max(x) FROM unnest(b.behind) x) * interval '1 microsecond' <= $1 "+
		"UNION ALL SELECT %s FROM %s t, LATERAL pg_xact_commit_timestamp_origin(t.xmin) c WHERE c.roident = %d AND c.timestamp >= $1 "+
		"AND EXISTS (SELECT FROM pgbridge.returned r WHERE r.at = c.timestamp AND r.at - r.behind * interval '1 microsecond' <= $1)",
		cols, tab.rows, cols, tab.rows, b.kept.back),
		[][]byte{int64Param(int64(t.version.Stamp)).value}, []uint32{oidTimestamptz}, []int16{1}, formats).Read()
	if r.Err != nil {
		return fmt.Errorf("take back rows of %s: %w", tab.quoted, r.Err)
	}
	var keyed []take
	for _, row := range r.Rows {
		one := take{table: t.table, key: keyValues(row, formats), version: t.version}
		if one.hash, err = b.digests.Hash(ctx, tab.hasher, one.key); err != nil {
			return fmt.Errorf("take back rows of %s: %w", tab.quoted, err)
		}
		keyed = append(keyed, one)
	}
	if len(keyed) == 0 {
		return nil
	}
	if err := b.prepare(ctx, keyed, statements); err != nil {
		return err
	}
	_, err = b.execute(ctx, keyed, statements)
	return err
}

// sql builds the delete: $1 is the local delete's stamp, $2 Lo of the key's hash, then the key, if it is one row. A row of
// a bundle bears its commit's stamp, which is not below its own (bundle.go).
func (b *takebacks) sql(tab *table, t *take) (string, []uint32) {
	types := []uint32{oidTimestamptz, oidInt8}
	stamp := "c.timestamp"
	if len(t.key) > 0 {
		stamp = "c.timestamp - COALESCE((SELECT b.behind[array_position(b.keys, $2)] FROM pgbridge.bundle b " +
			"WHERE b.id = c.roident::int AND b.at = c.timestamp), 0) * interval '1 microsecond'"
	}
	var older []string
	for i, id := range b.ids {
		// Equal stamps are decided by the origin's name, like everywhere (origin.Version.Later).
		op := "<"
		if b.own.Compare(b.origins[i]) > 0 {
			op = "<="
		}
		older = append(older, fmt.Sprintf("WHEN c.roident = %d THEN %s %s $1", id, stamp, op))
	}
	older = append(older, b.olderKept(len(t.key) > 0))
	var sql strings.Builder
	fmt.Fprintf(&sql, "DELETE FROM %s t WHERE (SELECT CASE WHEN c.timestamp IS NULL THEN false %s ELSE false END "+
		"FROM pg_xact_commit_timestamp_origin(t.xmin) c)", tab.rows, strings.Join(older, " "))
	if len(t.key) > 0 {
		sql.WriteString(" AND ")
		types = tab.whereKey(&sql, types)
	}
	return sql.String(), types
}

// olderKept is the case of a row that has come back from the quarantine.
func (b *takebacks) olderKept(keyed bool) string {
	same, stamp := "", "c.timestamp"
	if keyed {
		stamp = "c.timestamp - COALESCE((SELECT r.behind FROM pgbridge.returned r WHERE r.at = c.timestamp AND r.lo = $2), 0) * interval '1 microsecond'"
		for i, id := range b.ids {
			if b.own.Compare(b.origins[i]) > 0 {
				same += fmt.Sprintf(" OR %s = $1 AND %s = %d", stamp, returnedBy("$2"), id)
			}
		}
	}
	return fmt.Sprintf("WHEN c.roident = %d THEN %s < $1%s", b.kept.back, stamp, same)
}
