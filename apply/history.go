package apply

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// conflictInto ends in the images: of the row that is here and of what the remote transaction wants.
const conflictInto = `
INSERT INTO pgbridge.conflict (relation, kind, outcome, remote_origin, remote_seq, remote_stamp,
    local_origin, local_stamp, local_row, remote_row)`

// historyError is the server's refusal to record a conflict with the rows' images: a row may be too long for
// JSON, or a type's own cast fails. The origin must not wait for that.
type historyError struct{ *pgconn.PgError }

// Unwrap returns the server's error.
func (e *historyError) Unwrap() error { return e.PgError }

// rowOf is how record finds a row that is here: a condition on alias t, its parameters beginning at $1.
type rowOf func() (where string, types []uint32, ps []param, err error)

// rowOf finds the row of tuple's key.
func (m *mapping) rowOf(tuple []wire.Value) rowOf {
	return func() (string, []uint32, []param, error) { return m.keyCondition(tuple) }
}

const (
	oidText = 25
	oidJSON = 114
)

func textParam(s string) param { return param{value: []byte(s)} }

// rowAt finds the row at a place of a table.
func rowAt(tableoid, ctid string) rowOf {
	return func() (string, []uint32, []param, error) {
		return "t.tableoid = $1::oid AND t.ctid = $2::tid", []uint32{oidText, oidText}, []param{textParam(tableoid), textParam(ctid)}, nil
	}
}

// record queues both versions of a conflict to be kept, in the transaction that decides it (invariant 7).
// tuple is what the remote transaction wants, nil for a delete. The image of the row that is here is made when
// it is recorded, in front of the statement that changes the row.
func (c *carefulRun) record(m *mapping, tuple []wire.Value, here rowOf, l look, d conflict.Decision) error {
	if !d.Conflict {
		return nil
	}
	outcome := localWins
	if d.RemoteWins {
		outcome = remoteWins
	}
	c.losses = append(c.losses, string(d.Kind))
	if ok, err := c.recordTogether(m, tuple, l, d, outcome); ok || err != nil {
		return err
	}
	i := images{}
	if c.bare != "" {
		i.mark(c.bare, l.found || l.kept != nil, tuple != nil)
	} else if err := i.make(m, tuple, here, l); err != nil {
		return err
	}
	c.pushRecord(m, "kc", conflictInto, i, string(d.Kind), outcome, l.local.Version)
	return nil
}

// pushRecord queues a record, with into and what stands in it between the version that was here and the images.
func (c *carefulRun) pushRecord(m *mapping, name, into string, i images, kind, outcome string, here origin.Version, more ...string) {
	s := m.statement(name+i.shape, func() (string, []uint32) {
		types := append(i.types, oidText, oidText, oidText, oidText, oidInt8, oidInt8, oidText, oidInt8)
		for range more {
			types = append(types, oidText)
		}
		var values []string
		for n := len(i.types) + 1; n <= len(types); n++ {
			values = append(values, fmt.Sprintf("$%d", n))
		}
		return into + " VALUES (" + strings.Join(values, ", ") + ", " + i.local + ", " + i.remote + ")", types
	})
	ps := append(i.ps, textParam(m.local.schema+"."+m.local.name), textParam(kind), textParam(outcome),
		textParam(c.t.origin.String()), int64Param(int64(c.t.Seq)), int64Param(int64(c.t.Stamp)),
		textParam(here.Origin.String()), int64Param(int64(here.Stamp)))
	for _, text := range more {
		ps = append(ps, textParam(text))
	}
	c.queue = append(c.queue, queued{what: "record conflict", s: s, ps: ps, history: true})
}

// images are the SQL of a conflict's two images with its parameters. The same shape has the same SQL. They are
// json, not jsonb, which cannot hold every value that json can.
type images struct {
	local, remote string
	shape         string
	types         []uint32
	ps            []param
}

func (i *images) make(m *mapping, tuple []wire.Value, here rowOf, l look) error {
	i.local, i.remote, i.shape = "NULL", "NULL", "-"
	if l.kept != nil {
		i.local = "(SELECT json_object(q.columns, q.image) FROM pgbridge.quarantine q WHERE q.hi = $1 AND q.lo = $2)"
		i.shape, i.types, i.ps = "kept", []uint32{oidInt8, oidInt8}, hashParams(*l.kept)
	}
	if l.found {
		where, types, ps, err := here()
		if err != nil {
			return err
		}
		i.local = "(SELECT row_to_json(t.*) FROM " + m.local.rows + " t WHERE " + where + ")"
		i.shape, i.types, i.ps = where, types, ps
	}
	var cols []string
	for n, v := range tuple {
		if v.Format == wire.Unchanged || m.cols[n] < 0 {
			continue
		}
		p, err := m.param(n, v)
		if err != nil {
			return err
		}
		col := &m.local.cols[m.cols[n]]
		i.types, i.ps = append(i.types, col.param()), append(i.ps, p)
		cols = append(cols, fmt.Sprintf("$%d AS %s", len(i.types), col.quoted))
	}
	if len(cols) > 0 {
		// NULL values are in it, other than unchanged ones.
		i.remote = "(SELECT row_to_json(r.*) FROM (SELECT " + strings.Join(cols, ", ") + ") r)"
	}
	i.shape += i.remote
	return nil
}

// notRecorded begins what stands in place of an image that the server could not make.
const notRecorded = "not recorded: "

// mark says in both images why they are not there.
func (i *images) mark(reason string, local, remote bool) {
	b, _ := json.Marshal(map[string]string{"pgbridge": notRecorded + reason}) // strings always encode
	for _, there := range []bool{local, remote} {
		i.types, i.ps = append(i.types, oidJSON), append(i.ps, param{value: b, null: !there})
	}
	i.local, i.remote, i.shape = "$1", "$2", "bare"
}
