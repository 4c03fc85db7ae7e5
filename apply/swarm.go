package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/wire"
)

// Conflicts come in swarms: when two nodes were apart, all that both wrote meets at once. Such transactions go the careful
// path together, as a bundle: their rows are looked at together, each is decided by its own stamp, and what is recorded and
// written goes out as runs.

// carefulBundle returns t, which comes next, with those behind it that can go the careful path together: they only insert
// and update rows, or are of merged tables, and what their authors had seen is the same.
func (w *worker) carefulBundle(t *txn) []*txn {
	limit := w.opts.BatchTransactions
	if !w.opts.mayMerge(t) {
		limit = min(w.straight, limit)
	}
	w.upcoming = w.inbox.upcoming(w.upcoming[:0], limit)
	if w.apart > 0 || len(w.upcoming) < bundleFrom {
		return []*txn{t}
	}
	n, size, rows := 0, 0, 0
	for _, u := range w.upcoming {
		if u.run != nil || u.schema || !u.joins(t) || !w.announceable(u) {
			break
		}
		changes, ok := w.plain(u)
		if size, rows = size+len(u.body), rows+changes; !ok || size > bundleBytes || rows > windowChanges {
			break
		}
		n++
	}
	if n < bundleFrom {
		return []*txn{t}
	}
	return slices.Clone(w.upcoming[:n])
}

// plain reports how many changes t makes, and whether they only insert rows and update them without another key, but for
// rows of merged tables.
func (w *worker) plain(t *txn) (int, bool) {
	changes, err := newChanges(t)
	if err != nil {
		return 0, false
	}
	for n := 0; ; n++ {
		rec, relations, err := changes.next()
		if err != nil {
			return n, errors.Is(err, io.EOF)
		}
		if rec.Kind == wire.KindTruncate {
			return n, false
		}
		id, tuples, err := wire.ParseChange(rec.Payload)
		if err == nil && len(w.opts.Merge) > 0 {
			if r := relations[id]; r != nil && w.opts.merges(r.Schema, r.Name) {
				continue
			}
		}
		if err != nil || rec.Kind != wire.KindInsert && (rec.Kind != wire.KindUpdate || len(tuples) == 0 || tuples[0] != 'N') {
			return n, false
		}
	}
}

// carefullyTogether applies transactions on the careful path as a bundle. Whatever is in the way, but for what capture has
// not read yet, makes the first of them go alone, as carefully does it.
func (w *worker) carefullyTogether(ctx context.Context, all []*txn) error {
	c := newCarefulRun(w, all)
	err := c.attempt(ctx)
	if errors.Is(err, errUnknown) {
		if err := c.wait(ctx); err != nil {
			return err
		}
		err = c.attempt(ctx)
	}
	var pg *pgconn.PgError
	var unheard *unheardError
	var depends *dependsError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errUnknown), errors.Is(err, errSurprise), errors.As(err, &unheard), errors.As(err, &depends), isBlocked(err), errors.As(err, &pg) && !lost(err):
		w.apart = len(all)
		return w.carefully(ctx, all[0])
	}
	return err
}

// moveOver queues the statement that moves the position over all of the bundle and keeps its rows' own stamps.
func (c *carefulRun) moveOver() error {
	var stamps rowStamps
	stamps.reset()
	los := map[uint64]bool{}
	for k, t := range c.wrote {
		if los[k.Lo] {
			return errSurprise // the bundle could not tell two rows apart
		}
		los[k.Lo] = true
		stamps.add(k, t, c.final())
	}
	c.push(moved, c.bundleStatement, stamps.move(nil, c.all[0], c.final()))
	return nil
}

const (
	oidTextArray = 1009
	// recordColumns are those of a record beside the row's.
	recordColumns = 6
)

// swarm is what the transactions of a bundle record and write, until it goes out.
type swarm struct {
	records []*rowRun
	updates []*rowRun
	at      map[wire.KeyHash]rowPlace // of each key's update
}

// rowRun is a run of rows of one table with the same columns.
type rowRun struct {
	m    *mapping
	cols []int
	rows [][]param
}

type rowPlace struct {
	run *rowRun
	n   int
}

// rowsOf returns the run of the list for rows of these columns.
func rowsOf(list *[]*rowRun, m *mapping, cols []int) *rowRun {
	for _, r := range *list {
		if r.m == m && slices.Equal(r.cols, cols) {
			return r
		}
	}
	r := &rowRun{m: m, cols: cols}
	*list = append(*list, r)
	return r
}

// runs reports whether the columns of a tuple, and its key, can travel in arrays.
func (c *carefulRun) runs(m *mapping, tuple []wire.Value, cols []int) bool {
	return len(c.all) > 1 && m.runs(cols) && allBinary(tuple, cols) && allBinary(tuple, m.key)
}

// recordTogether keeps a conflict back to be recorded with others; false if it cannot be. The row is locked, so that its
// image is the same when the record goes out, which is before anything is written.
func (c *carefulRun) recordTogether(m *mapping, tuple []wire.Value, l look, d conflict.Decision, outcome string) (bool, error) {
	if tuple == nil || c.bare != "" || c.delta {
		return false, nil
	}
	cols := slices.DeleteFunc(m.insertSet(nil), func(i int) bool { return tuple[i].Format == wire.Unchanged })
	if !c.runs(m, tuple, cols) {
		return false, nil
	}
	row, err := m.params(nil, tuple, cols)
	if err != nil {
		return false, err
	}
	r := rowsOf(&c.swarm.records, m, cols)
	r.rows = append(r.rows, append(row, textParam(string(d.Kind)), textParam(outcome), int64Param(int64(c.t.Seq)), int64Param(int64(c.t.Stamp)),
		textParam(l.local.Version.Origin.String()), int64Param(int64(l.local.Version.Stamp))))
	return true, nil
}

// updateTogether keeps an update back to go out with others; false if it cannot be. A later one of the same columns of the
// row takes its place.
func (c *carefulRun) updateTogether(m *mapping, tuple []wire.Value, set []int, k wire.KeyHash) (bool, error) {
	place, again := c.swarm.at[k]
	if m.local.unique || m.local.ordered || !c.runs(m, tuple, set) {
		if again {
			c.sendUpdates()
		}
		return false, nil
	}
	row, err := m.params(nil, tuple, slices.Concat(set, m.key))
	if err != nil {
		return false, err
	}
	if again && place.run.m == m && slices.Equal(place.run.cols, set) {
		place.run.rows[place.n] = row
		return true, nil
	}
	if again {
		c.sendUpdates()
	}
	r := rowsOf(&c.swarm.updates, m, set)
	if c.swarm.at == nil {
		c.swarm.at = map[wire.KeyHash]rowPlace{}
	}
	c.swarm.at[k] = rowPlace{r, len(r.rows)}
	r.rows = append(r.rows, row)
	return true, nil
}

// sendUpdates queues the updates that were kept back.
func (c *carefulRun) sendUpdates() {
	for _, r := range c.swarm.updates {
		ps := append(r.params(slices.Concat(r.cols, r.m.key), nil), int64Param(int64(len(r.rows))))
		c.push("table "+r.m.local.quoted, r.m.statement("kU"+shape(r.cols), func() (string, []uint32) { return r.m.updateRunSQL(r.cols, nil) }), ps)
	}
	c.swarm.updates, c.swarm.at = nil, nil
}

// sendRecords puts the records that were kept back into the queue, in front of what was queued behind at.
func (c *carefulRun) sendRecords(at int) {
	if len(c.swarm.records) == 0 {
		return
	}
	var queue []queued
	for _, r := range c.swarm.records {
		s := r.m.statement("kC"+shape(r.cols), func() (string, []uint32) { return r.m.conflictRunSQL(r.cols) })
		ps := append([]param{textParam(r.m.local.schema + "." + r.m.local.name), textParam(c.origin.String())},
			r.params(r.cols, []uint32{oidText, oidText, oidInt8, oidInt8, oidText, oidInt8})...)
		queue = append(queue, queued{what: "record conflicts", s: s, ps: ps, history: true})
	}
	c.queue, c.swarm.records = slices.Insert(c.queue, at, queue...), nil
}

// params turns a run into one array for each of its columns, and for those behind them.
func (r *rowRun) params(cols []int, more []uint32) []param {
	types := make([]uint32, 0, len(cols)+len(more))
	for _, i := range cols {
		types = append(types, r.m.local.cols[r.m.cols[i]].param())
	}
	types = append(types, more...)
	var ps []param
	for n, t := range types {
		var a array
		a.reset()
		for _, row := range r.rows {
			a.add(row[n].value, row[n].null)
		}
		ps = append(ps, binaryParam(a.value(t)))
	}
	return ps
}

// conflictRunSQL records conflicts about rows of which the columns come as arrays: behind table and origin, with what else a
// record says of each.
func (m *mapping) conflictRunSQL(cols []int) (string, []uint32) {
	types := []uint32{oidText, oidText}
	var args, names, image, where []string
	arg := func(array uint32) string {
		types = append(types, array)
		args = append(args, fmt.Sprintf("$%d", len(types)))
		names = append(names, fmt.Sprintf("v%d", len(types)))
		return "v." + names[len(names)-1]
	}
	for _, i := range cols {
		col := &m.local.cols[m.cols[i]]
		v := arg(col.typ.root().array)
		image = append(image, v+" AS "+col.quoted)
		if m.isKey(i) {
			where = append(where, fmt.Sprintf("%s %s %s", col.compared(), col.equals, v))
		}
	}
	var v [recordColumns]string
	for i, array := range []uint32{oidTextArray, oidTextArray, oidInt8Array, oidInt8Array, oidTextArray, oidInt8Array} {
		v[i] = arg(array)
	}
	return fmt.Sprintf("%s SELECT $1, %s, %s, $2, %s, %s, %s, %s, (SELECT row_to_json(t.*) FROM %s t WHERE %s), "+
		"(SELECT row_to_json(r.*) FROM (SELECT %s) r) FROM unnest(%s) WITH ORDINALITY v(%s, n) ORDER BY v.n",
		conflictInto, v[0], v[1], v[2], v[3], v[4], v[5], m.local.rows, strings.Join(where, " AND "),
		strings.Join(image, ", "), strings.Join(args, ", "), strings.Join(names, ", ")), types
}
